"""Rounded inputs: the definition, ranges, gradients, and what hooks keep."""

import copy
import doctest
import itertools
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from compress.quantization import activations
from compress.quantization.activations import InputGrid, fake_quantize, fit_range, input_grids, quantize_inputs
from spaces.errors import CandidateError
from tests.models import Tied, digest, output, random_tensor, subject

STATIC = InputGrid(8, -1.0, 2.0)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def error(values: Tensor, grid: InputGrid) -> float:
    return float((fake_quantize(values, grid) - values).double().square().sum())


def nearest_level(values: Tensor, grid: InputGrid) -> Tensor:
    """The definition: of all levels the nearest."""
    levels = (torch.arange(grid.top + 1) - grid.zero) * torch.tensor(grid.step)
    return levels[(values.unsqueeze(-1) - levels).abs().argmin(dim=-1)]


def test_the_example_of_the_class_runs() -> None:
    assert doctest.testmod(activations).failed == 0


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 3.0), (-0.75, 0.0), (-100.0, 0.125)])
def test_a_value_becomes_the_nearest_level_and_zero_stays_zero(bits: int, low: float, high: float) -> None:
    grid = InputGrid(bits, low, high)
    values = torch.cat([random_tensor(500) * 2, torch.zeros(1)])
    rounded = fake_quantize(values, grid)
    torch.testing.assert_close(rounded, nearest_level(values, grid), rtol=0, atol=grid.step * 1e-3)
    assert rounded[-1] == 0
    assert torch.unique(rounded).numel() <= 2**bits
    assert torch.equal(fake_quantize(rounded, grid), rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_values_is_kept(dtype: torch.dtype) -> None:
    assert fake_quantize(torch.ones(2, 3, dtype=dtype), STATIC).dtype == dtype


@pytest.mark.parametrize("grid", [STATIC, InputGrid(4, 0.0, 1.0), InputGrid(8), InputGrid(4)])
def test_what_a_sample_gets_does_not_depend_on_its_batch(grid: InputGrid) -> None:
    batch = random_tensor(7, 3, 5) * torch.arange(1.0, 8.0).reshape(7, 1, 1)
    single = torch.cat([fake_quantize(sample, grid) for sample in torch.split(batch, 1)])
    assert torch.equal(fake_quantize(batch, grid), single)


def test_a_dynamic_range_is_that_of_the_sample() -> None:
    batch = torch.stack([random_tensor(64), 100 * random_tensor(64, seed=1)])
    for row, got in zip(batch, fake_quantize(batch, InputGrid(6)), strict=True):
        step = (row.max() - row.min()) / 63
        assert (got - row).abs().max() <= step * 1.001  # half a step, and half where the zero point was rounded
        assert torch.unique(got).numel() > 20


@pytest.mark.parametrize("grid", [InputGrid(8, 0.0, 0.0), InputGrid(8), InputGrid(8, -(2.0**-149), 2.0**-149)])
def test_nothing_but_zeros_stays_zeros(grid: InputGrid) -> None:
    assert torch.equal(fake_quantize(torch.zeros(2, 4), grid), torch.zeros(2, 4))


@pytest.mark.parametrize("grid", [InputGrid(8, -(2.0**127), 2.0**127), InputGrid(8), InputGrid(8, 0.0, 0.0)])
def test_huge_values_stay_finite(grid: InputGrid) -> None:
    assert torch.isfinite(fake_quantize(torch.tensor([[-3e38, 0.0, 3e38]]), grid)).all()


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    values = torch.tensor([[-3.0, -0.5, 0.7, 1.9, 5.0]], requires_grad=True)
    rounded = fake_quantize(values, STATIC)
    assert torch.equal(rounded.detach(), fake_quantize(values.detach(), STATIC))
    torch.autograd.backward(rounded.sum())
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 1, 1, 1, 0]]


def test_weights_behind_rounded_inputs_can_be_trained() -> None:
    model = network()
    quantize_inputs(model, {"0": InputGrid(4, -2.0, 2.0), "2": InputGrid(8)})
    batch, wanted = random_tensor(64, 6), random_tensor(64, 3, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(batch) - wanted).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "numbers",
    [(3, 0.0, 1.0), (9, 0.0, 1.0), (8, 0.5, 1.0), (8, -1.0, -0.5), (8, 0.0, None), (8, 0.0, 0.1), (8, 0, 1e999)],
)
def test_an_impossible_grid_is_refused(numbers: tuple[int, float, float | None]) -> None:
    with pytest.raises(ValueError, match=r"bits|range"):
        InputGrid(*numbers)


@pytest.mark.parametrize("how", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("shift", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_range_is_a_grid_with_zero(how: Literal["minmax", "percentile", "mse"], shift: float, bits: int) -> None:
    grid = InputGrid(bits, *fit_range(random_tensor(2000) + shift, bits, how))
    assert grid.low is not None
    assert grid.high is not None
    assert grid.low <= 0 <= grid.high


def test_min_max_and_percentile_are_what_they_are_called() -> None:
    sample = torch.arange(-1000.0, 9000.0)[torch.randperm(10_000, generator=torch.Generator().manual_seed(0))]
    assert fit_range(sample, 8, "minmax") == (-1000.0, 8999.0)
    assert fit_range(sample, 8, "percentile") == (-990.0, 8989.0)


@pytest.mark.parametrize("bits", [4, 6])
def test_the_least_error_is_that_of_a_brute_force_search(bits: int) -> None:
    sample = torch.cat([random_tensor(3000).relu() - 0.2, 40 * torch.ones(1), -8 * torch.ones(1)])
    found = error(sample, InputGrid(bits, *fit_range(sample, bits, "mse")))
    ends = torch.logspace(-2, 0, 60).tolist()
    pairs = itertools.product(ends, ends)
    best = min(error(sample, InputGrid(bits, *exact(-8 * low, 40 * high))) for low, high in pairs)
    assert found <= 1.03 * best
    assert found < 0.99 * error(sample, InputGrid(bits, *fit_range(sample, bits, "minmax")))


def exact(low: float, high: float) -> tuple[float, float]:
    return float(torch.tensor(low)), float(torch.tensor(high))


@pytest.mark.parametrize("sample", [torch.tensor([]), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])])
def test_a_range_needs_finite_values(sample: Tensor) -> None:
    with pytest.raises(CandidateError, match="finite"):
        fit_range(sample, 8, "mse")


def test_only_the_named_layers_round_and_a_later_grid_replaces_the_earlier() -> None:
    model, batch = network(), random_tensor(5, 6)
    plain = copy.deepcopy(model)
    first, _, last = plain
    for grid in (InputGrid(4), STATIC):
        quantize_inputs(model, {"2": grid})
        wanted = last(fake_quantize(torch.relu(first(batch)), grid))
        assert torch.equal(output(model, batch), wanted.detach())
        assert input_grids(model) == {"2": grid}
    assert len(model[2]._forward_pre_hooks) == 1


def test_a_hook_of_somebody_else_stays() -> None:
    model, batch, seen = network(), random_tensor(5, 6), []

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(module)

    model[0].register_forward_pre_hook(look)
    for _ in range(2):
        quantize_inputs(model, {"0": STATIC})
    output(model, batch)
    assert len(seen) == 1


def test_copies_functional_calls_and_exports_round_too() -> None:
    model, batch = network(), random_tensor(5, 6)
    quantize_inputs(model, {"0": STATIC, "2": InputGrid(6)})
    wanted = output(model, batch)
    assert torch.equal(output(copy.deepcopy(model), batch), wanted)
    assert torch.equal(functional_call(model, dict(model.named_parameters()), batch).detach(), wanted)
    exported = torch.export.export(model, (batch,)).module()
    torch.testing.assert_close(output(exported, batch), wanted, rtol=0, atol=1e-6)


def test_an_input_given_by_name_is_rounded() -> None:
    layer = nn.Sequential(nn.Linear(3, 2))
    quantize_inputs(layer, {"0": InputGrid(4, -1.0, 1.0)})
    batch = random_tensor(4, 3)
    assert torch.equal(layer[0](input=batch), layer(batch))


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("attention", "embedding"),
        ("attention", "block.self_attn"),
        ("attention", "block.self_attn.in_proj_weight"),
        ("attention", "block.self_attn.out_proj"),
        ("recurrent", "lstm"),
        ("recurrent", "lstm.weight_ih_l0"),
        ("convolutions", "1"),
        ("convolutions", "nowhere"),
    ],
)
def test_a_site_that_is_no_layer_is_refused_and_nothing_changes(name: str, site: str) -> None:
    model = subject(name).model
    before = digest(model)
    with pytest.raises(CandidateError, match=f"site {site}: "):
        quantize_inputs(model, {site: STATIC})
    assert digest(model) == before
    assert not input_grids(model)


def test_an_input_that_is_not_floating_point_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    quantize_inputs(model, {"0": STATIC})
    with pytest.raises(CandidateError, match=r"site 0: its input is torch.int64"):
        model(torch.ones(2, 3, dtype=torch.int64))


def test_the_transformer_layer_of_torch_does_not_pass_by_its_rounded_layers() -> None:
    example = subject("attention")
    plain = output(example.model, example.inputs)
    quantize_inputs(example.model, {"block.linear1": InputGrid(4, -0.5, 0.5)})
    assert not torch.allclose(output(example.model, example.inputs), plain)


def test_a_layer_under_two_names_rounds_at_both() -> None:
    model = Tied().eval()
    quantize_inputs(model, {"first": STATIC})
    assert model.first is model.second
    assert len(model.second._forward_pre_hooks) == 1
