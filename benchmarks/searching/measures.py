"""What the front of a replayed search is worth, after how many evaluations, sample-forwards and seconds."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log

from benchmarks.searching.runs import Step
from benchmarks.searching.setting import Setting
from search.pareto import hypervolume, pareto


@dataclass(frozen=True)
class Point:
    """A candidate: its number, bytes and accuracy on one split."""

    trial: int
    bytes: int
    accuracy: float


@dataclass(frozen=True)
class Worth:
    """What a front is worth; it is chosen on validation, and its members are measured on the test split, too.

    Attributes:
        hypervolume: from chance to 1, as `test_hypervolume`.
        hypervolume5: within 5 points of the float model, as `test_hypervolume5`.
        members: how many.
    """

    hypervolume: float
    hypervolume5: float
    test_hypervolume: float
    test_hypervolume5: float
    members: int


@dataclass(frozen=True)
class Fronts:
    """A front's members with their accuracies on validation and, the same members, on the test split."""

    validation: tuple[Point, ...]
    test: tuple[Point, ...]


def front_of(steps: Sequence[Step]) -> Fronts:
    """The front of the candidates that were validated in full."""
    points = [
        Point(number, step.bytes, step.accuracy)
        for number, step in enumerate(steps)
        if step.accuracy is not None and not step.stopped
    ]
    members = pareto(points)
    tested = ((one, steps[one.trial].test) for one in members)
    return Fronts(tuple(members), tuple(Point(one.trial, one.bytes, test) for one, test in tested if test is not None))


def worth_of(fronts: Fronts, setting: Setting) -> Worth:
    """What a front is worth in a setting's boxes."""
    return Worth(
        hypervolume(fronts.validation, setting.box),
        hypervolume(fronts.validation, setting.box5),
        hypervolume(fronts.test, setting.test_box),
        hypervolume(fronts.test, setting.test_box5),
        len(fronts.validation),
    )


def saved_bytes(ours: Sequence[Point], theirs: Sequence[Point], worst: float, best: float) -> float | None:
    """Mean of log(their bytes / ours) at equal accuracy: positive where ours needs fewer bytes.

    As in Bjontegaard's delta rate (2001), without a curve through the points: what reaches an accuracy is the smallest
    member that is at least as accurate. The mean is over the accuracies from `worst` up to the highest that both reach
    and at most `best`; None where there are none.
    """
    mine, other = pareto(ours), pareto(theirs)
    if not mine or not other:
        return None
    top = min(mine[-1].accuracy, other[-1].accuracy, best)
    if top <= worst:
        return None
    inner = {one.accuracy for one in (*mine, *other) if worst < one.accuracy < top}
    total, low = 0.0, worst
    for high in sorted({*inner, top}):  # on (low, high] what reaches an accuracy does not change
        total += (high - low) * log(_reaching(other, high) / _reaching(mine, high))
        low = high
    return total / (top - worst)


def _reaching(front: Sequence[Point], accuracy: float) -> int:
    return next(one.bytes for one in front if one.accuracy >= accuracy)


def prefix(steps: Sequence[Step], evaluations: float) -> Sequence[Step]:
    """The steps that count as at most so many evaluations."""
    return steps[: bisect_right(list(accumulate(step.evaluations for step in steps)), evaluations + 1e-9)]


def within(steps: Sequence[Step], forwards: float) -> Sequence[Step]:
    """The steps that took at most so many sample-forwards together."""
    return steps[: bisect_right(list(accumulate(step.forwards for step in steps)), forwards)]


@dataclass(frozen=True)
class Moment:
    """A point of an anytime curve: what was spent up to a step, and what the front is worth then."""

    evaluations: float
    forwards: float
    seconds: float
    worth: Worth


def curve(steps: Sequence[Step], setting: Setting, before: float, every: int = 5) -> list[Moment]:
    """An anytime curve.

    Args:
        steps: of a run.
        setting: of the workload.
        before: sample-forwards that were spent before the first step.
        every: so many steps there is a moment; also after the first and the last.
    """
    moments, evaluations, forwards, seconds = [], 0.0, before, 0.0
    for number, step in enumerate(steps, start=1):
        evaluations += step.evaluations
        forwards += step.forwards
        seconds += step.asked_seconds + step.seconds
        if number % every == 0 or number in (1, len(steps)):
            moments.append(Moment(evaluations, forwards, seconds, worth_of(front_of(steps[:number]), setting)))
    return moments
