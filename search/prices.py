"""What the choices of a site cost: bytes, and the loss that each sensitivity predicts."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from compress.layer import Cost
from objectives.score import Scorer
from objectives.sensitivities import site_sensitivity
from search.sensitivity import ladder
from spaces.policy import Choice, Policy


@dataclass(frozen=True)
class Sensing:
    """How closely sensitivities are looked at.

    Attributes:
        samples: calibration samples on which the KL of a choice is measured; 0 does not measure it.
        choices: how many choices of a site it is measured at; None is all of them.
    """

    samples: int
    choices: int | None


@dataclass(frozen=True)
class Price(Cost):
    """What a choice at a site costs, with the losses that are predicted for it; NaN where one is not known.

    Attributes:
        fisher, gradient, kl: as in `objectives.sensitivities.SiteSensitivity`.
        forwards, backwards: samples that it took to know; what choices have in common is counted at the first one.
    """

    fisher: float = math.nan
    gradient: float = math.nan
    kl: float = math.nan
    forwards: int = 0
    backwards: int = 0


def prices(
    scorer: Scorer, policy: Policy, site: str, choices: Sequence[Choice], costs: Sequence[Cost], sensing: Sensing
) -> list[Price]:
    """The costs of a site's choices with their sensitivities.

    Args:
        scorer: of the study.
        policy: the setting; its choices do not matter.
        site: its name.
        choices: what could be done there.
        costs: what that costs.
        sensing: how closely to look.

    Raises:
        CandidateError: a choice does not fit the site.
        RetryableError: out of memory.
    """
    known = site_sensitivity(scorer, policy, site, choices, 0)
    forwards, backwards = known.forwards, known.backwards
    kl = np.full(len(choices), math.nan)
    if sensing.samples:
        at = measured(costs, len(costs) if sensing.choices is None else sensing.choices)
        found = site_sensitivity(scorer, policy, site, [choices[i] for i in at], sensing.samples)
        kl[at] = found.kl
        forwards, backwards = found.forwards, found.backwards  # they count what both share
    return [
        Price(
            **asdict(cost),
            fisher=float(known.fisher[i]),
            gradient=float(known.gradient[i]),
            kl=float(kl[i]),
            forwards=forwards if i == 0 else 0,
            backwards=backwards if i == 0 else 0,
        )
        for i, cost in enumerate(costs)
    ]


def measured(costs: Sequence[Cost], count: int) -> list[int]:
    """Which choices are measured: of those that no other one is better than, `count` evenly spread over log error."""
    if count >= len(costs):
        return list(range(len(costs)))
    errors = np.array([cost.error for cost in costs])
    best = ladder(np.array([cost.bytes for cost in costs]), errors)
    logs = np.log(np.maximum(errors[best], 1e-12))
    wished = np.linspace(logs[0], logs[-1], 2 * count + 1)[1::2]
    return sorted({int(best[np.argmin(np.abs(logs - one))]) for one in wished})
