"""The geometry of fronts in log bytes x accuracy: what is not dominated, how much that dominates, and its knee."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import Protocol, TypeVar

FLAT = 1e-12  # what is above a chord by less is rounding
ROUNDING = 1e-9  # of differences between accuracies


class Scored(Protocol):
    """What has been scored."""

    @property
    def trial(self) -> int:
        """Its number."""

    @property
    def bytes(self) -> int:
        """Size of its file, lower is better."""

    @property
    def accuracy(self) -> float:
        """Its accuracy, higher is better."""


ScoredT = TypeVar("ScoredT", bound=Scored)


@dataclass(frozen=True)
class Box:
    """Where a hypervolume is taken: bytes from smallest to largest, accuracies from worst to best.

    (largest, worst) is the reference point.
    """

    smallest: float
    largest: float
    worst: float
    best: float


def reference_box(smallest_bytes: float, float_bytes: float, chance: float) -> Box:
    """Where the hypervolume of a study is taken: up to a quarter of the float model's bytes, from chance to 1."""
    return Box(smallest_bytes, float_bytes / 4, chance, 1.0)


def pareto(points: Iterable[ScoredT]) -> list[ScoredT]:
    """The points that no other one dominates, sorted by bytes; of equal ones the first trial."""
    found: list[ScoredT] = []
    for point in sorted(points, key=lambda one: (one.bytes, -one.accuracy, one.trial)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def hypervolume(points: Iterable[Scored], box: Box) -> float:
    """The share of a box in log bytes x accuracy that the points dominate, 0..1; 0 for a box without an area.

    Points outside the box are clipped to it: one that is smaller or more accurate counts as if it stood on that
    edge, one that is larger or less accurate dominates nothing of it.
    """
    if box.smallest >= box.largest or box.worst >= box.best:
        return 0.0
    width, height = log(box.largest / box.smallest), box.best - box.worst
    inside = [one for one in pareto(points) if one.bytes < box.largest and one.accuracy > box.worst]
    left = [log(max(one.bytes, box.smallest) / box.smallest) / width for one in inside]
    high = [(min(one.accuracy, box.best) - box.worst) / height for one in inside]
    return sum((end - start) * y for (start, end), y in zip(pairwise([*left, 1.0]), high, strict=True))


def knee(points: Sequence[ScoredT]) -> ScoredT:
    """The point of a front that is farthest above the chord between its ends, in log bytes and accuracy.

    Up to it, bytes buy more accuracy than on average; after it, less (Kneedle, Satopaa et al. 2011, for a concave
    rising curve; why the knee of a front is what is often wanted: Branke et al. 2004). Where no point is above the
    chord it is the most accurate one.

    Args:
        points: a front, sorted by bytes, as `pareto` gives it.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("a front without points has no knee")
    first, last = points[0], points[-1]
    if first.bytes == last.bytes:
        return last
    slope = (last.accuracy - first.accuracy) / log(last.bytes / first.bytes)

    def above(point: ScoredT) -> float:
        return point.accuracy - first.accuracy - slope * log(point.bytes / first.bytes)

    farthest = max(points, key=above)
    return farthest if above(farthest) > FLAT else last
