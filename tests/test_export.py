"""From a front to files: what is selected, the policy JSON, and the packed file that is handed out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from compress.files import artifact_path
from search.export import SelectionError, apply, policy_file, policy_files, select, write_policy
from search.front import Front, front
from search.storage import open_storage
from search.stored import pick_study
from spaces.errors import ArtifactError, ConfigError, StudyError
from spaces.policy import DistillationRecord, PolicyFile, read_policy
from tests.studies import DigitsStudy, every_point, score_digits, write_made_up


@pytest.fixture
def found(tmp_path: Path) -> Front:
    return front("made-up", write_made_up(tmp_path), also=[5])  # on the front: trials 2, 4, 1, 3; uniform: 0


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> DigitsStudy:
    return score_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def policies(study: DigitsStudy) -> list[PolicyFile]:
    return policy_files(every_point(study.url), storage=study.url)


class TestSelect:
    @pytest.mark.parametrize(
        ("asked", "trial"),
        [
            ({"max_bytes": 110_000}, 1),
            ({"max_bytes": 100_000}, 1),
            ({"max_bytes": 99_999}, 4),
            ({"max_ratio": 0.125}, 1),
            ({"max_ratio": 0.125, "max_bytes": 70_000}, 4),
            ({"min_accuracy": 0.95}, 4),
            ({"min_accuracy": 0.951}, 1),
            ({"max_drop": 0.03}, 4),
            ({"max_drop": 0.01}, 3),
            ({"max_drop": 0.01, "min_accuracy": 0.5}, 3),
            ({"min_accuracy": 0.5, "max_bytes": 110_000}, 1),
            ({"max_drop": 1, "max_ratio": 1}, 3),
            ({"trial": 5}, 5),
            ({"trial": 2}, 2),
        ],
    )
    def test_bounds_choose_the_most_accurate_or_the_smallest(
        self, found: Front, asked: Mapping[str, Any], trial: int
    ) -> None:
        assert select(found, **asked).trial == trial

    def test_the_knee_is_taken_if_asked_for_or_nothing_is_said(self, found: Front) -> None:
        assert select(found) == select(found, knee=True) == found.knee

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"max_bytes": 49_999}, r"49,999 bytes or fewer: the smallest of all is trial 2 \(50,000 bytes"),
            ({"max_ratio": 0.01}, r"8,000 bytes or fewer: the smallest of all is trial 2"),
            ({"min_accuracy": 0.99}, r"accuracy 0\.9900 or more: the most accurate of all is trial 3 .* 0\.9700\)"),
            (
                {"min_accuracy": 0.96, "max_bytes": 70_000},
                r"70,000 bytes or fewer and accuracy 0\.9600 or more: the most accurate that is small enough is trial "
                r"4 .*; the smallest that is accurate enough is trial 1",
            ),
            (
                {"min_accuracy": 0.99, "max_bytes": 70_000},
                r"more: the most accurate that is small enough is trial 4 .*; the most accurate of all is trial 3",
            ),
            ({"trial": 17}, r"no finished trial 17; the nearest of its 6 finished ones is 5"),
        ],
    )
    def test_where_nothing_is_feasible_the_nearest_is_named(
        self, found: Front, asked: Mapping[str, Any], message: str
    ) -> None:
        with pytest.raises(SelectionError, match=message) as caught:
            select(found, **asked)
        assert caught.value.exit_code == 1

    def test_a_trial_that_the_front_does_not_have_in_full_says_how(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"given 5, .* read it with also=\[5\]"):
            select(front("made-up", write_made_up(tmp_path)), trial=5)

    def test_an_empty_front_has_nothing_to_choose(self, found: Front) -> None:
        empty = replace(found, points=(), uniform=(), also=(), complete=())
        questions: list[dict[str, Any]] = [{}, {"trial": 0}, {"max_bytes": 10**9}]
        for asked in questions:
            with pytest.raises(SelectionError, match=r"no finished trial|none has finished"):
                select(empty, **asked)

    def test_a_trial_that_was_stopped_is_refused(self, found: Front) -> None:
        stopped = replace(found, also=tuple(replace(one, stopped=True) for one in found.also))
        assert select(stopped, trial=1).trial == 1
        with pytest.raises(SelectionError, match="trial 5 was stopped early: its accuracy is an estimate") as caught:
            select(stopped, trial=5)
        assert "export a member of the front" in str(caught.value)

    @pytest.mark.parametrize(
        "asked",
        [
            {"knee": True, "trial": 1},
            {"knee": True, "max_bytes": 1000},
            {"trial": 1, "max_drop": 0.1},
            {"max_bytes": 0},
            {"max_ratio": -0.5},
            {"max_drop": -0.01},
            {"min_accuracy": float("nan")},
        ],
    )
    def test_what_contradicts_itself_is_refused(self, found: Front, asked: Mapping[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"leave out all but one|allowed a number from"):
            select(found, **asked)


class TestPolicyFile:
    def test_it_holds_the_policy_that_was_scored(self, study: DigitsStudy, policies: list[PolicyFile]) -> None:
        for (_, policy), score_, written in zip(study.prepared.first, study.scores, policies, strict=True):
            assert written.policy == policy
            assert written.policy.digest == policy.digest
            assert (written.score.accuracy, written.score.bytes) == (score_.accuracy, score_.bytes)
            assert (written.artifact.bytes, written.artifact.sha256) == (score_.bytes, score_.artifact)
            assert written.score.rung == score_.rung

    def test_it_says_how_it_was_trained_and_where_it_comes_from(self, policies: list[PolicyFile]) -> None:
        records = [policy.distillation for policy in policies[:3]]
        assert [(one.steps, one.ladder) for one in records if one] == [(0, ()), (2, (2,)), (4, (2, 4))]
        assert policies[2].provenance.trial == 2
        assert policies[2].provenance.study == "digits"
        assert policies[2].provenance.versions["slimfront"] == "0.1.0"
        assert policies[2].score.float_bytes > 4 * policies[2].score.bytes
        assert policies[2].score.test_accuracy is not None

    def test_it_is_written_and_read_back(self, policies: list[PolicyFile], tmp_path: Path) -> None:
        for policy in policies:
            write_policy(policy, tmp_path / "new" / "policy.json")
            assert read_policy(tmp_path / "new" / "policy.json") == policy

    def test_a_folder_that_cannot_be_written_is_named(self, policies: list[PolicyFile], tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be written"):
            write_policy(policies[0], tmp_path / "file" / "policy.json")

    def test_steps_are_the_end_of_the_ladder(self) -> None:
        settings = {"temperature": 2.0, "alpha": 0.5, "learning_rate": 0.001, "batch_size": 64}
        for steps, ladder in ((4, ()), (0, (4,)), (2, (4, 2)), (4, (4, 4)), (4, (2,))):
            with pytest.raises(ValidationError, match="must increase and end with it"):
                DistillationRecord.model_validate({**settings, "steps": steps, "ladder": ladder})

    def test_a_trial_of_another_study_is_refused(self, study: DigitsStudy, found: Front) -> None:
        storage = open_storage(study.url, create=False)
        try:
            strange = replace(found.points[0], trial=99)
            with pytest.raises(StudyError, match="trial 99 of study 'digits'"):
                policy_file(storage, pick_study(storage, None), strange)
        finally:
            storage.close()

    def test_a_study_of_an_earlier_version_says_what_to_do(self, study: DigitsStudy, found: Front) -> None:
        storage = open_storage(study.url, create=False)
        try:
            stored = pick_study(storage, None)
            old = replace(stored, id=stored.id + 1)  # which has no documents
            with pytest.raises(StudyError, match="was made by an earlier version of Slimfront"):
                policy_file(storage, old, found.points[0])
        finally:
            storage.close()


class TestApply:
    def test_the_file_is_as_large_as_the_score_says(
        self, study: DigitsStudy, policies: list[PolicyFile], tmp_path: Path
    ) -> None:
        for policy in policies[1:]:
            output = tmp_path / "models" / f"{policy.provenance.trial}.safetensors"
            assert apply(policy, output, cache=study.cache) == output
            assert output.stat().st_size == policy.score.bytes
            assert hashlib.sha256(output.read_bytes()).hexdigest() == policy.artifact.sha256
        assert not [file for file in (tmp_path / "models").iterdir() if file.name.startswith(".")]

    @pytest.mark.parametrize("damage", [lambda blob: blob[:-1], lambda blob: blob[:-1] + bytes([blob[-1] ^ 1])])
    def test_a_damaged_file_is_refused(
        self, damage: Any, study: DigitsStudy, policies: list[PolicyFile], tmp_path: Path
    ) -> None:
        sha256 = str(policies[1].artifact.sha256)
        copy = artifact_path(tmp_path, sha256)
        copy.parent.mkdir()
        copy.write_bytes(damage(artifact_path(study.cache, sha256).read_bytes()))
        with pytest.raises(ArtifactError, match=r"is damaged: .* remove it, and `slimfront apply --retrain`"):
            apply(policies[1], tmp_path / "model.safetensors", cache=tmp_path)
        assert not (tmp_path / "model.safetensors").exists()

    def test_a_missing_file_says_where_else_it_may_be(self, policies: list[PolicyFile], tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"--cache, or `slimfront apply --retrain`"):
            apply(policies[1], tmp_path / "model.safetensors", cache=tmp_path)

    def test_a_file_that_was_not_kept_can_be_made_again(
        self, study: DigitsStudy, policies: list[PolicyFile], tmp_path: Path
    ) -> None:
        assert json.loads(policies[0].text())["artifact"] == {
            "sha256": None,
            "bytes": policies[0].score.bytes,
            "coding": "entropy",
        }
        with pytest.raises(ArtifactError, match=r"trial 0 of study 'digits' was off the front.*--retrain"):
            apply(policies[0], tmp_path / "model.safetensors", cache=study.cache)

    def test_an_output_that_cannot_be_written_is_named(
        self, study: DigitsStudy, policies: list[PolicyFile], tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be written"):
            apply(policies[1], tmp_path / "file" / "model.safetensors", cache=study.cache)
