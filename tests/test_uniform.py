"""Uniform quantization: against the best of many scales, at every width, and for weights of any magnitude."""

import math

import pytest
import torch
from torch import Tensor

from compress.quantization.uniform import Grid, dequantize, encode, exponent_of, fit, spread, top
from spaces.choice import ScalePer
from spaces.errors import CandidateError
from tests.models import random_tensor

every_width = pytest.mark.parametrize("bits", range(2, 9))


def everything(rows: Tensor) -> Tensor:
    return torch.ones_like(rows, dtype=torch.bool)


def quantize(rows: Tensor, kept: Tensor, bits: int) -> tuple[Tensor, Grid]:
    """Codes and grid, symmetric and per channel."""
    grid = fit(rows, kept, bits)
    return encode(torch.where(kept, rows, 0.0), grid, bits), grid


def errors(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The definition, in float64: squared distance to the nearest of the levels, (channels,)."""
    wide = rows.double()
    levels = torch.arange(-top(bits), top(bits) + 1, dtype=torch.float64)
    distance = wide[..., None] - levels * scale.double()[..., None]
    return distance.abs().amin(dim=-1).square().sum(dim=1)


def least_errors(rows: Tensor, bits: int, tries: int = 2000) -> Tensor:
    """The least error of any scale up to the largest magnitude, (channels,)."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    shares = [step / tries for step in range(1, tries + 1)]
    return torch.stack([errors(rows, largest * share / top(bits), bits) for share in shares]).amin(dim=0)


def relative_error(rows: Tensor, decoded: Tensor) -> float:
    return float((decoded.double() - rows.double()).square().sum() / rows.double().square().sum())


class TestScales:
    @every_width
    @pytest.mark.parametrize("seed", range(4))
    def test_it_is_never_worse_than_the_largest_magnitude(self, bits: int, seed: int) -> None:
        rows = random_tensor(20, 60, seed=seed) ** 3  # heavy tails
        codes, grid = quantize(rows, everything(rows), bits)
        found = (dequantize(codes, grid) - rows).double().square().sum(dim=1)
        plain = (
            rows.abs().amax(dim=1, keepdim=True) / top(bits) * 2.0**-grid.exponent
        ).half().float() * 2.0**grid.exponent
        assert bool((found <= errors(rows, plain, bits) * (1 + 1e-5)).all())

    @pytest.mark.parametrize("bits", [2, 3, 4])
    @pytest.mark.parametrize("columns", [3, 8, 30])
    def test_it_is_nearly_as_good_as_the_best_of_many_scales(self, bits: int, columns: int) -> None:
        rows = random_tensor(60, columns, seed=columns)
        codes, grid = quantize(rows, everything(rows), bits)
        found = (dequantize(codes, grid) - rows).double().square().sum(dim=1)
        best, norm = least_errors(rows, bits), rows.double().square().sum(dim=1)
        assert float((found - best).clamp(min=0).mean() / best.mean()) < 0.02
        assert bool((found - best <= 0.01 * norm).all())

    @every_width
    def test_its_error_is_that_of_the_nearest_level(self, bits: int) -> None:
        rows = random_tensor(30, 40)
        codes, grid = quantize(rows, everything(rows), bits)
        found = (dequantize(codes, grid) - rows).double().square().sum(dim=1)
        assert found.tolist() == pytest.approx(errors(rows, grid.step, bits).tolist(), rel=1e-4)

    def test_more_bits_are_never_worse(self) -> None:
        rows = random_tensor(10, 200)
        found = [(dequantize(*quantize(rows, everything(rows), bits)) - rows).square().sum() for bits in range(2, 9)]
        assert found == sorted(found, reverse=True)

    @every_width
    def test_a_scale_is_exact_in_float16_times_a_power_of_two(self, bits: int) -> None:
        rows = random_tensor(50, 20) * torch.logspace(-6, 6, 50)[:, None]
        _, grid = quantize(rows, everything(rows), bits)
        halves = (grid.step.double() * 2.0**-grid.exponent).half()
        assert grid.step.dtype == torch.float32
        assert grid.step.shape == (50, 1)
        assert torch.equal(halves.double() * 2.0**grid.exponent, grid.step.double())

    @pytest.mark.parametrize("largest", [1.2e-38, 0.75, 1.0, 1.9999, 2.0, 3e38])
    def test_the_exponent_brings_the_largest_scale_between_one_and_two(self, largest: float) -> None:
        exponent = exponent_of(torch.tensor([[largest], [largest / 3]]))
        assert 1 <= torch.tensor(largest).item() * math.ldexp(1, -exponent) < 2

    def test_of_nothing_and_of_next_to_nothing_it_is_bounded(self) -> None:
        assert exponent_of(torch.zeros(3, 1)) == 0
        assert exponent_of(torch.full((3, 1), 1e-45)) == -126


class TestCodes:
    @every_width
    def test_they_are_whole_numbers_between_minus_top_and_top(self, bits: int) -> None:
        rows = random_tensor(40, 50) ** 3
        codes, _ = quantize(rows, everything(rows), bits)
        assert codes.dtype == torch.int8
        assert codes.shape == rows.shape
        assert int(codes.max()) == top(bits) == 2 ** (bits - 1) - 1
        assert int(codes.min()) == -top(bits)

    @every_width
    def test_weights_that_are_on_levels_come_back(self, bits: int) -> None:
        levels = torch.arange(-top(bits), top(bits) + 1).float()
        rows = torch.stack([levels * scale for scale in (0.25, 1.5, 3.0, 2.0**-20)])
        codes, grid = quantize(rows, everything(rows), bits)
        assert torch.equal(dequantize(codes, grid), rows)
        assert torch.equal(codes.float(), levels.expand(4, -1))

    def test_the_nearest_code_is_taken_and_what_is_outside_is_clipped(self) -> None:
        rows = torch.tensor([[0.49, 0.51, -1.4, -1.6, 5.0, -5.0, 0.0]])
        assert encode(rows, Grid(torch.ones(1, 1), 0), 3).tolist() == [[0, 1, -1, -2, 3, -3, 0]]

    @every_width
    def test_what_is_not_kept_is_zero_and_plays_no_part(self, bits: int) -> None:
        rows = random_tensor(10, 40)
        kept = random_tensor(10, 40, seed=1) > 0.5
        codes, grid = quantize(rows, kept, bits)
        assert not codes[~kept].any()
        louder = torch.where(kept, rows, 100 * rows)
        again, grid_again = quantize(louder, kept, bits)
        assert torch.equal(again, codes)
        assert torch.equal(grid_again.step, grid.step)
        assert grid_again.exponent == grid.exponent

    @every_width
    def test_zeros_stay_zeros(self, bits: int) -> None:
        rows = torch.stack([torch.zeros(6), torch.ones(6), torch.zeros(6)])
        codes, grid = quantize(rows, everything(rows), bits)
        assert grid.step[:, 0].tolist()[::2] == [0.0, 0.0]
        assert codes.tolist() == [[0] * 6, [top(bits)] * 6, [0] * 6]
        codes, grid = quantize(rows[:1], everything(rows[:1]), bits)
        assert (codes.any().item(), grid.step.item(), grid.exponent) == (False, 0.0, 0)


class TestMagnitudes:
    @every_width
    @pytest.mark.parametrize("power", [-125, -100, -60, -1, 0, 1, 60, 100, 123])
    def test_a_power_of_two_changes_the_scales_alone(self, bits: int, power: int) -> None:
        rows = random_tensor(8, 30).clamp(-4, 4)
        rows[:, 0] = 1.5
        codes, grid = quantize(rows, everything(rows), bits)
        moved = torch.ldexp(rows, torch.tensor(power))
        again, grid_again = quantize(moved, everything(rows), bits)
        tiny = 2.0**-126  # below it float32 itself has fewer digits
        fine = (grid.step.double() * 2.0**power >= tiny).flatten()
        assert torch.equal(again[fine], codes[fine])
        assert torch.equal(grid_again.step[fine], torch.ldexp(grid.step, torch.tensor(power))[fine])
        assert grid_again.exponent == max(grid.exponent + power, -126)

    @every_width
    @pytest.mark.parametrize("largest", [1e-45, 1e-40, 1e-38, 1e-30, 1e-12, 1e12, 1e30, 3e38])
    def test_the_error_is_small_at_any_magnitude(self, bits: int, largest: float) -> None:
        rows = random_tensor(6, 50)
        rows = (rows.double() / rows.abs().max() * largest).float()
        codes, grid = quantize(rows, everything(rows), bits)
        decoded = dequantize(codes, grid)
        assert bool(torch.isfinite(decoded).all())
        assert -128 <= grid.exponent <= 127, "it is one byte of the record"
        normal = random_tensor(6, 50)
        usual = relative_error(normal, dequantize(*quantize(normal, everything(rows), bits)))
        assert relative_error(rows, decoded) <= (1.01 * usual if largest > 1e-35 else 1.0)

    @every_width
    def test_a_quiet_channel_beside_a_loud_one_keeps_its_weights(self, bits: int) -> None:
        rows = random_tensor(2, 50)
        alone, _ = quantize(rows[1:], everything(rows[1:]), bits)
        rows[0] *= 1000
        both, _ = quantize(rows, everything(rows), bits)
        assert torch.equal(both[1:], alone)

    @every_width
    def test_a_channel_too_quiet_for_float16_becomes_zero_or_stays_near(self, bits: int) -> None:
        rows = torch.stack([torch.ones(20), *(random_tensor(20) * 10.0**-power for power in range(1, 45))])
        codes, grid = quantize(rows, everything(rows), bits)
        decoded = dequantize(codes, grid)
        assert bool(torch.isfinite(decoded).all())
        norm = rows.double().square().sum(dim=1)
        assert bool(((decoded.double() - rows.double()).square().sum(dim=1) <= norm).all())
        assert not codes[grid.step.flatten() == 0].any()


LAYOUTS: tuple[tuple[ScalePer, int | None, tuple[int, int]], ...] = (
    ("tensor", None, (1, 1)),
    ("channel", None, (6, 1)),
    ("group", 2, (6, 12)),
    ("group", 8, (6, 3)),
    ("group", 24, (6, 1)),
)
every_layout = pytest.mark.parametrize(("scale_per", "group_size", "shape"), LAYOUTS)
either = pytest.mark.parametrize("symmetric", [True, False])


class TestLayouts:
    @every_layout
    @either
    def test_each_scale_is_that_of_its_weights_alone(
        self, scale_per: ScalePer, group_size: int | None, shape: tuple[int, int], symmetric: bool
    ) -> None:
        rows = random_tensor(6, 24)
        grid = fit(rows, everything(rows), 4, scale_per=scale_per, group_size=group_size, symmetric=symmetric)
        assert grid.step.shape == shape
        decoded = dequantize(encode(rows, grid, 4), grid)
        for i, cell in enumerate(rows.reshape(shape[0] * shape[1], -1)):
            alone = fit(cell[None], everything(cell[None]), 4, symmetric=symmetric)
            found = dequantize(encode(cell[None], alone, 4), alone)
            assert relative_error(found, decoded.reshape(shape[0] * shape[1], -1)[i][None]) < 1e-4

    @every_layout
    def test_a_number_of_a_scale_is_spread_over_its_weights(
        self, scale_per: ScalePer, group_size: int | None, shape: tuple[int, int]
    ) -> None:
        numbers = torch.arange(float(shape[0] * shape[1])).reshape(shape)
        wide = spread(numbers, 24).expand(6, 24)
        assert torch.equal(
            wide.reshape(shape[0] * shape[1], -1), numbers.reshape(-1, 1).expand(-1, 144 // numbers.numel())
        )

    @either
    def test_finer_scales_have_less_error(self, symmetric: bool) -> None:
        rows = random_tensor(6, 24) * torch.logspace(-2, 2, 6)[:, None] * torch.logspace(-1, 1, 24)
        found = []
        for scale_per, group_size, _ in (LAYOUTS[0], LAYOUTS[1], LAYOUTS[3], LAYOUTS[2]):
            grid = fit(rows, everything(rows), 3, scale_per=scale_per, group_size=group_size, symmetric=symmetric)
            found.append(relative_error(rows, dequantize(encode(rows, grid, 3), grid)))
        assert found == sorted(found, reverse=True)

    def test_a_large_tensor_has_the_scale_that_its_error_says(self) -> None:
        rows = random_tensor(100, 200)  # more than is looked at together
        grid = fit(rows, everything(rows), 3, scale_per="tensor")
        tried = torch.cat([errors(rows.reshape(1, -1), grid.step * share, 3) for share in (0.9, 1.0, 1.1)])
        assert int(tried.argmin()) == 1

    def test_threads_change_nothing(self) -> None:
        rows, before = random_tensor(2, 40000), torch.get_num_threads()
        grids = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for scale_per in ("tensor", "channel"):
                    grids.append(fit(rows, everything(rows), 3, scale_per=scale_per, symmetric=False))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(one.step, two.step) for one, two in zip(grids, grids[2:], strict=False))

    @pytest.mark.parametrize("group_size", [2, 32])
    def test_groups_that_do_not_divide_a_channel_are_refused(self, group_size: int) -> None:
        rows = random_tensor(4, 27)
        with pytest.raises(CandidateError, match=f"group_size {group_size} does not divide 27 weights a channel"):
            fit(rows, everything(rows), 4, scale_per="group", group_size=group_size)


def asymmetric(rows: Tensor, bits: int, kept: Tensor | None = None) -> tuple[Tensor, Grid]:
    """Codes and grid per channel."""
    kept = everything(rows) if kept is None else kept
    grid = fit(rows, kept, bits, symmetric=False)
    return encode(torch.where(kept, rows, 0.0), grid, bits), grid


class TestAsymmetric:
    @every_width
    @pytest.mark.parametrize("shift", [-3.0, 0.0, 0.5, 3.0])
    def test_codes_lie_where_the_grid_says_and_zero_is_one(self, bits: int, shift: float) -> None:
        rows = random_tensor(20, 40) + shift
        codes, grid = asymmetric(rows, bits)
        assert grid.low is not None
        assert (codes.dtype, grid.low.dtype, grid.low.shape) == (torch.int16, torch.int16, grid.step.shape)
        assert bool(((grid.low <= 0) & (grid.low >= -(2**bits) + 1)).all())
        assert bool(((codes >= grid.low) & (codes < grid.low + 2**bits)).all())
        assert not dequantize(torch.zeros_like(codes), grid).any()

    @every_width
    def test_pruned_weights_stay_zero(self, bits: int) -> None:
        rows = random_tensor(10, 40) + 2
        kept = random_tensor(10, 40, seed=1) > 0.5
        codes, _ = asymmetric(rows, bits, kept)
        assert not codes[~kept].any()

    @every_width
    @pytest.mark.parametrize("shift", [0.0, 1.0])
    def test_it_is_never_worse_than_symmetric(self, bits: int, shift: float) -> None:
        rows = random_tensor(40, 30) + shift
        one = (dequantize(*asymmetric(rows, bits)) - rows).square().sum(dim=1)
        other = (dequantize(*quantize(rows, everything(rows), bits)) - rows).square().sum(dim=1)
        assert bool((one <= other * (1 + 1e-5)).all())
        if shift:
            assert float(one.sum()) < 0.6 * float(other.sum())

    @pytest.mark.parametrize("bits", [2, 3])
    @pytest.mark.parametrize(("columns", "shift"), [(27, 0.0), (60, 0.0), (60, 1.0), (60, -5.0)])
    def test_it_is_nearly_as_good_as_the_best_of_all_zero_points_and_many_steps(
        self, bits: int, columns: int, shift: float
    ) -> None:
        rows = random_tensor(30, columns, seed=columns) + shift
        found = (dequantize(*asymmetric(rows, bits)).double() - rows).square().sum(dim=1)
        steps = (rows.amax(dim=1) - rows.amin(dim=1)).clamp(min=rows.abs().max())[:, None] / top(bits)
        best = torch.full_like(found, torch.inf)
        for zero in range(2**bits):
            levels = torch.arange(2.0**bits) - zero
            for share in torch.linspace(0.02, 1, 100):
                distance = (rows[..., None] - levels * (steps * share)[..., None]).abs().amin(dim=-1)
                best = torch.minimum(best, distance.double().square().sum(dim=1))
        assert float(found.sum() / best.sum()) < 1.03

    @every_width
    def test_weights_that_are_on_levels_come_back(self, bits: int) -> None:
        for low in {0, -1, -(2 ** (bits - 1)), -(2**bits) + 1}:
            levels = torch.arange(low, low + 2**bits).float()
            rows = torch.stack([levels * scale for scale in (0.25, 1.5, 2.0**-20)])
            codes, grid = asymmetric(rows, bits)
            assert torch.equal(dequantize(codes, grid), rows)
            assert torch.equal(codes.float(), levels.expand(3, -1))

    @every_width
    def test_of_zeros_everything_is_zero(self, bits: int) -> None:
        codes, grid = asymmetric(torch.zeros(3, 5), bits)
        assert grid.low is not None
        assert not torch.cat([codes.float(), grid.step, grid.low], dim=1).any()
        assert grid.exponent == 0

    @every_width
    @pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-30, 1e30, 3e38])
    def test_the_error_is_small_at_any_magnitude(self, bits: int, largest: float) -> None:
        normal = random_tensor(6, 50) + 0.3
        rows = (normal.double() / normal.abs().max() * largest).float()
        decoded = dequantize(*asymmetric(rows, bits))
        assert bool(torch.isfinite(decoded).all())
        usual = relative_error(normal, dequantize(*asymmetric(normal, bits)))
        assert relative_error(rows, decoded) <= (1.05 * usual if largest > 1e-35 else 1.0)
