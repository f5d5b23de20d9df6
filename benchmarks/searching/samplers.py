"""Searchers by name: Optuna's samplers and ours, the predicted front alone, uniform policies, SPDY and EvoPress."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.searching.evopress import EvoPress
from benchmarks.searching.recorded import Recorded
from benchmarks.searching.searcher import Listed, Offer, Preceded, Searcher, Told
from benchmarks.searching.setting import Setting, digest_of
from benchmarks.searching.spdy import Spdy
from search.samplers.proposer import Proposer
from search.sensitivity import predicted_front, spread
from search.study import Origin
from spaces.policy import Policy

RACING = "+racing"
OURS = "front"
PROPOSERS = ("front", "nsga2", "tpe", "random", "gp")
OTHERS = ("uniform", "programme", "spdy", "evopress")
WITHOUT_FIRST = ("uniform", "programme")  # what they propose is a list of their own
ALONG = 1024  # policies along the predicted front, in an order in which any first few cover it
OTHERS_VERSION = 2  # of the code of OTHERS: raise it when what they propose changes
MOST = {"gp": 100}  # evaluations of those whose asks take too long after


class Proposed:
    """A searcher around the proposer that a real search asks.

    Args:
        proposer: new.
    """

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer

    def propose(self, number: int) -> Offer | None:
        """Ask for the next policy."""
        asked = self._proposer.propose(number)
        self._proposer.restore(asked.study_attrs)
        note = {"params": dict(asked.params), "system": dict(asked.system_attrs), "study": dict(asked.study_attrs)}
        return Offer(asked.policy, asked.origin, note=note)

    def again(self, number: int, policy: Policy, note: Mapping[str, Any]) -> Offer | None:
        """Replay what was asked; asking takes some samplers a second."""
        self._proposer.restore(note["study"])
        return Offer(self._proposer.replay(number, note["params"], note["system"]), note=note)

    def tell(self, number: int, told: Told) -> None:
        """Tell the sampler."""
        self._proposer.tell(number, (told.accuracy, float(told.bytes)), (told.rung,), stopped=told.stopped)


def base_of(name: str) -> tuple[str, bool, bool]:
    """A searcher's own name, whether it gets the first candidates, and whether it races.

    Raises:
        ValueError: there is no such searcher.
    """
    own, races = name.removesuffix(RACING), name.endswith(RACING)
    own, first = own.removesuffix("+"), own.endswith("+")
    if own not in (*PROPOSERS, *OTHERS) or (first and own in WITHOUT_FIRST):
        known = ", ".join((*PROPOSERS, *OTHERS))
        raise ValueError(
            f"--samplers: given {name!r}, allowed {known}; behind one also + (first candidates) or {RACING}"
        )
    return own, first or own == OURS, races


def searcher_of(name: str, setting: Setting, table: Recorded, seed: int) -> Searcher:
    """A searcher, new.

    Args:
        name: such as "tpe", "tpe+" (which starts with the first candidates, as ours does) or "front+racing".
        setting: what it searches.
        table: answers what it asks beside the trials.
        seed: of its random numbers.
    """
    own, with_first, _ = base_of(name)
    first: Sequence[tuple[Origin, Policy]] = setting.prepared.first if with_first else ()
    searcher: Searcher
    match own:
        case "uniform":
            return Listed(
                [("uniform", setting.prepared.space.make(sites)) for sites in setting.prepared.space.uniform()]
            )
        case "programme":
            return Listed([("predicted", policy) for policy in along(setting, ALONG)])
        case "spdy":
            searcher = Spdy(setting, table, seed)
        case "evopress":
            searcher = EvoPress(setting, table, seed, [policy for _, policy in first])
        case _:
            return Proposed(Proposer(setting.prepared.space, own, {}, seed, first, setting.knowledge))
    return Preceded(first, searcher) if first else searcher


def given(name: str, setting: Setting, window: int, confidence: float, tag: str) -> str:
    """What a searcher's run depends on beside name and seed: under it the run is found again, and extended.

    Ours is also kept by the tag, so that a changed one is run anew while the others' runs are used again.
    """
    own, with_first, races = base_of(name)
    parts: list[object] = [setting.split, window if own in PROPOSERS else None]
    parts.append(setting.first_digest if with_first else None)
    parts.append([OTHERS_VERSION, setting.levels_digest] if own in OTHERS else None)
    parts.append([setting.config.chunk, confidence, tag] if races else None)
    parts.append(tag if own == OURS else None)
    return digest_of(*parts)


def along(setting: Setting, count: int) -> list[Policy]:
    """Policies evenly along the front that the dynamic programme predicts, up to a quarter of the float model."""
    total, losses, chosen = predicted_front(
        [one.bytes for one in setting.levels], [one.losses for one in setting.levels]
    )
    middle = float(np.sqrt(losses[0] * losses[-1])) or 1.0  # as the first candidates are spread
    along_it = spread(total + setting.rest, np.log1p(losses / middle), count, setting.span[1])
    return [setting.policy(chosen[state]) for state in along_it]
