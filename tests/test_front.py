"""The front of a study in a store: its points, its JSON, what it says of the uniform policies, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from search.front import beaten_sentence, beaten_uniform, front, pick_study
from search.pareto import Box, hypervolume
from search.plot import plot, table
from search.storage import open_storage
from spaces.errors import ConfigError, StudyError
from tests.studies import CONFIG, SPACE, describe, write_made_up, write_study


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
        assert set(document["float"]) == {"bytes", "accuracy", "accuracy_ci95", "test_accuracy", "macs"}
        point = {"trial", "bytes", "accuracy", "accuracy_ci95", "test_accuracy", "macs", "rung", "rungs", "origin"}
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

    def test_it_says_which_uniform_policies_the_search_did_not_beat(self, url: str) -> None:
        found = front("made-up", url)
        assert [(duel.uniform.trial, duel.by and duel.by.trial) for duel in beaten_uniform(found)] == [
            (1, None),
            (0, 3),
        ]
        assert beaten_sentence(found).startswith("not beaten: uniform 4 bits (trial 1); 1 of 2")
        easy = replace(found, uniform=found.uniform[2:])
        assert beaten_sentence(easy).startswith("every uniform policy within 3 points of the float model is beaten")
        assert beaten_sentence(replace(found, uniform=())).startswith("no uniform policy is within 3 points")

    def test_a_candidate_that_was_trained_longer_is_compared_as_it_was_on_the_rung(self, url: str) -> None:
        found = front("made-up", url)
        one_shot = replace(found.uniform[1], rung=0, accuracy=0.96)  # trial 4 has 0.80 there, not 0.95
        trained = replace(found.points[1], accuracy=0.97, rungs=({**found.points[1].rungs[0]}, {"rung": 1}))
        duels = beaten_uniform(replace(found, uniform=(one_shot,), complete=(trained,)))
        assert duels[0].by is None

    def test_without_a_name_it_is_the_only_study(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLIMFRONT_STORAGE", url)
        assert front() == front("made-up", url)
        write_study(url, "other", describe(CONFIG, SPACE), SPACE, [])
        with pytest.raises(StudyError, match=r"2 studies, name one of them: made-up, other"):
            front()

    def test_a_study_without_finished_trials_has_an_empty_front(self, url: str) -> None:
        write_study(url, "new", describe(CONFIG, SPACE), SPACE, [])
        empty = front("new", url)
        assert empty.points == empty.uniform == () == empty.complete
        assert (empty.hypervolume, empty.document()["knee"]) == (0, None)
        assert beaten_sentence(empty).startswith("no uniform policy")
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
        write_study(url, "old", describe(CONFIG, SPACE) | {"space": space}, SPACE, [])
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
        with pytest.raises(StudyError, match=r"trial 6 of study 'made-up' has no 'ci95'"):
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
