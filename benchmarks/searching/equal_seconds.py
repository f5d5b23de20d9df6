"""What the fronts of searches are worth at equal seconds, and whether one front dominates another."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isinf

from benchmarks.searching.measures import Fronts, Point, Worth
from search.pareto import Box, hypervolume, pareto


@dataclass(frozen=True)
class Told:
    """A told trial.

    Attributes:
        accuracy: on validation; None where it failed, or where a race stopped it: it is on no front.
        rung: its last; 0 is without training.
        seconds: its own; none where its score was known.
        artifact: hash of its packed file, where that was kept.
        test: accuracy on the test split, where it was on the front at any time.
    """

    trial: int
    bytes: int
    accuracy: float | None
    rung: int
    seconds: float
    artifact: str | None = None
    test: float | None = None


@dataclass(frozen=True)
class Run:
    """One search: its trials as they were told, CPU seconds of preparation, and where its fronts are measured."""

    told: tuple[Told, ...]
    preparation: float
    box: Box
    box5: Box
    test_box5: Box

    @property
    def seconds(self) -> float:
        """Of scoring all trials."""
        return sum(one.seconds for one in self.told)


def members_of(told: Sequence[Told]) -> list[Told]:
    """The front, sorted by bytes."""
    points = [Point(one.trial, one.bytes, one.accuracy) for one in told if one.accuracy is not None]
    by_trial = {one.trial: one for one in told}
    return [by_trial[point.trial] for point in pareto(points)]


def within(told: Sequence[Told], seconds: float) -> Sequence[Told]:
    """The trials that were told by the time at which scoring had taken so many seconds."""
    return told[: bisect_right(list(accumulate(one.seconds for one in told)), seconds + 1e-9)]


def fronts(told: Sequence[Told]) -> Fronts:
    """The front on validation, and the same members on the test split."""
    members = members_of(told)
    return Fronts(
        tuple(Point(one.trial, one.bytes, one.accuracy) for one in members if one.accuracy is not None),
        tuple(Point(one.trial, one.bytes, one.test) for one in members if one.test is not None),
    )


def worth(run: Run, seconds: float) -> Worth:
    """What a search's front was worth after so many seconds."""
    found = fronts(within(run.told, seconds))
    return Worth(
        hypervolume(found.validation, run.box),
        hypervolume(found.validation, run.box5),
        hypervolume(found.test, run.box),
        hypervolume(found.test, run.test_box5),
        len(found.validation),
    )


@dataclass(frozen=True)
class Dominance:
    """How one front stands to another one.

    Attributes:
        share: of the other front's points, those that a point of ours dominates or equals; 1 where it has none.
        shortfall: the most accuracy by which ours is below a point of the other one at its bytes, 0 where it never is;
            None where it has nothing as small. Where fronts are steep it is large for a few bytes.
        extra: the most bytes that ours needs beyond a point of the other one for its accuracy, as a share of that
            point's, 0 where it needs none; None where it does not reach it.
    """

    share: float
    shortfall: float | None
    extra: float | None


def dominance(ours: Sequence[Point], theirs: Sequence[Point]) -> Dominance:
    """Whether our points dominate or equal theirs everywhere, and by how much they do not."""
    if not theirs:
        return Dominance(1.0, 0.0, 0.0)
    gaps, extras = list[float](), list[float]()
    for point in theirs:
        reached = [one.accuracy for one in ours if one.bytes <= point.bytes]
        needed = [one.bytes for one in ours if one.accuracy >= point.accuracy]
        gaps.append(max(0.0, point.accuracy - max(reached)) if reached else inf)
        extras.append(max(0.0, min(needed) / point.bytes - 1) if needed else inf)
    share = sum(gap == 0 for gap in gaps) / len(gaps)
    return Dominance(share, _finite(max(gaps)), _finite(max(extras)))


def _finite(number: float) -> float | None:
    return None if isinf(number) else number
