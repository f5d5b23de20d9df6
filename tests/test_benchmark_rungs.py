"""The benchmark of rungs: what is compared at equal seconds on made-up searches, and real ones that go on later."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from benchmarks.rungs import ARMS, MEASURES, ONE_SHOT, RUNGS, compared, curve, main, search
from benchmarks.searching.equal_seconds import Dominance, Run, Told, dominance, fronts, members_of, within, worth
from benchmarks.searching.measures import Point
from search.config import load_config
from search.pareto import Box

BOX = Box(100, 10_000, 0.0, 1.0)
CONFIG = """
study: tiny
workload: tests.tiny:workload
space: {bits: [2, 4, 6], ratios: [0.0, 0.6, 0.9]}
distillation: {steps: [2]}
sampler: {uniform: 2, predicted: 3, samples: 0}
chunk: 32
"""


def told(*trials: tuple[int, float | None, float], rung: int = 0) -> tuple[Told, ...]:
    """Trials of (bytes, accuracy, seconds), whose test accuracy is 0.1 lower."""
    return tuple(
        Told(number, size, accuracy, rung, seconds, None, None if accuracy is None else accuracy - 0.1)
        for number, (size, accuracy, seconds) in enumerate(trials)
    )


def run(*trials: tuple[int, float | None, float], rung: int = 0) -> Run:
    return Run(told(*trials, rung=rung), 1.0, BOX, BOX, BOX)


def points(*pairs: tuple[int, float]) -> list[Point]:
    return [Point(number, size, accuracy) for number, (size, accuracy) in enumerate(pairs)]


def test_within_are_the_trials_told_by_then_in_their_order() -> None:
    trials = told((500, 0.5, 2.0), (400, 0.4, 0.0), (300, 0.3, 3.0), (200, 0.2, 1.0))
    counts = [len(within(trials, seconds)) for seconds in (0.0, 1.9, 2.0, 4.9, 5.0, 5.5, 6.0, 99.0)]
    assert counts == [0, 0, 2, 2, 3, 3, 4, 4]  # what was answered from memory took nothing
    assert not within((), 1.0)


def test_the_front_is_chosen_on_validation_and_has_nothing_that_failed_or_was_stopped() -> None:
    trials = told((1000, 0.5, 1.0), (100, None, 1.0), (2000, 0.4, 1.0), (500, 0.3, 1.0))
    assert [one.trial for one in members_of(trials)] == [3, 0]
    trials = (*trials[:3], replace(trials[3], test=0.9))  # better on test, which decides nothing
    found = fronts(trials)
    assert [(one.bytes, one.accuracy) for one in found.validation] == [(500, 0.3), (1000, 0.5)]
    assert [(one.bytes, one.accuracy) for one in found.test] == [(500, 0.9), (1000, 0.4)]


def test_worth_against_the_definition() -> None:
    one = run((1000, 0.5, 1.0), (100, 0.2, 2.0))
    assert worth(one, 0.5).hypervolume == 0
    assert worth(one, 1.0).hypervolume == pytest.approx(0.5 * 0.5)  # half of the decades, half of the accuracies
    both = worth(one, 3.0)
    assert both.hypervolume == pytest.approx(0.2 * 0.5 + 0.5 * 0.5)
    assert both.test_hypervolume5 == pytest.approx(0.1 * 0.5 + 0.4 * 0.5)
    assert both.members == 2


def test_dominance() -> None:
    theirs = points((100, 0.2), (200, 0.5), (400, 0.6))
    assert dominance(theirs, theirs) == Dominance(1.0, 0.0, 0.0)
    assert dominance(points((90, 0.7)), theirs) == Dominance(1.0, 0.0, 0.0)
    some = dominance(points((100, 0.2), (200, 0.4), (220, 0.5), (400, 0.7)), theirs)
    assert some.share == 2 / 3
    assert some.shortfall == pytest.approx(0.1)
    assert some.extra == pytest.approx(0.1)
    assert dominance(points((300, 0.9)), theirs) == Dominance(1 / 3, None, 2.0)  # nothing as small
    assert dominance(points((100, 0.2), (200, 0.5)), theirs).extra is None  # nothing as accurate
    assert dominance([], theirs) == Dominance(0.0, None, None)
    assert dominance([], []) == Dominance(1.0, 0.0, 0.0)


def test_searches_are_compared_when_the_quickest_has_finished_and_at_half_of_it() -> None:
    runs = {
        RUNGS: [run((1000, 0.5, 3.0), (500, 0.6, 3.0), (400, 0.6, 4.0), rung=1)],
        ONE_SHOT: [run((1000, 0.5, 1.0), (400, 0.4, 3.0), (400, 0.7, 4.0), (100, 0.9, 1.0))],
    }
    found = compared(runs)
    mine, other = (found["end"][arm][0] for arm in (RUNGS, ONE_SHOT))
    assert mine["seconds"] == other["seconds"] == 9.0  # of the second one, so that the first has not yet its last
    assert (mine["trials"], other["trials"]) == (2, 4)
    assert (mine["trained"], other["trained"]) == (2, 0)
    assert other["dominated"] == {"share": 0.0, "shortfall": None, "extra": None}
    assert mine["dominated"] == {"share": 1.0, "shortfall": 0.0, "extra": 0.0}
    half = found["half"][ONE_SHOT][0]
    assert (half["seconds"], half["trials"], found["half"][RUNGS][0]["trials"]) == (4.5, 2, 1)
    assert half["dominated"] == {"share": 0.5, "shortfall": None, "extra": 1.5}  # equals one point; has no smaller one
    for name in MEASURES:
        assert other[name] > half[name]


def test_a_curve_ends_with_the_last_trial() -> None:
    one = run(*((1000 - at, at / 10, 0.5) for at in range(7)))
    assert [(moment["trials"], moment["seconds"]) for moment in curve(one)] == [(5, 2.5), (7, 3.5)]
    assert curve(one)[-1]["hypervolume"] == worth(one, 3.5).hypervolume


def test_a_search_goes_on_where_it_ended_until_its_seconds_are_spent(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    url = f"sqlite:///{tmp_path / 'tiny.sqlite'}"
    changes = [f"cache={json.dumps(str(tmp_path / 'cache'))}", "workers=0"]

    def searched(trials: int, seconds: float) -> Run:
        config = load_config(tmp_path / "tiny.yaml", [*changes, f"budget.trials={trials}"], storage=url)
        return search(config, seconds)

    one = searched(6, inf)
    assert len(one.told) == 6
    assert searched(100, one.seconds / 2) == one  # it has taken so long already: not searched again
    more = searched(8, one.seconds * 100)
    assert [replace(each, test=None) for each in more.told[:6]] == [replace(each, test=None) for each in one.told]
    assert len(more.told) == 8
    assert more.preparation == one.preparation
    assert all(each.test is not None for each in fronts_ever(more))


def fronts_ever(one: Run) -> list[Told]:
    return [each for at in range(len(one.told)) for each in members_of(one.told[: at + 1])]


@pytest.mark.slow
def test_it_searches_for_equal_seconds_and_keeps_what_it_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    written = tmp_path / "results" / "tiny.json"
    arguments = ["--workload", str(config), "--seeds", "1", "--trials", "6", "--records", str(tmp_path)]
    main([*arguments, "--json", str(written)])
    first = json.loads(written.read_text())
    assert set(first["curves"]) == set(ARMS)
    last = {arm: curves[0][-1] for arm, curves in first["curves"].items()}
    assert last[RUNGS]["trials"] == 6
    assert all(one["seconds"] >= last[RUNGS]["seconds"] for one in last.values())
    assert all(one["trained"] == 0 for one in first["compared"]["end"][ONE_SHOT])
    capsys.readouterr()
    main([*arguments, "--json", str(written)])
    assert json.loads(written.read_text()) == first  # to the last digit of the seconds: nothing was searched again
    assert "one-shot" in capsys.readouterr().out
