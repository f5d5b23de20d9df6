"""SmoothQuant: equal outputs, equation 4, and less error of rounded activations where channels have outliers."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.quantization.activations import InputGrid, fit_range, quantize_inputs
from compress.quantization.smooth import Pair, smooth
from tests.models import digest, output, random_tensor, subject

BATCH = random_tensor(40, 5, 8)
LAYERS = ("q", "k", "v", "up")
OUTLIERS = torch.tensor([2, 7, 11])


class Block(nn.Module):
    """A transformer block (arXiv:1706.03762), with the norms before its layers (arXiv:2002.04745) or after the sums."""

    def __init__(self, width: int, norm: type[nn.Module], first: bool = True) -> None:
        super().__init__()
        self.first = first
        self.norm1, self.norm2 = norm(width), norm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = x + self.attend(self.norm1(x))
            x = x + self.down(functional.gelu(self.up(self.norm2(x))))
            return x
        x = self.norm1(x + self.attend(x))
        y: Tensor = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return y


class Gain(nn.Module):
    """A norm called so that multiplies by 1 + weight, as some language models have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


class GainRMSNorm(Gain):
    pass


def transformer(norm: type[nn.Module] = nn.LayerNorm, first: bool = True) -> nn.Module:
    """Two blocks, whose norms give outliers in three channels, which have small weights behind them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), Block(16, norm, first), Block(16, norm, first)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter[OUTLIERS] = torch.tensor([30.0, -60.0, 45.0])
            elif name.endswith(tuple(f"{layer}.weight" for layer in LAYERS)):
                parameter[:, OUTLIERS] *= 0.05
    return model


def error_when_rounded(model: nn.Module, bits: int) -> float:
    """Mean squared output error with the inputs of q, k, v and up rounded, against the model itself."""
    rounded = copy.deepcopy(model)
    inputs: dict[str, Tensor] = {}
    for name, module in rounded.named_modules():
        if name.endswith(LAYERS):
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    wanted = output(rounded, BATCH)
    quantize_inputs(rounded, {n: InputGrid(bits, *fit_range(x, bits, "mse")) for n, x in inputs.items()})
    assert len(inputs) == 8
    return float((output(rounded, BATCH) - wanted).square().mean())


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_outputs_stay_and_each_norm_is_smoothed(norm: type[nn.Module]) -> None:
    model = transformer(norm)
    before = digest(model)
    smoothed, pairs = smooth(model, BATCH)
    assert digest(model) == before
    assert set(pairs) == {Pair(f"{i}.norm1", (f"{i}.q", f"{i}.k", f"{i}.v")) for i in (1, 2)} | {
        Pair(f"{i}.norm2", (f"{i}.up",)) for i in (1, 2)
    }
    scale = float(output(model, BATCH).abs().max())
    torch.testing.assert_close(output(smoothed, BATCH), output(model, BATCH), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_scale_is_that_of_equation_4(alpha: float) -> None:
    model = transformer()
    smoothed, _ = smooth(model, BATCH, alpha, chunk=7)
    norm, layer = model.get_submodule("1.norm1"), [model.get_submodule(f"1.{name}") for name in ("q", "k", "v")]
    largest = norm(model.get_submodule("0")(BATCH)).detach().abs().amax(dim=(0, 1))
    weight = torch.cat([part.get_parameter("weight") for part in layer]).abs().amax(dim=0)
    scale = largest**alpha / weight ** (1 - alpha)
    torch.testing.assert_close(smoothed.get_parameter("1.norm1.weight"), norm.get_parameter("weight") / scale)
    torch.testing.assert_close(smoothed.get_parameter("1.k.weight"), layer[1].get_parameter("weight") * scale)


@pytest.mark.parametrize("bits", [8, 6])
def test_rounded_activations_cost_less_where_channels_have_outliers(bits: int) -> None:
    model = transformer()
    smoothed, _ = smooth(model, BATCH)
    assert error_when_rounded(smoothed, bits) < 0.5 * error_when_rounded(model, bits)


def test_norms_after_the_sum_are_left_alone() -> None:
    model = transformer(first=False)
    smoothed, pairs = smooth(model, BATCH)
    assert pairs == ()
    assert torch.equal(output(smoothed, BATCH), output(model, BATCH))


def test_a_norm_that_is_not_what_its_name_says_is_undone() -> None:
    model = transformer(GainRMSNorm)
    smoothed, pairs = smooth(model, BATCH)
    assert pairs == ()
    assert torch.equal(output(smoothed, BATCH), output(model, BATCH))


def test_a_weight_that_is_used_elsewhere_is_left_alone() -> None:
    model = transformer()
    model.get_submodule("2").up.weight = model.get_submodule("1").up.weight  # type: ignore[union-attr]
    assert {pair.norm for pair in smooth(model, BATCH)[1]} == {"1.norm1", "2.norm1"}


def test_a_channel_without_weights_or_inputs_is_left_as_it_is() -> None:
    model = transformer()
    with torch.no_grad():
        for name in ("q", "k", "v"):
            model.get_parameter(f"1.{name}.weight")[:, 3] = 0
        for name in ("weight", "bias"):
            model.get_parameter(f"1.norm1.{name}")[5] = 0
    smoothed, pairs = smooth(model, BATCH)
    assert len(pairs) == 4
    assert all(torch.isfinite(parameter).all() for parameter in smoothed.parameters())
    weights = smoothed.get_parameter("1.norm1.weight"), model.get_parameter("1.norm1.weight")
    assert torch.equal(weights[0][[3, 5]], weights[1][[3, 5]])


@pytest.mark.parametrize("name", ["attention", "recurrent", "convolutions", "tied", "buffers"])
def test_a_model_with_nothing_to_smooth_stays(name: str) -> None:
    example = subject(name)
    smoothed, pairs = smooth(example.model, example.inputs)
    assert pairs == ()
    assert torch.equal(output(smoothed, example.inputs), output(example.model, example.inputs))


def test_alpha_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        smooth(transformer(), BATCH, 1.5)
