"""What every sampler must keep: the next policy depends on the seed, its number and what was told alone."""

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from compress.layer import Cost
from objectives.score import RungScore
from search.pareto import Box, hypervolume
from search.samplers.named import Knowledge, sampler_maker
from search.samplers.proposer import Proposer
from search.samplers.table import Table
from search.study import Origin, Proposal
from search.tables import site_table
from spaces.errors import ConfigError
from spaces.policy import Distillation, Policy, Uniform
from spaces.space import SiteSpace, Space

WINDOW = 4
NAMES = ("front", "nsga2", "tpe", "random")
GENERATION = "NSGAIISampler:generation"


def space(
    sites: int = 4, bits: Sequence[int] = (2, 3, 4, 6, 8), ratios: Sequence[float] = (0.0, 0.3, 0.6, 0.9)
) -> Space:
    names = [f"layer.{i}" for i in range(sites)]
    return Space(
        tuple(SiteSpace(name, ("uniform",), tuple(ratios), tuple(bits)) for name in names),
        temperature=(1.0, 8.0),
        alpha=(0.5, 1.0),
        distillation=Distillation(temperature=1, alpha=0.5, learning_rate=1e-3, batch_size=64),
    )


def first_of(given: Space, count: int = 5) -> list[tuple[Origin, Policy]]:
    return [("uniform", given.make(sites, 2.0, 0.75)) for sites in given.uniform()[:count]]


def score(policy: Policy) -> tuple[float, float]:
    """A made-up one: an accuracy that falls with rounding and pruning, and bytes."""
    size, loss = 0.0, 0.0
    for weight, choice in enumerate(policy.sites.values(), start=1):
        assert isinstance(choice.weights, Uniform)
        size += 100 * weight * choice.weights.bits * (1 - choice.ratio)
        loss += (2.0**-choice.weights.bits + choice.ratio**4 / 4) / weight
    return 1 - loss, round(size)


def worth(policy: Policy) -> tuple[float, float] | None:
    """Its score; some policies fail."""
    words = " ".join(choice.label for choice in policy.sites.values())  # not the digest: it changes with its format
    return None if crc32(words.encode()) % 16 == 7 else score(policy)


Worth = Callable[[Policy], tuple[float, float] | None]


class Made:
    """A point of a front."""

    def __init__(self, trial: int, score: tuple[float, float]) -> None:
        self.trial, self.accuracy, self.bytes = trial, score[0], int(score[1])


class Search:
    """The driver's part: asks in order, shows what was told up to the window, and notes what a store would keep."""

    def __init__(self, new: Callable[[], Proposer], worth: Worth = worth) -> None:
        self.new, self.proposer, self.worth = new, new(), worth
        self.asked: list[Proposal] = []
        self.study_attrs: dict[str, Any] = {}
        self.shown = 0

    def show(self, number: int) -> None:
        for told in range(self.shown, number - WINDOW + 1):
            self.proposer.tell(told, self.worth(self.asked[told].policy))
            self.shown = told + 1

    def ask(self, count: int) -> "Search":
        for number in range(len(self.asked), len(self.asked) + count):
            self.show(number)
            proposal = self.proposer.propose(number)
            self.asked.append(proposal)
            self.study_attrs |= proposal.study_attrs
        return self

    def resumed(self, cut: int) -> "Search":
        """A search that is started again from what a store holds after `cut` trials were asked."""
        again = Search(self.new)
        again.asked = self.asked[:cut]
        for proposal in again.asked:
            again.study_attrs |= proposal.study_attrs
        again.proposer.restore(json.loads(json.dumps(again.study_attrs)))
        for number, proposal in enumerate(again.asked):
            again.show(number)
            stored = json.loads(json.dumps([dict(proposal.params), dict(proposal.system_attrs)]))
            assert again.proposer.replay(number, *stored) == proposal.policy
        return again


def known(given: Space) -> Knowledge:
    """What `score` makes of each choice alone: what our sampler is told before the first trial."""
    sites = []
    for weight, site in enumerate(given.sites, start=1):
        costs = []
        for choice in site.choices():
            assert isinstance(choice.weights, Uniform)
            size = round(100 * weight * choice.weights.bits * (1 - choice.ratio))
            costs.append(Cost(size, (2.0**-choice.weights.bits + choice.ratio**4 / 4) / weight))
        sites.append(site_table(site, costs))
    return Knowledge((Table(tuple(sites)),), (Box(2000, 84_000, 0.0, 1.0),), 1.0)


def search(name: str, seed: int = 0, options: Mapping[str, Any] | None = None, given: Space | None = None) -> Search:
    made = given or space()
    if options is None:
        options = {"population_size": 6} if name == "nsga2" else {}
    return Search(partial(Proposer, made, name, options, seed, first_of(made), known(made)))


@pytest.fixture(scope="module")
def whole() -> dict[str, Search]:
    return {name: search(name).ask(60) for name in NAMES}


class TestPurity:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_same_again(self, whole: dict[str, Search], name: str) -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        count = 60 if name != "tpe" else 25
        assert search(name).ask(count).asked == whole[name].asked[:count]

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("part", range(3))
    def test_going_on_after_any_number_of_trials(self, whole: dict[str, Search], name: str, part: int) -> None:
        for cut in range(1 + part, 58, 3):
            again = whole[name].resumed(cut).ask(3)
            assert again.asked == whole[name].asked[: cut + 3]
            assert all(whole[name].study_attrs[key] == value for key, value in again.study_attrs.items())

    @pytest.mark.parametrize("name", ["front", "nsga2", "random"])
    def test_going_on_to_the_end(self, whole: dict[str, Search], name: str) -> None:
        for cut in (1, 12, 33):
            again = whole[name].resumed(cut)
            again.ask(60 - cut)
            assert again.asked == whole[name].asked
            assert again.study_attrs == whole[name].study_attrs

    def test_another_seed_asks_for_others(self, whole: dict[str, Search]) -> None:
        for name in NAMES:
            asked, other = whole[name].asked[:15], search(name, seed=1).ask(15).asked
            assert asked[:5] == other[:5]  # the first ones do not depend on it
            assert all(a.policy != b.policy for a, b in zip(asked[5:], other[5:], strict=True))

    def test_what_was_told_matters(self, whole: dict[str, Search]) -> None:
        for name in ("front", "nsga2", "tpe"):
            begun = whole[name].resumed(30)
            begun.shown = 0
            begun.proposer = begun.new()
            begun.proposer.restore({})
            for number, proposal in enumerate(begun.asked):
                begun.proposer.replay(number, proposal.params, proposal.system_attrs)
            for number in range(26):
                begun.proposer.tell(number, (random.Random(number).random(), 1000.0 + number))
            assert begun.proposer.propose(30).policy != whole[name].asked[30].policy

    def test_the_first_candidates_come_in_their_order(self, whole: dict[str, Search]) -> None:
        for run in whole.values():
            assert [(one.origin, one.policy) for one in run.asked[:5]] == first_of(space())
            assert {one.origin for one in run.asked[5:]} == {"sampler"}

    def test_every_policy_is_in_the_space_and_its_parameters_give_it(self, whole: dict[str, Search]) -> None:
        for run in whole.values():
            for one in run.asked:
                assert space().policy(one.params) == one.policy
                assert list(one.params) == [axis.name for axis in space().axes()]


class TestBreeding:
    def test_the_first_candidates_are_generation_0(self, whole: dict[str, Search]) -> None:
        generations = [one.system_attrs[GENERATION] for one in whole["nsga2"].asked]
        assert generations[:5] == [0] * 5
        assert generations == sorted(generations)
        assert generations[-1] >= 5

    def test_children_are_made_of_their_parents(self) -> None:
        run = search("nsga2", options={"population_size": 6, "mutation_prob": 0.0}).ask(40)
        children = 0
        for one in run.asked:
            generation = one.system_attrs[GENERATION]
            if generation == 0:
                continue
            parents = [run.asked[i] for i in run.study_attrs[f"NSGAIISampler:parent:{generation}"]]
            assert all(parent.system_attrs[GENERATION] < generation for parent in parents)
            for name, value in one.params.items():
                assert value in [parent.params[name] for parent in parents]
            children += 1
        assert children > 20

    def test_the_first_candidates_are_among_the_first_parents(self, whole: dict[str, Search]) -> None:
        parents = whole["nsga2"].study_attrs["NSGAIISampler:parent:1"]
        assert set(parents) & set(range(5))

    def test_it_finds_better_ones_than_chance(self) -> None:
        found = {"nsga2": 0.0, "random": 0.0}
        for name, seed in itertools.product(found, range(3)):
            options = {"population_size": 20} if name == "nsga2" else {}
            asked = Search(search(name, seed, options, space(14)).new, score).ask(180).asked
            scored = [Made(i, score(one.policy)) for i, one in enumerate(asked)]
            found[name] += hypervolume(scored, Box(2000, 84000, 0.0, 1.0))
        assert found["nsga2"] > 1.03 * found["random"]


def rung(loss: float) -> RungScore:
    return RungScore(0, 0.5, 1000, 1.0, loss, 0.1, loss, 100, 100, 0)


class TestOurs:
    def asked_after(self, loss: float | None) -> list[Policy]:
        """What is asked where one trial tells another loss, or none."""
        proposer, asked = search("front").new(), []
        for number in range(14):
            asked.append(proposer.propose(number).policy)
            own = loss if number == 3 else 1.1 - score(asked[-1])[0]
            proposer.tell(number, score(asked[-1]), [] if own is None else [rung(own)])
        return asked

    def test_losses_matter(self) -> None:
        found = [self.asked_after(loss) for loss in (0.01, 0.9, None)]
        assert all(one[:5] == found[0][:5] for one in found)
        assert len({tuple(policy.digest for policy in one) for one in found}) == 3

    def test_it_is_told_losses_and_what_was_stopped(self) -> None:
        proposer = search("front").new()
        proposer.propose(0)
        proposer.tell(0, (0.5, 1000.0), [rung(0.3), rung(0.1)], stopped=True)
        assert proposer._study.trials[0].user_attrs == {"losses": [0.3, 0.1], "stopped": True}

    def test_it_finds_better_ones_than_evolution(self) -> None:
        volumes = []
        for name in ("front", "nsga2"):
            asked = Search(search(name, 0, {}, space(8)).new, score).ask(60).asked
            volumes.append(
                hypervolume([Made(i, score(one.policy)) for i, one in enumerate(asked)], Box(2000, 84000, 0, 1))
            )
        assert volumes[0] > 1.05 * volumes[1]

    def test_a_focus_is_aimed_at(self) -> None:
        made = space(8)
        new = partial(Proposer, made, "front", {}, 0, first_of(made), known(made), lambda _: (6000.0, 9000.0))
        sizes = [score(one.policy)[1] for one in Search(new, score).ask(40).asked[20:]]
        assert sum(5000 <= size <= 9000 for size in sizes) >= 16


class TestRepeats:
    def test_a_repeated_policy_is_drawn_again(self) -> None:
        few = Space((SiteSpace("a", ("uniform",), (0.0,), tuple(range(2, 8))),))
        proposer = Proposer(few, "random", {}, 0, ())
        asked = [proposer.propose(number).policy.digest for number in range(6)]
        assert len(set(asked)) == 6

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("bits", [(2, 8), (4,)])
    def test_a_space_that_is_used_up_is_asked_again(self, name: str, bits: tuple[int, ...]) -> None:
        tiny = Space((SiteSpace("a", ("uniform",), (0.0,), bits),))
        run = search(name, given=tiny).ask(20)
        assert {one.policy.digest for one in run.asked} == {one.policy.digest for one in run.asked[: len(bits)]}
        assert run.resumed(11).ask(5).asked == run.asked[:16]


class TestProtocol:
    def proposer(self) -> Proposer:
        made = Proposer(space(), "random", {}, 0, ())
        made.propose(0)
        return made

    def test_a_trial_is_told_once(self) -> None:
        proposer = self.proposer()
        proposer.tell(0, None)
        with pytest.raises(ValueError, match="trial 0 was told already: it is FAIL"):
            proposer.tell(0, (0.5, 100.0))

    def test_only_what_was_asked_is_told(self) -> None:
        with pytest.raises(ValueError, match="trial 1 was never asked"):
            self.proposer().tell(1, None)

    def test_trials_are_asked_in_turn(self) -> None:
        with pytest.raises(ValueError, match="trial 5 asked out of turn: the next is 1"):
            self.proposer().propose(5)

    def test_what_is_not_in_the_space_is_not_replayed(self) -> None:
        proposer = Proposer(space(), "random", {}, 0, ())
        params = Proposer(space(), "random", {}, 0, ()).propose(0).params
        with pytest.raises(ValueError, match="5"):
            proposer.replay(0, {**params, "layer.0/bits": 5}, {})


class TestNames:
    @pytest.mark.parametrize("name", [*NAMES, "gp", "optuna.samplers.NSGAIIISampler"])
    def test_samplers_for_two_objectives_are_admitted(self, name: str) -> None:
        Proposer(space(), name, {}, 0, ()).check()
        Proposer(space(), name, {}, 0, (), known(space())).check()

    @pytest.mark.parametrize(
        ("name", "options", "words"),
        [
            ("optuna.samplers.CmaEsSampler", {}, "CmaEsSampler"),
            ("optuna.samplers.NoSampler", {}, "given 'optuna.samplers.NoSampler', which cannot be imported"),
            ("no.such.module.Sampler", {}, "cannot be imported"),
            ("optuna.search_space.intersection_search_space", {}, "no subclass of optuna.samplers.BaseSampler"),
            ("collections.OrderedDict", {}, "no subclass of optuna.samplers.BaseSampler"),
            ("optuna.samplers.GridSampler", {}, "GridSampler cannot be made with options {}"),
            ("front", {"population": 5, "a": 1}, "given a, population, but the sampler front takes none"),
            ("nsga2", {"population": 5}, "given population, which NSGAIISampler does not take"),
            ("nsga2", {"population_size": 1}, "NSGAIISampler cannot be made"),
            ("random", {"a": 1, "b": 2}, "given a, b, which RandomSampler does not take; it takes seed"),
        ],
    )
    def test_others_are_refused(self, name: str, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Proposer(space(), name, options, 0, ()).check()
        assert words in str(caught.value)

    def test_the_seed_is_not_for_the_options(self) -> None:
        with pytest.raises(ConfigError, match="seed"):
            sampler_maker("random", {"seed": 3})

    def test_options_are_handed_on(self) -> None:
        grid = {axis.name: [2, 8] if "bits" in axis.name else [0.0] for axis in space(2).axes()}
        grid |= {"temperature": [2.0], "alpha": [0.5, 1.0]}
        proposer = Proposer(space(2), "optuna.samplers.GridSampler", {"search_space": grid}, 0, ())
        proposer.check()
        asked = []
        for number in range(4):
            asked.append(proposer.propose(number))
            proposer.tell(number, worth(asked[-1].policy))
        assert all(one.params[name] in values for one in asked for name, values in grid.items())
        assert len({one.policy.digest for one in asked}) == 4

    def test_gp_goes_on_after_a_restart(self) -> None:
        run = search("gp", options={"n_startup_trials": 4}, given=space(2)).ask(9)
        assert run.resumed(6).ask(3).asked == run.asked
