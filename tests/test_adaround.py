"""AdaRound: against rounding to nearest on many inputs, and against all ways of rounding on tiny rows."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.quantization.adaround import adaround
from compress.quantization.uniform import Grid, dequantize, encode, fit, top
from tests.models import random_tensor

GRIDS: dict[str, dict[str, Any]] = {
    "tensor": {"scale_per": "tensor"},
    "channel": {"scale_per": "channel"},
    "group": {"scale_per": "group", "group_size": 4},
    "asymmetric": {"scale_per": "channel", "symmetric": False},
    "asymmetric groups": {"scale_per": "group", "group_size": 4, "symmetric": False},
}
every_grid = pytest.mark.parametrize("how", GRIDS.values(), ids=list(GRIDS))


def hessian_of(n: int, seed: int = 0) -> Tensor:
    """Mean of x x^T for correlated, non-negative inputs, (1, n, n)."""
    inputs = (random_tensor(4 * n, n, seed=seed) @ random_tensor(n, n, seed=seed + 100) / n**0.5).relu()
    return torch.stack([inputs.T @ inputs / len(inputs)])


def everything(rows: Tensor) -> Tensor:
    return torch.ones_like(rows, dtype=torch.bool)


def errors(rows: Tensor, decoded: Tensor, hessian: Tensor) -> Tensor:
    """The definition, in float64: dW H dW^T of each row, (channels,)."""
    lost = (rows.double() - decoded.double()).reshape(len(hessian), -1, rows.shape[1])
    return torch.sum((lost @ hessian.double()) * lost, dim=2).reshape(len(rows))


def of_codes(rows: Tensor, codes: Tensor, grid: Grid, hessian: Tensor) -> Tensor:
    return errors(rows, dequantize(codes, grid), hessian)


def nearest(rows: Tensor, kept: Tensor, grid: Grid, bits: int) -> Tensor:
    return torch.where(kept, encode(rows, grid, bits), 0)


class TestError:
    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    @pytest.mark.parametrize("n", [16, 72])
    def test_it_is_at_most_two_thirds_of_that_of_nearest(self, n: int, bits: int) -> None:
        for seed in range(4):
            rows, hessian = random_tensor(12, n, seed=seed), hessian_of(n, seed)
            grid = fit(rows, everything(rows), bits)
            plain = of_codes(rows, nearest(rows, everything(rows), grid, bits), grid, hessian)
            learned = of_codes(rows, adaround(rows, everything(rows), grid, bits, hessian), grid, hessian)
            assert (learned <= plain).all()
            assert float(learned.sum()) < float(plain.sum()) * 2 / 3

    @every_grid
    @pytest.mark.parametrize("bits", [2, 4])
    @pytest.mark.parametrize("ratio", [0.0, 0.5])
    def test_no_row_is_worse_on_any_grid(self, how: dict[str, Any], bits: int, ratio: float) -> None:
        rows, hessian = random_tensor(10, 24), hessian_of(24)
        kept = rows.abs() >= rows.abs().quantile(ratio)
        grid = fit(rows, kept, bits, **how)
        codes = adaround(rows, kept, grid, bits, hessian)
        plain = of_codes(rows, nearest(rows, kept, grid, bits), grid, hessian)
        learned = of_codes(rows, codes, grid, hessian)
        assert (learned <= plain).all()
        assert float(learned.sum()) < 0.9 * float(plain.sum())
        assert not codes[~kept].any()

    @pytest.mark.parametrize("ratio", [0.0, 0.5])
    @every_grid
    def test_tiny_rows_are_rounded_nearly_as_well_as_can_be(self, how: dict[str, Any], ratio: float) -> None:
        """Three of four rows have the least error there is, and 40 rows together at most 1.2 times as much."""
        found, least, n, bits = [], [], 4 if "group_size" in how else 6, 3
        for seed in range(10):
            rows, hessian = random_tensor(4, n, seed=seed), hessian_of(n, seed)
            kept = rows.abs() >= rows.abs().quantile(ratio)
            grid = fit(rows, kept, bits, **how)
            found.append(of_codes(rows, adaround(rows, kept, grid, bits, hessian), grid, hessian))
            least.append(exhaustive(rows, kept, grid, bits, hessian))
        learned, best = torch.cat(found), torch.cat(least)
        assert (learned >= best * (1 - 1e-6)).all()
        assert float((learned / best).quantile(0.75)) < 1 + 1e-6
        assert float(learned.sum()) < 1.2 * float(best.sum())

    def test_with_inputs_that_know_nothing_of_each_other_nearest_is_best(self) -> None:
        rows = random_tensor(8, 20)
        grid = fit(rows, everything(rows), 4)
        codes = adaround(rows, everything(rows), grid, 4, torch.eye(20)[None])
        assert torch.equal(codes, encode(rows, grid, 4))

    def test_more_steps_find_more(self) -> None:
        rows, hessian = random_tensor(16, 64), hessian_of(64)
        grid = fit(rows, everything(rows), 3)

        def total(steps: int) -> float:
            codes = adaround(rows, everything(rows), grid, 3, hessian, steps=steps)
            return float(of_codes(rows, codes, grid, hessian).sum())

        assert total(400) < total(100) < total(0)


def exhaustive(rows: Tensor, kept: Tensor, grid: Grid, bits: int, hessian: Tensor) -> Tensor:
    """The least error of each row over all ways of rounding its weights up and down, (channels,)."""
    shape, n = rows.shape, rows.shape[1]
    step = grid.step.repeat_interleave(n // grid.step.shape[1], dim=1).expand(shape)
    low = torch.full_like(step, -top(bits))
    if grid.low is not None:
        low = grid.low.float().repeat_interleave(n // grid.low.shape[1], dim=1).expand(shape)
    high = torch.full_like(step, top(bits)) if grid.low is None else low + 2**bits - 1
    below = torch.where(step > 0, rows / step, 0.0).floor()
    best = torch.full(shape[:1], torch.inf, dtype=torch.float64)
    for up in product((0.0, 1.0), repeat=n):
        codes = torch.where(kept, (below + torch.tensor(up)).clamp(low, high), 0.0)
        best = torch.minimum(best, errors(rows, codes * step, hessian))
    return best


class TestCodes:
    @every_grid
    @pytest.mark.parametrize("bits", [2, 3, 8])
    def test_they_are_the_next_below_or_above_within_the_grid(self, how: dict[str, Any], bits: int) -> None:
        rows = random_tensor(6, 16)
        grid = fit(rows, everything(rows), bits, **how)
        codes = adaround(rows, everything(rows), grid, bits, hessian_of(16))
        plain = encode(rows, grid, bits)
        assert codes.dtype == plain.dtype
        assert int((codes - plain).abs().max()) <= 1
        if grid.low is None:
            assert int(codes.abs().max()) <= top(bits)
        else:
            low = grid.low.repeat_interleave(16 // grid.low.shape[1], dim=1)
            assert (codes >= low).all()
            assert (codes <= low + 2**bits - 1).all()

    def test_the_same_arguments_give_the_same_codes(self) -> None:
        rows, hessian = random_tensor(6, 16), hessian_of(16)
        grid = fit(rows, everything(rows), 3)
        first = adaround(rows, everything(rows), grid, 3, hessian)
        torch.randn(3)
        assert torch.equal(adaround(rows, everything(rows), grid, 3, hessian), first)

    def test_weights_that_lie_on_the_grid_stay_there(self) -> None:
        codes = torch.tensor([[1, -3, 0, 2], [3, 0, -1, -2]], dtype=torch.int8)
        grid = Grid(torch.tensor([[0.5], [0.25]]), 0)
        rows = dequantize(codes, grid)
        assert torch.equal(adaround(rows, everything(rows), grid, 3, hessian_of(4)), codes)

    def test_a_row_of_zeros_has_zeros(self) -> None:
        rows = random_tensor(3, 8) * torch.tensor([[1.0], [0.0], [1.0]])
        grid = fit(rows, everything(rows), 3)
        assert not adaround(rows, everything(rows), grid, 3, hessian_of(8))[1].any()

    def test_groups_of_a_convolution_have_their_own_inputs(self) -> None:
        rows, hessian = random_tensor(6, 9), torch.cat([hessian_of(9, seed) for seed in range(3)])
        grid = fit(rows, everything(rows), 3)
        together = of_codes(rows, adaround(rows, everything(rows), grid, 3, hessian), grid, hessian)
        for i in range(3):
            own = slice(2 * i, 2 * i + 2)
            part = Grid(grid.step[own], grid.exponent)
            codes = adaround(rows[own], everything(rows[own]), part, 3, hessian[i, None])
            alone = of_codes(rows[own], codes, part, hessian[i, None])
            assert torch.allclose(together[own], alone)

    @pytest.mark.parametrize("size", [1e-30, 1e-3, 1e20])
    def test_the_unit_of_weights_and_inputs_does_not_matter(self, size: float) -> None:
        rows, hessian = random_tensor(6, 16), hessian_of(16)
        grid, scaled = fit(rows, everything(rows), 3), fit(rows * 2.0**60, everything(rows), 3)
        codes = adaround(rows, everything(rows), grid, 3, hessian)
        assert torch.equal(adaround(rows * 2.0**60, everything(rows), scaled, 3, hessian), codes)
        other = adaround(rows, everything(rows), grid, 3, hessian * size)
        gained = of_codes(rows, other, grid, hessian).sum() / of_codes(rows, codes, grid, hessian).sum()
        assert float(gained) == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize("bad", [torch.zeros(1, 16, 16), torch.full((1, 16, 16), torch.nan)], ids=["zero", "nan"])
    def test_a_hessian_that_says_nothing_gives_the_nearest(self, bad: Tensor) -> None:
        rows = random_tensor(6, 16)
        grid = fit(rows, everything(rows), 3)
        assert torch.equal(adaround(rows, everything(rows), grid, 3, bad), encode(rows, grid, 3))

    def test_what_is_not_kept_is_made_up_for(self) -> None:
        """The error is less than if the pruned weights were taken for zeros from the start."""
        rows, hessian = random_tensor(12, 32), hessian_of(32)
        kept = rows.abs() >= rows.abs().median()
        grid = fit(rows, kept, 4)
        codes, blind = (adaround(part, kept, grid, 4, hessian) for part in (rows, rows * kept))
        assert of_codes(rows, codes, grid, hessian).sum() < 0.9 * of_codes(rows, blind, grid, hessian).sum()

    def test_the_weights_are_left_as_they_are(self) -> None:
        rows = torch.nn.Parameter(random_tensor(6, 16))
        codes = adaround(rows, everything(rows), fit(rows.detach(), everything(rows), 3), 3, hessian_of(16))
        assert not codes.requires_grad
        assert torch.equal(rows, random_tensor(6, 16))
