"""Made-up worlds for samplers: sites whose sensitivities are known up to a hidden weight each, and interact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial

from search.pareto import Box, hypervolume
from search.samplers.table import SiteTable, Table

BITS = (2, 3, 4, 5, 6, 7, 8)
RATIOS = (0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.96)
REST = 5000
BEST = 0.98  # accuracy without any loss
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)

Floats = npt.NDArray[np.float64]
Score = tuple[float, int, float]


@dataclass(frozen=True)
class Point:
    """What a front is made of."""

    trial: int
    bytes: int
    accuracy: float


@dataclass(frozen=True, eq=False)
class World:
    """What a sampler is told before the first trial, and what is true.

    Attributes:
        table: bytes, and two kinds of sensitivities: one that lacks the sites' weights, and a closer one.
        axes: of its sites.
        true: loss of each choice at each site.
        together: how much more two sites lose together, (sites, sites).
    """

    table: Table
    axes: Mapping[str, BaseDistribution]
    true: tuple[Floats, ...]
    together: Floats

    @property
    def box(self) -> Box:
        """Up to a quarter of the float model, from chance to 1."""
        largest = self.table.rest + sum(4 * int(site.bytes.max()) for site in self.table.sites)
        return Box(self.table.smallest, largest / 4, 0.1, 1.0)

    def loss(self, params: Mapping[str, Any]) -> float:
        """What is lost in truth."""
        numbers = self.table.numbers(params)
        assert numbers is not None
        own = np.array([costs[i] for costs, i in zip(self.true, numbers, strict=True)])
        return float(0.2 * (own.sum() + np.sqrt(own) @ self.together @ np.sqrt(own)))

    def score(self, params: Mapping[str, Any]) -> Score:
        """Accuracy, bytes and loss, with the luck that goes with a policy."""
        numbers = np.array(self.table.numbers(params))
        luck = np.random.default_rng(numbers)
        loss = self.loss(params) * np.exp(luck.normal(0, 0.05))
        accuracy = accuracy_at(loss)
        accuracy += luck.normal(0, np.sqrt(max(accuracy * (1 - accuracy), 0.001) / 400))
        return min(1.0, float(accuracy)), int(self.table.bytes(numbers[None])[0]), float(loss)


def accuracy_at(loss: float) -> float:
    """Without luck."""
    return float(0.1 + (BEST - 0.1) / (1 + (loss / 0.6) ** 1.3))


def world(
    seed: int = 0,
    sites: int = 6,
    *,
    shuffled: bool = False,
    bits: Sequence[int] = BITS,
    ratios: Sequence[float] = RATIOS,
) -> World:
    """A world; where it is shuffled, sensitivities are those of other choices at other sites. Steps are even."""
    draw, mixing = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    sizes = np.exp(draw.uniform(np.log(200), np.log(40_000), sites)).astype(int)
    hidden = np.exp(draw.normal(0, 1.2, sites))
    found: list[SiteTable] = []
    true: list[Floats] = []
    axes: dict[str, BaseDistribution] = {}
    for i in range(sites):
        points = tuple({f"s{i}/ratio": ratio, f"s{i}/bits": width} for ratio in ratios for width in bits)
        bytes = [int(sizes[i] * (b * (1 - r) / 8 + (0.1 if r else 0))) + 40 for r in ratios for b in bits]
        pruning = np.exp(draw.normal(0, 0.5))
        plain = np.array([0.6 * 4.0 ** (1 - b) + 0.5 * pruning * r**3 for r in ratios for b in bits])
        count = len(plain)
        true.append(plain * hidden[i] * np.exp(draw.normal(0, 0.25, count)))
        close = true[i] * np.exp(draw.normal(0, 0.6)) * np.exp(draw.normal(0, 0.3, count))
        losses = np.stack([plain * np.exp(draw.normal(0, 0.1, count)), close], axis=1)
        found.append(
            SiteTable(f"s{i}", points, np.array(bytes), losses[mixing.permutation(count)] if shuffled else losses)
        )
        axes[f"s{i}/ratio"] = FloatDistribution(ratios[0], ratios[-1], step=round(ratios[1] - ratios[0], 9))
        axes[f"s{i}/bits"] = IntDistribution(bits[0], bits[-1], step=bits[1] - bits[0])
    if shuffled:
        losses_of = [found[k].losses for k in mixing.permutation(sites)]
        found = [SiteTable(s.name, s.points, s.bytes, own) for s, own in zip(found, losses_of, strict=True)]
    return World(Table(tuple(found), {}, REST), axes, tuple(true), np.abs(draw.normal(0, 0.15, (sites, sites))))


Tell = Callable[[Study, Trial, Score], object]


def tell(study: Study, trial: Trial, score: Score) -> None:
    """Accuracy, bytes and the smooth loss."""
    trial.set_user_attr("losses", [score[2]])
    study.tell(trial, score[:2])


def tell_values(study: Study, trial: Trial, score: Score) -> None:
    """Accuracy and bytes alone."""
    study.tell(trial, score[:2])


def searched(
    given: World,
    sampler: optuna.samplers.BaseSampler,
    trials: int,
    first: Sequence[Mapping[str, Any]] = (),
    tell: Tell = tell,
) -> Study:
    """A plain Optuna study of a world."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    for point in first:
        study.enqueue_trial(dict(point))
    for _ in range(trials):
        trial = study.ask(dict(given.axes))
        tell(study, trial, given.score(trial.params))
    return study


def points(trials: Sequence[FrozenTrial]) -> list[Point]:
    """Those of complete trials."""
    return [Point(one.number, int(one.values[1]), one.values[0]) for one in trials if one.state.name == "COMPLETE"]


def volume(given: World, study: Study, trials: int | None = None) -> float:
    """Hypervolume of a study's first trials, by what their policies lose in truth: no luck counts."""
    known = study.get_trials(deepcopy=False)[:trials]
    found = [Point(one.trial, one.bytes, accuracy_at(given.loss(known[one.trial].params))) for one in points(known)]
    return hypervolume(found, given.box)
