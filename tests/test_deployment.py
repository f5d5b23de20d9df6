"""The ONNX model of a packed file: made of the file's own content, with the outputs of the model that was scored."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from compress.files import artifact_path
from compress.inputs import outputs
from compress.onnx import run
from objectives.accuracy import accuracy
from objectives.deployment import deploy
from objectives.evaluation import Evaluation, teach
from objectives.judging import JUDGED, FixedJudge
from objectives.score import Scorer
from objectives.serving import load
from objectives.workload import load_workload
from spaces.errors import ArtifactError, ConfigError, WorkloadError
from spaces.policy import ChannelPruning, Choice, Distillation, Policy, Uniform
from tests import deep, tiny
from tests.deep import ENTRY, POLICIES, file_of

NAMES = list(POLICIES)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> deep.Found:
    return deep.scored(tmp_path_factory.mktemp("deep"), list(POLICIES.values()))


@pytest.mark.parametrize(("name", "stored"), [("channels", "int4"), ("codebook", "uint4"), ("activations", "uint8")])
def test_it_gives_the_outputs_of_the_packed_file(
    name: str, stored: str, found: deep.Found, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed, path = file_of(found, NAMES.index(name)), tmp_path / "new" / "model.onnx"
    made = deploy(packed, path, workload=ENTRY)
    assert capfd.readouterr() == ("", "")
    assert set(made.stored.values()) == {stored}
    assert (made.path, made.bytes) == (str(path), path.stat().st_size)
    inputs, _ = tiny.clouds(200, seed=9)
    wanted, got = outputs(load(packed, workload=ENTRY), inputs, 32), run(path, inputs)
    assert float((wanted.argmax(dim=1) == got.argmax(dim=1)).float().mean()) >= (0.98 if name == "activations" else 1)
    if name != "activations":
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert 0 <= made.difference < 0.05 * float(wanted.abs().max())
    assert made.document()["stored"] == made.stored


def test_what_was_cut_out_is_not_in_it(found: deep.Found, tmp_path: Path) -> None:
    for name in ("blocks", "student"):
        packed, path = file_of(found, NAMES.index(name)), tmp_path / f"{name}.onnx"
        made = deploy(packed, path, workload=ENTRY)
        sites = {site for site in deep.WHOLE if not site.startswith("blocks.1")} if name == "blocks" else {*deep.WHOLE}
        assert made.stored.keys() == sites
        model = load(packed, workload=ENTRY)
        inputs, _ = tiny.clouds(100, seed=9)
        torch.testing.assert_close(run(path, inputs), outputs(model, inputs, 32), rtol=1e-4, atol=1e-4)
        left = sum(model.get_parameter(f"{site}.weight").numel() for site in sites)
        codes = [
            one for one in onnx.load(path).graph.initializer if one.data_type in (TensorProto.INT4, TensorProto.INT8)
        ]
        assert sum(int(torch.tensor(list(one.dims)).prod()) for one in codes) == left


def test_the_workload_must_be_named_where_it_does_not_ship(found: deep.Found, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"'tests\.deep:workload', which does not ship"):
        deploy(file_of(found, 0), tmp_path / "model.onnx")


def test_a_damaged_file_leaves_nothing(found: deep.Found, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(file_of(found, 0).read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="damaged"):
        deploy(tmp_path / "model.safetensors", tmp_path / "model.onnx", workload=ENTRY)
    assert not (tmp_path / "model.onnx").exists()


def test_an_output_that_cannot_be_written_is_named(found: deep.Found, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"model\.onnx: cannot be written"):
        deploy(file_of(found, 0), tmp_path / "file" / "model.onnx", workload=ENTRY)


@pytest.mark.slow
def test_a_trained_digits_policy_with_fewer_channels_scores_the_same(tmp_path: Path) -> None:
    loaded = load_workload("objectives.workloads.digits:workload")
    evaluation = Evaluation(0, 200, 1, "cpu", (40,), tmp_path)
    scorer = Scorer(loaded, evaluation, teach(loaded, evaluation))
    member = scorer.models.member(None)
    policy = Policy(
        sites={site.name: Choice(weights=Uniform(bits=8, symmetric=False)) for site in loaded.sites},
        channels={group.name: 0.5 for group in member.groups},
        channel_pruning=ChannelPruning(multiple=8),
        distillation=Distillation(temperature=4, alpha=0.7, learning_rate=0.003, batch_size=64),
    )
    score = scorer.score(policy, FixedJudge())
    packed, path = artifact_path(tmp_path, str(score.artifact)), tmp_path / "model.onnx"
    made = deploy(packed, path)
    assert set(made.stored.values()) == {"uint8"}
    assert made.bytes < loaded.model.get_parameter("layers.5.conv2.weight").nbytes  # one layer of the float model
    assert score.accuracy > 0.9
    for split in JUDGED:
        inputs, targets = loaded.splits[split].inputs, loaded.splits[split].targets
        assert targets is not None
        torch_outputs, onnx_outputs = outputs(load(packed), inputs, 200), run(path, inputs, 200)
        torch.testing.assert_close(onnx_outputs, torch_outputs, rtol=1e-3, atol=1e-3)
        assert torch.equal(accuracy(onnx_outputs, targets), accuracy(torch_outputs, targets))
    assert scorer.score_file(packed, "validation").value == score.accuracy
