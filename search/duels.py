"""What a search found against the uniform policies, on validation and on the test split, and in plain sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.pareto import ROUNDING

if TYPE_CHECKING:
    from search.front import Front, Point
    from search.storage.reading import Candidate

UNIFORM_DROP = 0.03  # uniform policies that lose more are nothing to be proud of beating
NEAR = f"within {UNIFORM_DROP * 100:.0f} points of the float model"


@dataclass(frozen=True)
class Duel:
    """A uniform policy, and the smallest candidate of fewer bytes and no less accuracy, None if there is none."""

    uniform: "Point"
    by: "Candidate | None"


def beaten_uniform(front: "Front", drop: float = UNIFORM_DROP) -> list[Duel]:
    """What the search found against each uniform policy that loses at most `drop` of the float model's accuracy.

    They are compared on the rung that the uniform policy reached: a candidate that was trained for longer is taken
    as it was on that rung, one that was trained for less as it is. A rung on which a candidate was stopped does not
    count: its accuracy there is an estimate.
    """
    near = [one for one in front.uniform if one.accuracy >= front.float.accuracy - drop - ROUNDING]
    others = [one for one in front.complete if one.origin != "uniform"]
    by_rung = {rung: _on_rung(others, rung) for rung in {one.rung for one in near}}
    duels = []
    for uniform in near:
        ranked = by_rung[uniform.rung]
        better = (one for size, accuracy, one in ranked if size < uniform.bytes and accuracy >= uniform.accuracy)
        duels.append(Duel(uniform, next(better, None)))
    return duels


def _on_rung(candidates: "Sequence[Candidate]", rung: int) -> "list[tuple[int, float, Candidate]]":
    """What candidates were on the last rung up to this one that they were scored on in full: bytes, accuracy.

    They are sorted by bytes and number; left out are those without such a rung.
    """
    found = []
    for one in candidates:
        last = next((on for on in reversed(one.full) if on.rung <= rung), None)
        if last is not None:
            found.append((last.bytes, last.accuracy, one))
    return sorted(found, key=lambda each: (each[0], each[2].trial))


def unbeaten_on_test(front: "Front") -> "list[Point] | None":
    """Of the same uniform policies those that no member of the front matches on the test split in fewer bytes.

    Members that are uniform policies themselves do not count. None as long as these were not all scored there.
    """
    uniform = [duel.uniform for duel in front.duels]
    if not front.points or any(point.test_accuracy is None for point in (*uniform, *front.points)):
        return None
    found = [point for point in front.points if point.origin != "uniform"]
    return [one for one in uniform if not any(_matches(point, one) for point in found)]


def _matches(point: "Point", uniform: "Point") -> bool:
    theirs, mine = uniform.test_accuracy, point.test_accuracy
    return theirs is not None and mine is not None and point.bytes < uniform.bytes and mine >= theirs


def sentences(front: "Front") -> Iterator[str]:
    """What to know of a front, in up to three sentences: the uniform policies on validation and on test, and noise."""
    yield beaten_sentence(front)
    unbeaten, duels = unbeaten_on_test(front), front.duels
    if duels and unbeaten:
        yield f"on the test split no smaller member of the front is as accurate as {_named(unbeaten)}"
    elif duels and unbeaten is not None:
        yield "on the test split each of them has a smaller member of the front that is at least as accurate"
    if front.compared:
        yield _noise_sentence(front)


def beaten_sentence(front: "Front") -> str:
    """Whether the search beat the uniform policies on validation, in one sentence."""
    duels = front.duels
    if not duels:
        return f"no uniform policy is {NEAR}"
    unbeaten = [duel.uniform for duel in duels if duel.by is None]
    if unbeaten:
        beaten = len(duels) - len(unbeaten)
        return f"not beaten: {_named(unbeaten)}; {beaten} of {len(duels)} uniform policies {NEAR} are"
    return (
        f"every uniform policy {NEAR} is beaten ({len(duels)} of {len(duels)}): for each there is a smaller candidate, "
        "no less accurate on the same rung"
    )


def _named(points: "Sequence[Point]") -> str:
    return ", ".join(f"uniform {point.label} (trial {point.trial})" for point in points)


def _noise_sentence(front: "Front") -> str:
    if any(point.test_accuracy_ci95 is None for point in front.points):
        return "the metric gives no outcome per sample: which members differ by more than noise is not known"
    marked = sum(point.within_noise_of is not None for point in front.points)
    if not marked:
        return "every member is more accurate than each smaller one on the test split, beyond noise (paired, 95 %)"
    return (
        f"within noise (~): {marked} of {len(front.points)} members are not shown to be more accurate on the test "
        "split than the smaller one named (paired, 95 %)"
    )
