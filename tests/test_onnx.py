"""ONNX files: ONNX Runtime gives torch's outputs, codes are stored as codes, and what cannot be exported is refused."""

import copy
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compress.coding import CodedWeight, Kind
from compress.inputs import Inputs
from compress.onnx import check, export, run
from compress.onnx_weights import OPSET, store_coded
from compress.quantization.activations import InputGrid, quantize_inputs
from compress.quantization.uniform import encode, fit
from compress.sites import find_sites
from objectives.workloads.resnet import ResNet
from spaces.choice import ScalePer
from spaces.errors import ArtifactError, CandidateError, ConfigError
from tests.models import digest, output, random_tensor, subject, tokens


def uniform(rows: Tensor, bits: int, per: ScalePer, group: int | None, symmetric: bool) -> CodedWeight:
    kept = torch.ones_like(rows, dtype=torch.bool)
    grid = fit(rows, kept, bits, scale_per=per, group_size=group, symmetric=symmetric)
    return CodedWeight(Kind.UNIFORM, encode(rows, grid, bits), bits, grid=grid)


def codebook(rows: Tensor, bits: int) -> CodedWeight:
    """Evenly spaced entries, float16, with the nearest code each."""
    entries = torch.linspace(-1.5, 1.25, 2**bits - 1).half().float()
    values = torch.cat([torch.zeros(1), entries])
    codes = (rows.unsqueeze(-1) - values).abs().argmin(dim=-1).to(torch.uint8)
    return CodedWeight(Kind.CODEBOOK, codes, bits, entries=entries)


def coded_as(kind: str, rows: Tensor) -> CodedWeight:
    match kind.split():
        case ["float32"]:
            return CodedWeight(Kind.FLOAT32, rows.clone(), 32)
        case ["float16"]:
            return CodedWeight(Kind.FLOAT16, rows.half(), 16)
        case ["codebook", bits]:
            return codebook(rows, int(bits))
        case [bits, "tensor" | "channel" as per, symmetry]:
            return uniform(rows, int(bits), "tensor" if per == "tensor" else "channel", None, symmetry == "symmetric")
        case [bits, "group", symmetry]:
            return uniform(rows, int(bits), "group", rows.shape[1] // 3, symmetry == "symmetric")
    raise AssertionError(kind)


UNIFORM = {
    f"{bits} {per} {symmetry}": f"{'u' * (symmetry == 'asymmetric')}int{4 if bits <= 4 else 8}"
    for bits in (2, 4, 5, 8)
    for per in ("tensor", "channel", "group")
    for symmetry in ("symmetric", "asymmetric")
}
KINDS = {**UNIFORM, "float32": "float32", "float16": "float16", "codebook 3": "uint4", "codebook 7": "uint8"}


@torch.no_grad()
def compressed(model: nn.Module, kinds: Sequence[str]) -> tuple[nn.Module, dict[str, CodedWeight]]:
    """A copy of a model whose sites are coded in turn as these kinds."""
    new = copy.deepcopy(model)
    coded = {}
    for i, site in enumerate(find_sites(new)):
        weight = new.get_parameter(site.parameter)
        rows = site.rows(weight.detach())
        kind = kinds[i % len(kinds)]
        if "group" in kind and rows.shape[1] % 3:
            kind = kind.replace("group", "channel")
        coded[site.name] = coded_as(kind, rows)
        weight.copy_(site.weight(coded[site.name].decode()))
    return new, coded


def exported(
    path: Path, model: nn.Module, example: Inputs, coded: dict[str, CodedWeight] | None = None
) -> dict[str, str]:
    """Export, and check the file: it is whole, valid ONNX, and gives torch's outputs; how sites are stored."""
    before = digest(model)
    report = export(model, example, path, coded=coded, sites=find_sites(model))
    assert digest(model) == before
    assert report.file_bytes == path.stat().st_size
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no external data
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert report.difference == check(path, model, example)
    return dict(report.stored)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture(scope="module")
def network() -> ResNet:
    """With statistics, gains of both signs, and shifts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(blocks=1, width=8, in_channels=3)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "bn" in name:
                nn.init.normal_(parameter, 0.5 * ("weight" in name))
        with torch.no_grad():
            model(random_tensor(16, 3, 12, 12))
        return model.eval()


IMAGES = random_tensor(40, 3, 12, 12, seed=1)


def test_a_float_network_is_exported_without_norms_and_without_a_word(
    network: ResNet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new folder" / "model.onnx"
    assert set(exported(path, network, IMAGES).values()) == {"float32"}
    assert "BatchNormalization" not in operators(path)
    for count in (1, 2, 7, 40):
        got = run(path, IMAGES[:count], chunk=count)
        torch.testing.assert_close(got, output(network, IMAGES[:count]), rtol=1e-4, atol=1e-4)
    assert check(path, ResNet(blocks=1, width=8, in_channels=3), IMAGES) > 1e-3
    assert capfd.readouterr() == ("", "")


def test_a_coded_network_is_as_small_as_its_codes_and_gives_the_same_outputs(network: ResNet, tmp_path: Path) -> None:
    model, coded = compressed(network, ["8 channel symmetric", "4 channel asymmetric", "codebook 4", "float16"])
    path = tmp_path / "model.onnx"
    stored = exported(path, model, IMAGES, coded)
    assert set(stored.values()) == {"int8", "uint4", "float16"}
    sizes = {"int8": 8, "uint4": 4, "float16": 16}
    sites = find_sites(model)
    weights = sum(site.size * sizes[stored[site.name]] for site in sites) / 8  # bytes
    assert path.stat().st_size < weights + 12_000  # the graph, scales and biases
    assert path.stat().st_size < sum(4 * site.size for site in sites) / 2


def test_weights_of_a_transformer_are_found_as_they_are_and_transposed(tmp_path: Path) -> None:
    example = subject("attention")
    model, coded = compressed(example.model, ["4 channel symmetric", "8 tensor asymmetric"])
    stored = exported(tmp_path / "model.onnx", model, tokens(9, 6), coded)
    assert set(stored.values()) == {"int4", "uint8"}


@pytest.mark.slow
def test_weights_that_the_exporter_turns_around_stay_float_and_the_report_says_so(tmp_path: Path) -> None:
    example = subject("recurrent")
    model, coded = compressed(example.model, ["8 channel symmetric"])
    stored = exported(tmp_path / "model.onnx", model, tokens(5, 6), coded)
    assert {name for name, kind in stored.items() if kind == "int8"} == {"embedding", "head"}
    assert stored["lstm.weight_ih_l0"] == "float32"


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    example = subject("tied")
    model, coded = compressed(example.model, ["8 channel symmetric"])
    stored = exported(tmp_path / "model.onnx", model, tokens(5, 6), coded)
    assert set(stored.values()) == {"int8"}
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sum(tensor.data_type == TensorProto.INT8 for tensor in graph.initializer) == 2


class Named(nn.Module):
    """Two inputs by name, a Linear on three axes, and a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, features: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.up(features))
        return self.down(hidden) * (1 if scale is None else scale[:, None, None]), hidden


class First(nn.Module):
    """The first input as it is."""

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        return features


@pytest.fixture(scope="module")
def named() -> Named:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Named().eval()


def test_inputs_by_name_and_an_output_that_is_a_tuple(named: Named, tmp_path: Path) -> None:
    inputs = {"scale": random_tensor(4), "features": random_tensor(4, 3, 6)}
    exported(tmp_path / "model.onnx", named, inputs)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [entry.name for entry in graph.input] == ["scale", "features"]
    one = {name: part[:1] for name, part in inputs.items()}
    torch.testing.assert_close(run(tmp_path / "model.onnx", one), output(named, one))
    with pytest.raises(ArtifactError, match=r"outputs of shape \(4, 3, 5\)"):
        check(tmp_path / "model.onnx", First(), inputs)


@pytest.mark.parametrize(
    "kind",
    [
        "8 channel symmetric",
        pytest.param("8 tensor asymmetric", marks=pytest.mark.slow),
        pytest.param("8 group symmetric", marks=pytest.mark.slow),
        pytest.param("4 channel symmetric", marks=pytest.mark.slow),
    ],
)
def test_rounded_inputs_are_rounded_in_the_file(kind: str, named: Named, tmp_path: Path) -> None:
    model, coded = compressed(named, [kind])
    grids = {"up": InputGrid(8, -2.0, 2.5), "down": InputGrid(5, 0.0, 1.0)}
    quantize_inputs(model, grids)
    features = random_tensor(20, 3, 6)
    exported(tmp_path / "model.onnx", model, (features, torch.ones(20)), coded)
    assert operators(tmp_path / "model.onnx").count("QuantizeLinear") == 2
    got = run(tmp_path / "model.onnx", (features, torch.ones(20)))
    wanted = output(model, (features, torch.ones(20)))
    near = torch.isclose(got, wanted, rtol=0, atol=1e-4)
    assert near.float().mean() > 0.99  # a value in the middle of two levels may get the other one
    assert check(tmp_path / "model.onnx", named, (features, torch.ones(20))) > 0.01


def test_inputs_rounded_to_each_samples_range_are_exported_too(named: Named, tmp_path: Path) -> None:
    model = copy.deepcopy(named)
    quantize_inputs(model, {"up": InputGrid(6), "down": InputGrid(4)})
    inputs = (random_tensor(20, 3, 6), torch.ones(20))
    exported(tmp_path / "model.onnx", model, inputs)
    assert torch.isclose(run(tmp_path / "model.onnx", inputs), output(model, inputs), atol=1e-4).float().mean() > 0.99
    assert operators(tmp_path / "model.onnx").count("ReduceMax") == 2


LAYERS = [
    nn.Linear(6, 5, bias=False),
    nn.Conv2d(6, 4, 3, groups=2, bias=False),
    nn.ConvTranspose1d(3, 6, 2, bias=False),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_decoded_to_the_weights_themselves(kind: str, tmp_path: Path) -> None:
    for layer in LAYERS:
        for folded, turned, rounded in itertools.product([False, True], repeat=3):
            if layer is LAYERS[0] or not turned:
                decode_one(kind, layer, folded, turned, rounded, tmp_path / "model.onnx")


def decode_one(kind: str, layer: nn.Module, folded: bool, turned: bool, rounded: bool, path: Path) -> None:
    """Store a layer's weights in a graph that multiplies them by x, and let ONNX Runtime multiply them by 1."""
    model, coded = compressed(nn.Sequential(layer), [kind])
    (site,) = find_sites(model)
    factor = random_tensor(site.channels, seed=2)  # of both signs
    factor[1] = 0
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        if folded:
            weight.copy_(site.weight(site.rows(weight) * factor[:, None]))
    array = weight.detach().numpy()
    array = np.ascontiguousarray(array.T) if turned else array
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"] + [1] * array.ndim)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *array.shape])],
        [numpy_helper.from_array(array, "w")],
    )
    factors = {"0": factor} if folded else {}
    stored = store_coded(graph, model, [site], coded, factors, {"0"} if rounded else set())
    integer = rounded and KINDS[kind].endswith("int8") and "codebook" not in kind and groups(coded["0"]) == 1
    assert stored == {"0": "uint8" if integer else KINDS[kind]}
    assert any(node.op_type == "DequantizeLinear" for node in graph.node) == integer
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    got = run(path, torch.ones(2, *[1] * array.ndim))[0].numpy()
    np.testing.assert_allclose(got, array, rtol=1e-6 if folded else 0, atol=0)


def groups(coded: CodedWeight) -> int:
    return 1 if coded.grid is None else coded.grid.step.shape[1]


def test_other_weights_than_the_coded_ones_are_refused(named: Named, tmp_path: Path) -> None:
    _, coded = compressed(named, ["4 channel symmetric"])
    with pytest.raises(CandidateError, match=r"site up: .*not those that are coded"):
        exported(tmp_path / "model.onnx", named, (random_tensor(4, 3, 6), torch.ones(4)), coded)
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """What it computes depends on values, which no graph can say."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if float(y.sum()) > 0 else -y


def test_a_model_that_the_exporter_cannot_take_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CandidateError, match=r"Branching cannot be exported to ONNX: \w") as caught:
        export(Branching().eval(), random_tensor(4, 3), tmp_path / "model.onnx")
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_bfloat16_inputs_are_refused_with_what_to_do(tmp_path: Path) -> None:
    example = subject("bfloat16")
    with pytest.raises(CandidateError, match=r"\.float\(\)"):
        export(example.model, example.inputs, tmp_path / "model.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, named: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"need {package}: run `pip install slimfront\[onnx\]`"):
        export(named, random_tensor(4, 3, 6), tmp_path / "model.onnx")


def test_a_file_that_is_no_onnx_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"model\.onnx: ONNX Runtime cannot run it"):
        run(path, random_tensor(1, 3))
