"""BatchNorm folding: the same outputs without the norm, and what must not be folded; where tensors go."""

import copy
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from compress.flow import trace
from compress.folding import fold_batchnorms
from objectives.workloads.resnet import ResNet
from tests.models import digest, output, random_tensor, subject


def norms(model: nn.Module) -> int:
    return sum("BatchNorm" in type(module).__name__ for module in model.modules())


Model = TypeVar("Model", bound=nn.Module)


def awake(model: Model, batch: Tensor) -> Model:
    """In evaluation mode, with statistics, gains and shifts that are not those of a new BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) + ("weight" in name))
        for _ in range(5):
            model.train()(batch + 1)
    return model.eval()


class TwiceUsed(nn.Module):
    """A convolution whose output goes into a BatchNorm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        summed: Tensor = self.bn(y) + y
        return summed


class CalledTwice(nn.Module):
    """One convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv(self.bn1(self.conv(x))))
        return y


class PreActivation(nn.Module):
    """He et al. 2016 (arXiv:1603.05027), figure 4e: BN, ReLU, convolution, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.conv1(torch.relu(self.bn1(x)))
        summed: Tensor = y + self.conv2(torch.relu(self.bn2(y)))
        return summed


class Written(nn.Module):
    """A convolution whose output is changed in place before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x).relu_())
        return y


class TiedWeights(nn.Module):
    """Two convolutions with one weight, of which one is normed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.second = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.bn(self.first(x)))
        return y


def test_a_residual_network_loses_all_its_norms_and_no_output_changes() -> None:
    batch = random_tensor(6, 1, 12, 12)
    model = awake(ResNet(blocks=1, width=4), batch)
    before = digest(model)
    folded = fold_batchnorms(model, batch)
    assert digest(model) == before
    assert norms(folded.model) == 0
    torch.testing.assert_close(output(folded.model, batch), output(model, batch), rtol=1e-4, atol=1e-4)
    variance = model.stem.bn.running_var
    assert variance is not None
    wanted = model.stem.bn.weight.detach() / (variance + model.stem.bn.eps).sqrt()
    torch.testing.assert_close(folded.factors["stem.conv"], wanted)
    assert len(folded.factors) == norms(model)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "kind", ["linear", "conv1", "conv2", "grouped", "conv3", "transposed", "dropout", "identity", "bfloat16"]
)
def test_every_kind_of_layer_is_folded(kind: str, bias: bool, affine: bool) -> None:
    layers: dict[str, tuple[list[nn.Module], tuple[int, ...]]] = {
        "linear": ([nn.Linear(4, 6, bias), nn.BatchNorm1d(6, affine=affine)], (8, 4)),
        "conv1": ([nn.Conv1d(4, 6, 3, bias=bias), nn.BatchNorm1d(6, affine=affine)], (8, 4, 5)),
        "conv2": ([nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6, affine=affine)], (8, 4, 5, 5)),
        "grouped": ([nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6, affine=affine)], (8, 4, 5, 5)),
        "conv3": ([nn.Conv3d(4, 6, 3, bias=bias), nn.BatchNorm3d(6, affine=affine)], (8, 4, 5, 5, 5)),
        "transposed": ([nn.ConvTranspose2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6, affine=affine)], (8, 4, 5, 5)),
        "dropout": ([nn.Linear(4, 6, bias), nn.Dropout(0.5), nn.BatchNorm1d(6, affine=affine)], (8, 4)),
        "identity": ([nn.Linear(4, 6, bias), nn.Identity(), nn.BatchNorm1d(6, affine=affine)], (8, 4)),
        "bfloat16": ([nn.Linear(4, 6, bias), nn.BatchNorm1d(6, affine=affine)], (8, 4)),
    }
    modules, shape = layers[kind]
    batch = random_tensor(*shape)
    model: nn.Module = awake(nn.Sequential(*modules), batch)
    if kind == "bfloat16":
        model, batch = model.bfloat16(), batch.bfloat16()
    folded = fold_batchnorms(model, batch)
    assert norms(folded.model) == 0
    tolerance = 0.1 if kind == "bfloat16" else 1e-4
    torch.testing.assert_close(output(folded.model, batch), output(model, batch), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [TwiceUsed, CalledTwice, PreActivation, Written, TiedWeights])
def test_what_is_not_a_layer_and_its_own_norm_is_left_alone(kind: type[nn.Module]) -> None:
    batch = random_tensor(6, 2, 6, 6)
    model = awake(kind(), batch)
    folded = fold_batchnorms(model, batch)
    assert not folded.factors
    assert torch.equal(output(folded.model, batch), output(model, batch))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)]
)
def test_a_norm_without_fixed_statistics_is_left_alone(norm: nn.Module) -> None:
    batch = random_tensor(6, 2, 6, 6)
    assert not fold_batchnorms(nn.Sequential(nn.Conv2d(2, 4, 3), norm).eval(), batch).factors


def test_a_norm_over_another_axis_is_left_alone() -> None:
    batch = random_tensor(6, 3, 2)  # a Linear's output (6, 3, 3), which the norm takes as 3 channels of 3 positions
    model = awake(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), batch)
    folded = fold_batchnorms(model, batch)
    assert not folded.factors
    assert torch.equal(output(folded.model, batch), output(model, batch))


def test_one_norm_that_cannot_be_folded_does_not_keep_the_others() -> None:
    batch = random_tensor(6, 3, 2)
    model = awake(nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.Linear(2, 3), nn.BatchNorm1d(3)), batch)
    assert set(fold_batchnorms(model, batch).factors) == {"0"}


def test_a_model_in_training_mode_stays_in_it() -> None:
    batch = random_tensor(6, 2, 8, 8)
    model = copy.deepcopy(subject("convolutions").model).train()
    before = digest(model)
    fold_batchnorms(model, batch)
    assert digest(model) == before


def test_a_trace_sees_modules_functions_and_what_the_model_returns() -> None:
    model = TwiceUsed().eval()
    flow = trace(model, random_tensor(1, 2, 6, 6))
    assert sorted(flow.readers["conv"]) == ["", "bn"]
    assert flow.readers["bn"] == ("",)
    assert flow.calls == {"": 1, "conv": 1, "bn": 1}
    assert flow.readers[""] == ("",)
    assert flow.only_reader("conv") is None
    assert flow.only_reader("bn") == ""
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
