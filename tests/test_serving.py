"""Packed files in use: they load as the model that was scored, are verified, and can be made again."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from objectives.score import Scorer
from objectives.serving import SHIPPED, load, retrain, verify
from objectives.workload import load_workload
from objectives.workloads import digits
from objectives.workloads.resnet import ResNet
from search.export import apply, policy_files
from search.front import front
from spaces.errors import ArtifactError, ConfigError, WorkloadError
from spaces.policy import PolicyFile
from tests.studies import DIGITS, DigitsStudy, score_digits

OTHER = """
import torch
from torch import nn
from slimfront import Workload
from objectives.workloads import digits

def workload():
    data = (torch.arange(64.0).reshape(16, 4) / 64, torch.arange(16) % 2)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return Workload(model=model, train=data, calibration=data, validation=data, test=data, example_input=data[0][:1])

def shifted():
    data = digits.workload()
    images, targets = data.validation
    return Workload(model=data.model, train=data.train, calibration=data.calibration, validation=(-images, targets),
                    test=data.test, example_input=data.example_input)

def same():
    return digits.workload()
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> DigitsStudy:
    return score_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def policies(study: DigitsStudy) -> list[PolicyFile]:
    return policy_files(sorted(front(storage=study.url).complete, key=lambda one: one.trial), storage=study.url)


@pytest.fixture(scope="module")
def models(study: DigitsStudy, policies: list[PolicyFile], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / f"{number}.safetensors" for number in range(len(policies))]
    for policy, path in zip(policies[1:], paths[1:], strict=True):
        apply(policy, path, cache=study.cache)
    return paths


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.py"
    path.write_text(OTHER)
    return path


def renamed(policy: PolicyFile, entry: str) -> PolicyFile:
    return policy.model_copy(update={"workload": policy.workload.model_copy(update={"entry": entry})})


class TestLoad:
    def test_it_scores_what_the_policy_says(self, policies: list[PolicyFile], models: list[Path]) -> None:
        images, targets = digits.splits().validation
        for policy, path in zip(policies[1:], models[1:], strict=True):
            model = load(path)
            assert not model.training
            with torch.no_grad():
                right = torch.cat([model(images[:200]), model(images[200:])]).argmax(dim=1) == targets
            assert float(right.double().mean()) == policy.score.accuracy

    def test_a_model_or_a_workload_of_the_same_architecture_will_do(self, models: list[Path], other: Path) -> None:
        mine = ResNet()
        before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
        expected = load(str(models[1])).state_dict()
        for model in (load(models[1], model=mine), load(models[1], workload=f"{other}:same")):
            state = model.state_dict()
            names = [name for name in state if not name.endswith("num_batches_tracked")]  # is not in the file
            assert all(torch.equal(state[name], expected[name]) for name in names)
        assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())

    def test_another_architecture_is_refused(self, models: list[Path], other: Path) -> None:
        with pytest.raises(ArtifactError, match="other layers"):
            load(models[1], model=nn.Linear(4, 2))
        with pytest.raises(ArtifactError, match="other layers"):
            load(models[1], workload=f"{other}:workload")

    def test_what_a_file_names_is_not_imported(self, study: DigitsStudy, tmp_path: Path) -> None:
        trap = tmp_path / "trap.py"
        trap.write_text("raise SystemExit('imported')")
        loaded = load_workload(DIGITS, f"{trap}:workload")
        named = Scorer(loaded, study.prepared.evaluation, study.prepared.teacher)
        policy = study.prepared.first[2][1]
        score = named.score(policy, lambda *_: False, lambda *_: True)
        path = study.cache / "artifacts" / f"{score.artifact}.safetensors"
        with pytest.raises(WorkloadError, match=r"trap\.py:workload', which does not ship .* --workload"):
            load(path)
        assert load(path, workload=DIGITS).state_dict().keys() == loaded.model.state_dict().keys()

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="no such file"):
            load(tmp_path / "nothing.safetensors")

    def test_the_workloads_that_ship_can_be_found(self) -> None:
        assert DIGITS in SHIPPED
        assert all(entry.startswith("objectives.workloads.") for entry in SHIPPED)


class TestVerify:
    def test_what_was_exported_is_what_was_scored(self, policies: list[PolicyFile], models: list[Path]) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            for policy, path in zip(policies[1:], models[1:], strict=True):
                found = verify(path, policy)
                assert found.ok
                assert (found.reasons, found.notes) == ((), ())
                assert found.measured_accuracy == found.expected_accuracy == policy.score.accuracy
                assert found.measured_test_accuracy == found.expected_test_accuracy == policy.score.test_accuracy
                assert found.measured_bytes == found.expected_bytes == path.stat().st_size
                assert found.same_file
                assert found.same_model
                assert found.same_data
                assert found.document()["ok"] is True
            assert torch.get_num_threads() == 2
            assert not torch.are_deterministic_algorithms_enabled()
        finally:
            torch.set_num_threads(threads)

    def test_another_policys_file_is_a_mismatch(self, policies: list[PolicyFile], models: list[Path]) -> None:
        found = verify(models[2], policies[1])
        assert not found.ok
        assert found.same_file is False
        text = "\n".join(found.reasons)
        assert "bytes, the policy says" in text
        assert "SHA-256" in text
        assert f"accuracy on validation is {policies[2].score.accuracy:.6f}" in text

    def test_a_score_that_is_not_reached_is_a_mismatch_beyond_the_tolerance(
        self, policies: list[PolicyFile], models: list[Path]
    ) -> None:
        score = policies[1].score
        wrong = policies[1].model_copy(
            update={"score": score.model_copy(update={"accuracy": score.accuracy + 0.0015, "test_accuracy": None})}
        )
        near = verify(models[1], wrong)
        assert near.ok
        assert "within 0.002" in near.notes[0]
        assert near.expected_test_accuracy is None
        far = verify(models[1], wrong, tolerance=0.001)
        assert not far.ok
        assert "more than 0.001 apart" in far.reasons[0]

    def test_a_damaged_file_is_a_mismatch(self, policies: list[PolicyFile], models: list[Path], tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(models[1].read_bytes()[:-1] + b"\xff")
        found = verify(path, policies[1])
        assert not found.ok
        assert found.measured_accuracy is None
        assert "damaged" in found.reasons[-1]

    def test_other_data_is_named(self, policies: list[PolicyFile], models: list[Path], other: Path) -> None:
        found = verify(models[1], policies[1], workload=f"{other}:shifted")
        assert not found.ok
        assert (found.same_file, found.same_model, found.same_data) == (True, True, False)
        assert found.reasons[0].endswith("its data changed since the policy was found")

    def test_a_workload_that_does_not_ship_must_be_named(
        self, policies: list[PolicyFile], models: list[Path], other: Path
    ) -> None:
        mine = renamed(policies[1], "other.py:same")
        with pytest.raises(WorkloadError, match=r"'other\.py:same', which does not ship"):
            verify(models[1], mine)
        assert verify(models[1], mine, workload=f"{other}:same").ok

    def test_a_missing_file_is_named(self, policies: list[PolicyFile], tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"nothing\.safetensors: cannot be read"):
            verify(tmp_path / "nothing.safetensors", policies[1])


class TestRetrain:
    @pytest.mark.parametrize("trial", [2, 3, 4])  # they reached rung 2, 0 and 1
    def test_it_is_the_same_file_again(
        self, trial: int, policies: list[PolicyFile], models: list[Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "model.safetensors"
        again = retrain(policies[trial], path)
        assert path.read_bytes() == models[trial].read_bytes()
        assert again.same_file is True
        assert again.accuracy == again.expected_accuracy == policies[trial].score.accuracy
        assert again.bytes == policies[trial].artifact.bytes
        assert again.document()["sha256"] == policies[trial].artifact.sha256

    def test_it_makes_the_file_that_was_not_kept(self, policies: list[PolicyFile], tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        again = retrain(policies[0], path)
        assert again.same_file is None
        found = verify(path, policies[0])
        assert found.ok
        assert found.same_file is None
        assert "no hash" in found.notes[0]

    def test_other_training_is_another_file_and_says_so(self, policies: list[PolicyFile], tmp_path: Path) -> None:
        other_seed = policies[2].model_copy(
            update={"provenance": policies[2].provenance.model_copy(update={"seed": 1})}
        )
        assert retrain(other_seed, tmp_path / "model.safetensors").same_file is False

    def test_other_data_is_refused(self, policies: list[PolicyFile], other: Path, tmp_path: Path) -> None:
        with pytest.raises(WorkloadError, match=r"its data changed since the policy was found"):
            retrain(policies[3], tmp_path / "model.safetensors", workload=f"{other}:shifted")

    def test_an_output_that_cannot_be_written_is_named(self, policies: list[PolicyFile], tmp_path: Path) -> None:
        shutil.copy(__file__, tmp_path / "file")
        with pytest.raises(ConfigError, match="cannot be written"):
            retrain(policies[3], tmp_path / "file" / "model.safetensors")
