"""Bias correction: the mean output over the calibration inputs is that of torch's own float layer."""

import pytest
import torch
from torch import Tensor, nn

from compress.bias import bias_shift
from compress.quantization.uniform import dequantize, encode, fit
from tests.models import random_tensor


def coarse(rows: Tensor) -> Tensor:
    """Weights at 2 bits, which moves the mean."""
    grid = fit(rows, torch.ones_like(rows, dtype=torch.bool), 2)
    return dequantize(encode(rows, grid, 2), grid)


def unfolded(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Mean over samples and positions of each group's input columns, (groups, n)."""
    assert not isinstance(layer.padding, str)
    columns = nn.functional.unfold(
        inputs, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
    )
    return columns.mean(dim=(0, 2)).reshape(layer.groups, -1)


def channel_means(outputs: Tensor) -> Tensor:
    return outputs.double().transpose(0, 1).flatten(1).mean(dim=1)


@torch.no_grad()
def compressed(layer: nn.Linear | nn.Conv2d, mean: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean outputs of each channel: of the float layer, of the coarse one, and of the corrected one."""
    before = channel_means(layer(inputs))
    rows = layer.weight.flatten(1).clone()
    decoded = coarse(rows)
    layer.weight.copy_(decoded.reshape(layer.weight.shape))
    moved = channel_means(layer(inputs))
    assert layer.bias is not None
    layer.bias += bias_shift(rows, decoded, mean)
    return before, moved, channel_means(layer(inputs))


def test_a_linear_layer_has_its_mean_again() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(20, 7)
    inputs = random_tensor(50, 20).relu()
    before, moved, after = compressed(layer, inputs.mean(dim=0, keepdim=True), inputs)
    assert float((moved - before).abs().max()) > 0.01
    assert torch.allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["one group", "two groups", "depthwise"])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_a_convolution_has_its_mean_again(groups: int, stride: int, padding: int, dilation: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 8, 3, stride=stride, padding=padding, dilation=dilation, groups=groups)
    inputs = random_tensor(6, 4, 9, 11).relu() * torch.linspace(0.5, 2, 4)[:, None, None]
    before, moved, after = compressed(layer, unfolded(layer, inputs), inputs)
    assert float((moved - before).abs().max()) > 0.01
    assert torch.allclose(after, before, atol=1e-6)


def test_nothing_moves_where_nothing_changed_or_inputs_are_centred() -> None:
    rows = random_tensor(5, 6)
    assert not bias_shift(rows, rows, torch.ones(1, 6)).any()
    assert not bias_shift(rows, coarse(rows), torch.zeros(1, 6)).any()


def test_the_shift_is_float32_and_one_a_channel() -> None:
    shift = bias_shift(random_tensor(6, 4), torch.zeros(6, 4), torch.ones(3, 4))
    assert shift.shape == (6,)
    assert shift.dtype == torch.float32
    assert torch.allclose(shift, random_tensor(6, 4).sum(dim=1))
