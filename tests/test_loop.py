"""Whole searches of a tiny workload: the same trials whatever happens, and a study that others can read."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from objectives.racing import typical_loss
from search.config_sections import BudgetConfig, DistillationConfig, SamplerConfig, SpaceConfig
from search.loop import launch
from search.pareto import pareto
from tests import tiny as workloads
from tests.postgres import fresh_database
from tests.searches import STUDY, TRIALS, Row, attrs_of, outcomes_of, rows_of, tiny, trials_of, untell, url_of

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(undisturbed: Path) -> list[Row]:
    return rows_of(undisturbed)


def same_study(one: Path, other: Path) -> bool:
    """All attributes except those that only say where files are, and how many trials there shall be."""
    attrs = [{k: v for k, v in attrs_of(folder).items() if k not in ("cache", "config")} for folder in (one, other)]
    return attrs[0] == attrs[1]


class TestTrials:
    def test_all_trials_are_finished_and_numbered(self, whole: list[Row]) -> None:
        assert [row.number for row in whole] == list(range(TRIALS))
        assert {row.state for row in whole} == {"COMPLETE"}
        assert [row.attrs["origin"] for row in whole] == ["uniform"] * 3 + ["predicted"] * 4 + ["sampler"] * 17

    def test_values_are_those_of_the_last_rung(self, whole: list[Row]) -> None:
        for row in whole:
            last = row.rungs[-1]
            assert row.values == (last["accuracy"], float(last["bytes"]))
            assert (row.attrs["rung"], row.attrs["macs"]) == (last["rung"], last["macs"])
            assert [rung["rung"] for rung in row.rungs] == list(range(len(row.rungs)))
        assert {row.attrs["rung"] for row in whole} >= {0, 2}  # some were promoted, some were not

    def test_uniform_policies_go_all_the_way_and_are_kept(self, whole: list[Row]) -> None:
        assert all(row.attrs["rung"] == 2 and row.attrs["artifact"] for row in whole[:3])

    def test_the_sampler_bred_from_the_first_candidates(self, whole: list[Row]) -> None:
        generations = [row.system_attrs["NSGAIISampler:generation"] for row in whole]
        assert generations[:7] == [0] * 7
        assert max(generations) >= 2

    def test_the_front_and_the_uniform_policies_have_files_and_test_scores(
        self, undisturbed: Path, whole: list[Row]
    ) -> None:
        result = launch(tiny(undisturbed))  # nothing is left to do
        points = [*result.front.points, *result.front.uniform]
        for point in points:
            file = undisturbed / "cache" / "artifacts" / f"{point.artifact}.safetensors"
            assert file.stat().st_size == point.bytes
            assert hashlib.sha256(file.read_bytes()).hexdigest() == point.artifact
            assert point.test_accuracy is not None
        assert {str(point.trial) for point in points} == set(attrs_of(undisturbed)["test"])
        assert rows_of(undisturbed) == whole

    def test_optuna_finds_the_same_front(self, undisturbed: Path) -> None:
        study = optuna.load_study(study_name=STUDY, storage=url_of(undisturbed))
        ours = [(point.accuracy, float(point.bytes)) for point in launch(tiny(undisturbed)).front.points]
        assert {tuple(trial.values) for trial in study.best_trials} == set(ours)
        assert study.metric_names == ["accuracy", "bytes"]
        assert len(study.trials) == TRIALS

    def test_the_study_says_what_it_is_about(self, undisturbed: Path) -> None:
        attrs = attrs_of(undisturbed)
        assert attrs["workload"]["entry"] == "tests.tiny:workload"
        assert attrs["config"]["budget"]["trials"] == TRIALS
        assert "storage" not in attrs["config"]
        assert attrs["float"]["accuracy"] > workloads.TOO_WRONG
        assert {"slimfront", "torch", "optuna", "ray", "numpy", "python"} == set(attrs["versions"])
        assert attrs["smallest_bytes"] <= min(row.rungs[0]["bytes"] for row in rows_of(undisturbed))


class TestRaces:
    def test_some_evaluations_are_stopped(self, whole: list[Row]) -> None:
        stopped = [row for row in whole if row.attrs.get("stopped")]
        assert 3 <= len(stopped) < TRIALS - 7
        assert all(row.attrs["origin"] != "uniform" for row in stopped)
        for row in stopped:
            last = row.rungs[-1]
            assert last["samples"] == row.attrs["samples"] < 150
            assert last["samples"] % 25 == 0
            assert (row.state, row.attrs["artifact"]) == ("COMPLETE", None)
            low, high = row.attrs["ci95"]
            assert low <= high
            assert all(rung["samples"] == 150 for rung in row.rungs[:-1])

    def test_all_others_are_evaluated_in_full(self, whole: list[Row]) -> None:
        full = [row for row in whole if not row.attrs.get("stopped")]
        assert all(rung["samples"] == 150 for row in full for rung in row.rungs)
        assert all("stopped" not in row.attrs for row in full)

    def test_what_was_stopped_is_beaten_by_what_was_told_before(self, whole: list[Row]) -> None:
        for row in whole:
            if row.attrs.get("stopped"):
                seen = [one.values for one in whole[: row.number - 3] if not one.attrs.get("stopped")]
                assert any(a > row.values[0] and size <= row.values[1] for a, size in seen)

    def test_nothing_that_was_stopped_is_on_the_front(self, undisturbed: Path, whole: list[Row]) -> None:
        front = {point.trial for point in launch(tiny(undisturbed)).front.points}
        assert front
        assert not front & {row.number for row in whole if row.attrs.get("stopped")}

    def test_work_is_counted(self, whole: list[Row]) -> None:
        for row in whole:
            if "repeat_of" not in row.attrs:
                assert row.attrs["forwards"] == sum(rung["forwards"] for rung in row.rungs)
                assert row.attrs["backwards"] == sum(rung["backwards"] for rung in row.rungs)
                assert row.attrs["backwards"] == 32 * {0: 0, 1: 6, 2: 18}[row.attrs["rung"]]
                assert row.attrs["validation_loss"] == row.rungs[-1]["validation_loss"] >= 0

    def test_outcomes_are_kept_of_some_that_were_seen_in_full(self, undisturbed: Path, whole: list[Row]) -> None:
        kept = outcomes_of(undisturbed)
        assert kept
        for (number, rung), (values, losses) in kept.items():
            assert whole[number].rungs[rung]["samples"] == 150
            assert np.frombuffer(values, np.float32).mean() == pytest.approx(whole[number].rungs[rung]["accuracy"])
            loss = typical_loss(np.frombuffer(losses, np.float32))  # of losses rounded to float16
            assert loss == pytest.approx(whole[number].rungs[rung]["validation_loss"], rel=1e-2)

    def test_without_races_all_is_seen_and_nothing_kept(self, tmp_path: Path, whole: list[Row]) -> None:
        launch(tiny(tmp_path, racing=None))
        rows = rows_of(tmp_path)
        assert all(rung["samples"] == 150 for row in rows for rung in row.rungs)
        assert outcomes_of(tmp_path) == {}
        assert [row.rungs[0] for row in rows[:3]] == [row.rungs[0] for row in whole[:3]]
        spent = [sum(rung["forwards"] for row in found for rung in row.rungs) for found in (rows, whole)]
        assert spent[1] < spent[0]


class TestTheSameAgain:
    def test_another_run(self, tmp_path: Path, undisturbed: Path, whole: list[Row]) -> None:
        launch(tiny(tmp_path))
        assert rows_of(tmp_path) == whole
        assert same_study(tmp_path, undisturbed)

    @pytest.mark.parametrize(
        "steps", [pytest.param((10,), marks=slow), (1, 2, 3, 7, 8), pytest.param((20,), marks=slow)]
    )
    def test_in_several_launches(
        self, tmp_path: Path, undisturbed: Path, whole: list[Row], steps: Sequence[int]
    ) -> None:
        for trials in steps:
            assert len(launch(tiny(tmp_path, trials)).front.complete) == trials
            assert rows_of(tmp_path) == whole[:trials]
        launch(tiny(tmp_path))
        assert rows_of(tmp_path) == whole
        assert outcomes_of(tmp_path) == outcomes_of(undisturbed)
        assert {**attrs_of(tmp_path)["test"], **attrs_of(undisturbed)["test"]} == attrs_of(tmp_path)["test"]

    @pytest.mark.parametrize("left", [pytest.param(1, marks=slow), 3, pytest.param(4, marks=slow)])
    def test_with_trials_that_were_asked_and_not_told(
        self, tmp_path: Path, undisturbed: Path, whole: list[Row], left: int
    ) -> None:
        """A driver that is killed leaves up to a window of them."""
        launch(tiny(tmp_path, 12))
        untell(tmp_path, left)
        assert [row.state for row in rows_of(tmp_path)] == ["COMPLETE"] * (12 - left) + ["RUNNING"] * left
        launch(tiny(tmp_path, 12))
        assert rows_of(tmp_path) == whole[:12]
        launch(tiny(tmp_path))
        assert rows_of(tmp_path) == whole
        assert outcomes_of(tmp_path) == outcomes_of(undisturbed)

    def test_fewer_trials_than_there_are_is_no_work(self, tmp_path: Path, whole: list[Row]) -> None:
        launch(tiny(tmp_path, 6))
        assert launch(tiny(tmp_path, 2)).interrupted is False
        assert rows_of(tmp_path) == whole[:6]

    def test_time_that_is_up_leaves_a_beginning(self, tmp_path: Path, whole: list[Row]) -> None:
        budget = BudgetConfig(trials=TRIALS, timeout=0.05)
        result = launch(tiny(tmp_path, budget=budget))
        rows = rows_of(tmp_path)
        told = [row for row in rows if row.state != "RUNNING"]
        assert 0 < len(told) < TRIALS
        assert not result.interrupted
        assert told == whole[: len(told)]
        assert len(rows) <= len(told) + 4
        launch(tiny(tmp_path))
        assert rows_of(tmp_path) == whole

    @pytest.mark.parametrize(
        "sampler",
        [
            "front",
            "tpe",
            *(pytest.param(name, marks=slow) for name in ("random", "optuna.samplers.NSGAIIISampler")),
        ],
    )
    def test_with_another_sampler(self, tmp_path: Path, sampler: str) -> None:
        settings = SamplerConfig(name=sampler, uniform=2, predicted=2)
        for folder, budgets in ((tmp_path / "a", [16]), (tmp_path / "b", [7, 16])):
            folder.mkdir()
            for trials in budgets:
                launch(tiny(folder, trials, sampler=settings))
        assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")

    def test_in_postgresql(self, tmp_path: Path, undisturbed: Path, whole: list[Row]) -> None:
        url = fresh_database()
        for trials in (9, TRIALS):
            launch(tiny(tmp_path, trials, storage=url))
        assert rows_of(url) == whole
        assert outcomes_of(url) == outcomes_of(undisturbed)
        assert "://" not in str(attrs_of(url))  # where the store is, and its password, are nobody's business

    def test_another_seed_or_window_is_another_search(self, tmp_path: Path, whole: list[Row]) -> None:
        changes: list[dict[str, Any]] = [{"seed": 1}, {"window": 1}]
        for i, change in enumerate(changes):
            (tmp_path / str(i)).mkdir()
            launch(tiny(tmp_path / str(i), **change))
            rows = rows_of(tmp_path / str(i))
            assert [row.attrs["digest"] for row in rows[7:]] != [row.attrs["digest"] for row in whole[7:]]
            assert [row.rungs[0] for row in rows[:3]] == [row.rungs[0] for row in whole[:3]]


class TestWindow:
    def test_never_more_than_the_window_is_asked_and_not_told(self, undisturbed: Path) -> None:
        trials = trials_of(undisturbed)
        for trial in trials[4:]:
            before = trials[trial.number - 4]
            assert trial.datetime_start
            assert before.datetime_complete
            assert trial.datetime_start >= before.datetime_complete

    def test_trials_are_told_in_their_order(self, undisturbed: Path) -> None:
        ended = [trial.datetime_complete for trial in trials_of(undisturbed)]
        assert all(a and b and a <= b for a, b in pairwise(ended))


class TestRepeats:
    @pytest.mark.parametrize("steps", [(), (3,)])
    def test_a_repeated_policy_is_answered_from_memory(self, tmp_path: Path, steps: tuple[int, ...]) -> None:
        few = SpaceConfig(bits=(2, 4), ratios=(0.0,))  # 8 policies, when nothing is drawn from a range
        distillation = DistillationConfig(steps=steps, temperature=(2.0, 2.0), alpha=(0.9, 0.9))
        for budget in (13, 24):
            launch(tiny(tmp_path, budget, space=few, distillation=distillation))
        rows = rows_of(tmp_path)
        first: dict[str, Row] = {}
        for row in rows:
            original = first.setdefault(row.attrs["digest"], row)
            assert row.attrs.get("repeat_of") == (None if original is row else original.number)
            assert (row.values, row.rungs, row.attrs["artifact"]) == (
                original.values,
                original.rungs,
                original.attrs["artifact"],
            )
        assert len(first) <= 8 < len(rows)


class TestFailures:
    def test_a_candidate_that_fails_ends_its_trial_and_the_search_goes_on(self, tmp_path: Path) -> None:
        result = launch(tiny(tmp_path, workload="tests.tiny:picky"))
        rows = rows_of(tmp_path)
        failed = [row for row in rows if row.state == "FAIL"]
        assert 0 < len(failed) < TRIALS == len(rows)
        for row in failed:
            assert row.values == ()
            assert row.attrs["error"].startswith("the metric failed on the validation split: ArithmeticError: only 0.")
        complete = [row for row in rows if row.state == "COMPLETE"]
        assert all(row.values[0] >= workloads.TOO_WRONG and "error" not in row.attrs for row in complete)
        assert result.front.states == {"FAIL": len(failed), "COMPLETE": len(complete)}

    def test_it_is_the_same_when_it_is_resumed(self, tmp_path: Path) -> None:
        for folder, budgets in ((tmp_path / "a", [20]), (tmp_path / "b", [9, 14, 20])):
            folder.mkdir()
            for trials in budgets:
                launch(tiny(folder, trials, workload="tests.tiny:picky"))
        assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


@pytest.mark.parametrize("entry", ["scalar", "regression", "unlabelled"])
def test_other_kinds_of_workloads_are_searched(tmp_path: Path, entry: str) -> None:
    config = tiny(tmp_path, 12, workload=f"tests.tiny:{entry}")
    result = launch(config)
    assert {row.state for row in rows_of(tmp_path)} == {"COMPLETE"}
    assert [one.trial for one in result.front.points] == [one.trial for one in pareto(result.front.complete)]
    assert all(point.test_accuracy is not None for point in result.front.points)
    assert all((point.accuracy_ci95 is None) == (entry == "scalar") for point in result.front.points)
