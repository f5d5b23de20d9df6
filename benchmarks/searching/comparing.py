"""Runs of several searchers side by side: means and spreads at checkpoints, and seed by seed against ours."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.searching.measures import Worth, front_of, prefix, saved_bytes, within, worth_of
from benchmarks.searching.runs import Step
from benchmarks.searching.samplers import OURS, RACING, base_of
from benchmarks.searching.setting import Setting

CHECKPOINTS = (60, 100, 300, 600)
MEASURES = ("hypervolume", "hypervolume5", "test_hypervolume", "test_hypervolume5")
AT_LEAST = 1e-12  # of differences: less is rounding
HEAD_START = ((60, 600), (100, 300), (100, 600))  # evaluations of ours against more of the others

Runs = Mapping[str, Mapping[int, Sequence[Step]]]  # by searcher and seed


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (0 for one number)."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Row:
    """A searcher after so many evaluations, over seeds.

    Attributes:
        forwards: sample-forwards, with those of the layer database and the sensitivities it was given.
        seconds: of asking and evaluating.
        stopped: candidates that races stopped, of all seeds; `wrongly` those that would have been on the full front.
    """

    searcher: str
    evaluations: int
    seeds: int
    measures: Mapping[str, Spread]
    forwards: Spread
    seconds: Spread
    stopped: int
    wrongly: int


@dataclass(frozen=True)
class Pair:
    """Ours against another searcher, seed by seed.

    Attributes:
        at: what was made equal: "evaluations", or "forwards": the other one's front is the last that it had within
            the sample-forwards that ours took.
        differences: by measure, for each seed ours less theirs.
        saved: by split, for each seed the mean log of their bytes over ours at equal accuracy; None where the fronts
            have no accuracy in common.
        wins: by measure, on how many seeds ours is ahead; `ties` likewise.
    """

    ours: str
    theirs: str
    evaluations: int
    their_evaluations: int
    at: str
    seeds: Sequence[int]
    differences: Mapping[str, Sequence[float]]
    saved: Mapping[str, Sequence[float | None]]
    wins: Mapping[str, int]
    ties: Mapping[str, int]


def checkpoints(evaluations: int) -> list[int]:
    """Those that lie within so many evaluations, and these."""
    return sorted({*(one for one in CHECKPOINTS if one <= evaluations), evaluations})


def before(name: str, setting: Setting) -> float:
    """Sample-forwards that were spent before a searcher's first step: its share in what all prepare."""
    own, with_first, _ = base_of(name)
    predicts = with_first or own in ("programme", "spdy", "evopress")
    return setting.database_forwards + (setting.sensitivity_forwards if predicts else 0.0)


def rows_of(runs: Runs, setting: Setting, evaluations: int) -> list[Row]:
    """A row for each searcher and checkpoint."""
    return [_row(name, by_seed, setting, count) for name, by_seed in runs.items() for count in checkpoints(evaluations)]


def _row(name: str, by_seed: Mapping[int, Sequence[Step]], setting: Setting, count: int) -> Row:
    parts = [prefix(steps, count) for steps in by_seed.values()]
    worths = [worth_of(front_of(part), setting) for part in parts]
    spent = before(name, setting)
    return Row(
        searcher=name,
        evaluations=count,
        seeds=len(parts),
        measures={one: _spread([getattr(worth, one) for worth in worths]) for one in MEASURES},
        forwards=_spread([spent + sum(step.forwards for step in part) for part in parts]),
        seconds=_spread([sum(step.seconds + step.asked_seconds for step in part) for part in parts]),
        stopped=sum(step.stopped for part in parts for step in part),
        wrongly=sum(step.wrongly for part in parts for step in part),
    )


def _spread(numbers: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0)


def pairs_of(runs: Runs, setting: Setting, evaluations: int) -> list[Pair]:
    """Ours, with and without racing, against every other searcher at equal evaluations and at equal sample-forwards.

    Also at fewer evaluations than the others have, and with racing against without.
    """
    found = []
    for ours in (name for name in runs if base_of(name)[0] == OURS):
        for theirs in runs:
            if base_of(theirs)[0] == OURS and (theirs.endswith(RACING) or not ours.endswith(RACING)):
                continue
            for count in checkpoints(evaluations):
                found.append(_pair(runs, setting, ours, theirs, count, count, "evaluations"))
                found.append(_pair(runs, setting, ours, theirs, count, evaluations, "forwards"))
            found += [
                _pair(runs, setting, ours, theirs, fewer, more, "evaluations")
                for fewer, more in HEAD_START
                if more <= evaluations
            ]
    return found


def _pair(runs: Runs, setting: Setting, ours: str, theirs: str, count: int, their_count: int, at: str) -> Pair:
    seeds = sorted(runs[ours].keys() & runs[theirs].keys())
    differences: dict[str, list[float]] = {one: [] for one in MEASURES}
    saved: dict[str, list[float | None]] = {"validation": [], "test": []}
    for seed in seeds:
        mine, other = prefix(runs[ours][seed], count), prefix(runs[theirs][seed], their_count)
        if at == "forwards":
            spent = before(ours, setting) + sum(step.forwards for step in mine)
            other = within(other, spent - before(theirs, setting))
        fronts = front_of(mine), front_of(other)
        worths: tuple[Worth, Worth] = (worth_of(fronts[0], setting), worth_of(fronts[1], setting))
        for one in MEASURES:
            differences[one].append(getattr(worths[0], one) - getattr(worths[1], one))
        for name, box in (("validation", setting.box5), ("test", setting.test_box5)):
            saved[name].append(saved_bytes(getattr(fronts[0], name), getattr(fronts[1], name), box.worst, box.best))
    wins = {one: sum(delta > AT_LEAST for delta in own) for one, own in differences.items()}
    ties = {one: sum(abs(delta) <= AT_LEAST for delta in own) for one, own in differences.items()}
    return Pair(ours, theirs, count, their_count, at, seeds, differences, saved, wins, ties)


def document(rows: Sequence[Row], pairs: Sequence[Pair]) -> dict[str, object]:
    """Rows and pairs as JSON values."""
    return {"rows": [asdict(row) for row in rows], "pairs": [asdict(pair) for pair in pairs]}
