"""Packed files in use: they load as the model that was scored."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.inputs import outputs
from objectives.judging import FixedJudge
from objectives.replay import SHIPPED
from objectives.score import Scorer
from objectives.serving import load
from objectives.workload import load_workload
from objectives.workloads import digits
from objectives.workloads.resnet import ResNet
from search.export import apply, policy_files
from spaces.errors import ArtifactError, WorkloadError
from spaces.policy import PolicyFile
from tests import deep, tiny
from tests.deep import POLICIES, file_of
from tests.studies import DIGITS, DigitsStudy, every_point, score_digits

OTHER = """
import torch
from torch import nn
from slimfront import Workload
from objectives.workloads import digits

def workload():
    data = (torch.arange(64.0).reshape(16, 4) / 64, torch.arange(16) % 2)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return Workload(model=model, train=data, calibration=data, validation=data, test=data, example_input=data[0][:1])

def same():
    return digits.workload()
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> DigitsStudy:
    return score_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def policies(study: DigitsStudy) -> list[PolicyFile]:
    return policy_files(every_point(study.url), storage=study.url)


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
        score = named.score(policy, FixedJudge(0))
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


class TestLoadOfWhatWasCut:
    @pytest.fixture
    def found(self, tmp_path: Path) -> deep.Found:
        return deep.scored(tmp_path, [POLICIES[name] for name in ("blocks", "student", "dynamic")])

    def test_it_has_the_shapes_that_are_left_and_scores_the_same(self, found: deep.Found) -> None:
        inputs, targets = tiny.clouds(tiny.SIZES[2], seed=2)
        for number, policy in enumerate(found.policies):
            model = load(file_of(found, number), workload=deep.ENTRY)
            right = outputs(model, inputs, 32).argmax(dim=1) == targets
            assert float(right.double().mean()) == policy.score.accuracy
        shapes = [load(file_of(found, i), workload=deep.ENTRY).get_parameter("stem.weight").shape for i in (0, 1, 2)]
        assert shapes == [(12, 8), (12, 8), (24, 8)]

    def test_a_model_that_is_given_is_cut_with_the_help_of_an_example(self, found: deep.Found) -> None:
        example, path = torch.zeros(4, tiny.FEATURES), file_of(found, 0)
        wanted = load(path, workload=deep.ENTRY)(example)
        torch.testing.assert_close(load(path, model=deep.made(1), example=example)(example), wanted, rtol=0, atol=0)
        small = load(file_of(found, 1), model=deep.made(1, 6, 8), student="small")(example)
        torch.testing.assert_close(small, load(file_of(found, 1), workload=deep.ENTRY)(example), rtol=0, atol=0)
        with pytest.raises(ArtifactError, match="other layers"):
            load(file_of(found, 1), model=deep.made(1, 6, 8))
        with pytest.raises(ArtifactError, match="rebuilt from an example input: give one"):
            load(path, model=deep.made(1))
