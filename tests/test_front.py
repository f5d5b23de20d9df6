"""The front of a study in a store: its points, its JSON, what it says of the uniform policies, and what it refuses."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.duels import sentences
from search.front import front
from search.pareto import Box, hypervolume, knee, pareto
from search.plot import plot, table
from search.storage import open_storage
from search.stored import pick_study
from spaces.errors import ConfigError, StudyError
from tests.studies import CONFIG, MADE_UP, MIXED, SPACE, Told, describe, every_point, write_made_up, write_study


@pytest.fixture
def url(tmp_path: Path) -> str:
    return write_made_up(tmp_path)


class TestFrontOfAStore:
    def test_it_has_points_uniform_policies_and_scores(self, url: str) -> None:
        found = front("made-up", url)
        assert [point.trial for point in found.points] == [2, 4, 1, 3]
        assert [point.trial for point in found.complete] == [2, 4, 1, 3, 5, 0]
        assert [(point.trial, point.label) for point in found.uniform] == [(2, "2 bits"), (1, "4 bits"), (0, "8 bits")]
        assert found.points[1].label is None
        assert found.states == {"COMPLETE": 6}
        best = found.points[3]
        assert (best.bytes, best.accuracy, best.accuracy_ci95, best.test_accuracy) == (
            120_000,
            0.97,
            (0.95, 0.99),
            0.96,
        )
        assert (best.macs, best.rung, best.origin, best.artifact) == (1000.0, 0, "predicted", "b" * 64)
        assert found.points[0].test_accuracy is None
        assert [rung["accuracy"] for rung in found.points[1].rungs] == [0.80, 0.95]
        assert found.hypervolume == pytest.approx(hypervolume(found.complete, Box(10_000, 200_000, 0.1, 1.0)))
        assert found.hypervolume5 == pytest.approx(hypervolume(found.complete, Box(10_000, 200_000, 0.93, 0.98)))
        assert 0 < found.hypervolume5 < found.hypervolume < 1

    def test_its_json_has_the_keys_that_the_design_names(self, url: str) -> None:
        document = json.loads(json.dumps(front("made-up", url).document(), allow_nan=False))
        scores = {"bytes", "accuracy", "accuracy_ci95", "test_accuracy", "test_accuracy_ci95", "macs"}
        assert set(document["float"]) == scores
        point = {*scores, "trial", "rung", "rungs", "origin", "within_noise_of", "samples", "stopped"}
        assert all(point <= set(one) for one in document["points"] + document["uniform"])
        assert [one["trial"] for one in document["points"]] == [2, 4, 1, 3]
        assert [one["trial"] for one in document["uniform"]] == [2, 1, 0]
        assert document["study"] == "made-up"
        assert document["reference"] == {
            "hypervolume": {"smallest": 10_000, "largest": 200_000, "worst": 0.1, "best": 1.0},
            "hypervolume5": {"smallest": 10_000, "largest": 200_000, "worst": pytest.approx(0.93), "best": 0.98},
        }
        assert document["knee"] == 3
        assert document["unbeaten_uniform"] == [1]
        assert document["unbeaten_uniform_on_test"] is None  # trial 2 was not scored there
        assert (document["stopped"], document["passes"]) == (0, {"forwards": 0, "backwards": 0})

    @pytest.mark.parametrize("earlier", [False, True], ids=["now", "an earlier version"])
    def test_it_has_intervals_and_marks_on_the_test_split(self, tmp_path: Path, earlier: bool) -> None:
        url = f"sqlite:///{tmp_path}/new.db"

        def write(name: str, marks: dict[str, int | None]) -> None:
            test = {str(trial): {"accuracy": 0.9, "ci95": [0.8, 0.95]} for trial in (1, 2, 3)}
            tested = {"test": {**test, "4": {"accuracy": 0.9, "ci95": None}}, "within_noise": marks}
            attrs, documents = (tested, {}) if earlier else ({}, tested)
            write_study(url, name, describe(CONFIG, **attrs), SPACE, MADE_UP, documents)

        write("new", {"2": None, "4": 2, "1": None, "3": 4})
        found = front("new", url)
        assert [point.within_noise_of for point in found.points] == [None, 2, None, 4]
        assert [point.test_accuracy_ci95 for point in found.points] == [(0.8, 0.95), None, (0.8, 0.95), (0.8, 0.95)]
        assert {point.test_accuracy for point in found.points} == {0.9}
        assert found.compared
        write("changed", {"2": None, "4": 2, "1": None})
        assert not front("changed", url).compared

    def test_without_a_name_it_is_the_only_study(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLIMFRONT_STORAGE", url)
        assert front() == front("made-up", url)
        write_study(url, "other", describe(CONFIG), SPACE, [])
        with pytest.raises(StudyError, match=r"2 studies, name one of them: made-up, other"):
            front()

    def test_a_study_without_finished_trials_has_an_empty_front(self, url: str) -> None:
        write_study(url, "new", describe(CONFIG), SPACE, [])
        empty = front("new", url)
        assert empty.points == empty.uniform == () == empty.complete
        assert (empty.hypervolume, empty.document()["knee"]) == (0, None)
        assert list(sentences(empty)) == ["no uniform policy is within 3 points of the float model"]
        assert empty.document()["unbeaten_uniform_on_test"] is None
        with pytest.raises(ConfigError, match="no finished trial"):
            plot(empty, Path("front.png"))
        assert table(empty).row_count == 1

    def test_wrong_names_stores_and_studies_are_named(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match=r"no study 'yours'; it holds made-up"):
            front("yours", url)
        with pytest.raises(StudyError, match="no study database"):
            front("made-up", f"sqlite:///{tmp_path}/nothing.db")
        optuna.create_study(study_name="theirs", storage=url, directions=["maximize", "minimize"])
        with pytest.raises(
            StudyError, match=r"'theirs' .* was not started by `slimfront launch`.* lacks config, float"
        ):
            front("theirs", url)

    @pytest.mark.parametrize("space", [{"sites": []}, {**SPACE.document(), "students": 3}, [], None])
    def test_a_study_of_an_earlier_version_says_what_to_do(self, url: str, space: object) -> None:
        write_study(url, "old", describe(CONFIG), SPACE, [], {"space": space})
        with pytest.raises(StudyError, match=r"study 'old' was made by an earlier version .*; search again under an"):
            front("old", url)

    def test_an_empty_store_says_how_to_start(self, tmp_path: Path) -> None:
        storage = open_storage(f"sqlite:///{tmp_path}/store.db", create=True)
        try:
            with pytest.raises(StudyError, match=r"holds no study yet: `slimfront launch"):
                pick_study(storage, None)
        finally:
            storage.close()

    def test_a_trial_that_is_not_ours_is_named(self, url: str) -> None:
        study = optuna.load_study(study_name="made-up", storage=url)
        study.add_trial(optuna.trial.create_trial(values=[0.5, 1000.0]))
        with pytest.raises(StudyError, match=r"trial 6 of study 'made-up' has no 'origin'"):
            front("made-up", url)

    def test_it_is_found_without_torch_matplotlib_and_plotly(self, url: str) -> None:
        code = (
            "import sys, search.export, search.plot; from search.front import front; print(len(front().points));"
            "sys.exit(', '.join({'torch', 'ray', 'matplotlib', 'plotly', 'sklearn'} & set(sys.modules)) or None)"
        )
        environment = {"SLIMFRONT_STORAGE": url, "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
        )
        assert (done.stdout, done.stderr, done.returncode) == ("4\n", "", 0)


@dataclass(frozen=True)
class Raced(Told):
    """A trial that a race may have stopped."""

    stopped: bool = False
    cost: int = 300

    def attrs(self) -> dict[str, Any]:
        stopped = {"stopped": True, "samples": self.cost // 3} if self.stopped else {}
        made = super().attrs()
        spent = {"forwards": self.cost * len(self.rungs), "backwards": 10 * (len(self.rungs) - 1)}
        return {**made, **stopped, **spent}


def race(draw: random.Random, trials: int) -> list[Raced]:
    """Random candidates, of which those that a smaller one beats are mostly stopped, with an estimate cut below it."""
    told: list[Raced] = []
    for _ in range(trials):
        size = draw.randrange(10_000, 200_000)
        accuracy = min(0.98, 0.5 + size / 400_000 + draw.uniform(-0.3, 0.1))
        threshold = max((one.rungs[-1][0] for one in told if one.rungs[-1][1] <= size), default=0.0)
        if accuracy < threshold and draw.random() < 0.8:
            lucky = min(accuracy + draw.uniform(-0.1, 0.3), threshold - 0.001)  # of the samples seen
            told.append(Raced(MIXED, [(lucky, size)], stopped=True, cost=draw.randrange(100)))
        else:
            told.append(Raced(MIXED, [(accuracy, size)], cost=300))
    return told


class TestStoppedTrials:
    @pytest.mark.parametrize("seed", range(4))
    def test_they_change_neither_the_front_nor_its_knee(self, tmp_path: Path, seed: int) -> None:
        url, told = f"sqlite:///{tmp_path}/raced.db", race(random.Random(seed), 40)
        write_study(url, "raced", describe(CONFIG), SPACE, told)
        found = front("raced", url)
        full = [point for point in found.complete if not point.stopped]
        assert 5 < len(full) < 35
        assert len(found.complete) == 40
        best = pareto(full)
        assert [one.trial for one in found.points] == [one.trial for one in best]
        assert found.hypervolume == hypervolume(full, found.reference)
        deployed = [point for point in best if point.accuracy >= 0.93]
        assert found.knee is not None
        assert found.knee.trial == knee(deployed or best).trial
        document = found.document()
        assert document["stopped"] == 40 - len(full)
        assert document["passes"] == {"forwards": sum(one.cost for one in told), "backwards": 0}
        assert document["states"] == {"COMPLETE": 40}
        for point in every_point(url):
            assert point.samples == (told[point.trial].cost // 3 if point.stopped else None)

    def test_a_repeated_policy_costs_nothing(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/repeated.db"
        told = [Raced(MIXED, [(0.8, 1000), (0.9, 1100)]), Repeated(MIXED, [(0.8, 1000), (0.9, 1100)])]
        write_study(url, "repeated", describe(CONFIG), SPACE, told)
        assert front("repeated", url).passes == {"forwards": 600, "backwards": 10}


class Repeated(Raced):
    """The same policy again."""

    def attrs(self) -> dict[str, Any]:
        return {**super().attrs(), "repeat_of": 0}
