"""Uniform quantization: against the best of many scales, at every width, and for weights of any magnitude."""

import math

import pytest
import torch
from torch import Tensor

from compress.quantization.uniform import dequantize, encode, exponent_of, quantize, top
from tests.models import random_tensor

every_width = pytest.mark.parametrize("bits", range(2, 9))


def everything(rows: Tensor) -> Tensor:
    return torch.ones_like(rows, dtype=torch.bool)


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
        codes, scales, exponent = quantize(rows, everything(rows), bits)
        found = (dequantize(codes, scales) - rows).double().square().sum(dim=1)
        plain = (rows.abs().amax(dim=1, keepdim=True) / top(bits) * 2.0**-exponent).half().float() * 2.0**exponent
        assert bool((found <= errors(rows, plain, bits) * (1 + 1e-5)).all())

    @pytest.mark.parametrize("bits", [2, 3, 4])
    @pytest.mark.parametrize("columns", [3, 8, 30])
    def test_it_is_nearly_as_good_as_the_best_of_many_scales(self, bits: int, columns: int) -> None:
        rows = random_tensor(60, columns, seed=columns)
        codes, scales, _ = quantize(rows, everything(rows), bits)
        found = (dequantize(codes, scales) - rows).double().square().sum(dim=1)
        best, norm = least_errors(rows, bits), rows.double().square().sum(dim=1)
        assert float((found - best).clamp(min=0).mean() / best.mean()) < 0.02
        assert bool((found - best <= 0.01 * norm).all())

    @every_width
    def test_its_error_is_that_of_the_nearest_level(self, bits: int) -> None:
        rows = random_tensor(30, 40)
        codes, scales, _ = quantize(rows, everything(rows), bits)
        found = (dequantize(codes, scales) - rows).double().square().sum(dim=1)
        assert found.tolist() == pytest.approx(errors(rows, scales, bits).tolist(), rel=1e-4)

    def test_more_bits_are_never_worse(self) -> None:
        rows = random_tensor(10, 200)
        found = [
            (dequantize(*quantize(rows, everything(rows), bits)[:2]) - rows).square().sum() for bits in range(2, 9)
        ]
        assert found == sorted(found, reverse=True)

    @every_width
    def test_a_scale_is_exact_in_float16_times_a_power_of_two(self, bits: int) -> None:
        rows = random_tensor(50, 20) * torch.logspace(-6, 6, 50)[:, None]
        _, scales, exponent = quantize(rows, everything(rows), bits)
        halves = (scales.double() * 2.0**-exponent).half()
        assert scales.dtype == torch.float32
        assert scales.shape == (50, 1)
        assert torch.equal(halves.double() * 2.0**exponent, scales.double())

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
        codes, _, _ = quantize(rows, everything(rows), bits)
        assert codes.dtype == torch.int8
        assert codes.shape == rows.shape
        assert int(codes.max()) == top(bits) == 2 ** (bits - 1) - 1
        assert int(codes.min()) == -top(bits)

    @every_width
    def test_weights_that_are_on_levels_come_back(self, bits: int) -> None:
        levels = torch.arange(-top(bits), top(bits) + 1).float()
        rows = torch.stack([levels * scale for scale in (0.25, 1.5, 3.0, 2.0**-20)])
        codes, scales, _ = quantize(rows, everything(rows), bits)
        assert torch.equal(dequantize(codes, scales), rows)
        assert torch.equal(codes.float(), levels.expand(4, -1))

    def test_the_nearest_code_is_taken_and_what_is_outside_is_clipped(self) -> None:
        rows = torch.tensor([[0.49, 0.51, -1.4, -1.6, 5.0, -5.0, 0.0]])
        assert encode(rows, torch.ones(1, 1), 3).tolist() == [[0, 1, -1, -2, 3, -3, 0]]

    @every_width
    def test_what_is_not_kept_is_zero_and_plays_no_part(self, bits: int) -> None:
        rows = random_tensor(10, 40)
        kept = random_tensor(10, 40, seed=1) > 0.5
        codes, scales, exponent = quantize(rows, kept, bits)
        assert not codes[~kept].any()
        louder = torch.where(kept, rows, 100 * rows)
        again, scales_again, exponent_again = quantize(louder, kept, bits)
        assert torch.equal(again, codes)
        assert torch.equal(scales_again, scales)
        assert exponent_again == exponent

    @every_width
    def test_zeros_stay_zeros(self, bits: int) -> None:
        rows = torch.stack([torch.zeros(6), torch.ones(6), torch.zeros(6)])
        codes, scales, _ = quantize(rows, everything(rows), bits)
        assert scales[:, 0].tolist()[::2] == [0.0, 0.0]
        assert codes.tolist() == [[0] * 6, [top(bits)] * 6, [0] * 6]
        codes, scales, exponent = quantize(rows[:1], everything(rows[:1]), bits)
        assert (codes.any().item(), scales.item(), exponent) == (False, 0.0, 0)


class TestMagnitudes:
    @every_width
    @pytest.mark.parametrize("power", [-125, -100, -60, -1, 0, 1, 60, 100, 123])
    def test_a_power_of_two_changes_the_scales_alone(self, bits: int, power: int) -> None:
        rows = random_tensor(8, 30).clamp(-4, 4)
        rows[:, 0] = 1.5
        codes, scales, exponent = quantize(rows, everything(rows), bits)
        moved = torch.ldexp(rows, torch.tensor(power))
        again, scales_again, exponent_again = quantize(moved, everything(rows), bits)
        tiny = 2.0**-126  # below it float32 itself has fewer digits
        fine = (scales.double() * 2.0**power >= tiny).flatten()
        assert torch.equal(again[fine], codes[fine])
        assert torch.equal(scales_again[fine], torch.ldexp(scales, torch.tensor(power))[fine])
        assert exponent_again == max(exponent + power, -126)

    @every_width
    @pytest.mark.parametrize("largest", [1e-45, 1e-40, 1e-38, 1e-30, 1e-12, 1e12, 1e30, 3e38])
    def test_the_error_is_small_at_any_magnitude(self, bits: int, largest: float) -> None:
        rows = random_tensor(6, 50)
        rows = (rows.double() / rows.abs().max() * largest).float()
        codes, scales, exponent = quantize(rows, everything(rows), bits)
        decoded = dequantize(codes, scales)
        assert bool(torch.isfinite(decoded).all())
        assert -128 <= exponent <= 127, "it is one byte of the record"
        normal = random_tensor(6, 50)
        usual = relative_error(normal, dequantize(*quantize(normal, everything(rows), bits)[:2]))
        assert relative_error(rows, decoded) <= (1.01 * usual if largest > 1e-35 else 1.0)

    @every_width
    def test_a_quiet_channel_beside_a_loud_one_keeps_its_weights(self, bits: int) -> None:
        rows = random_tensor(2, 50)
        alone, _, _ = quantize(rows[1:], everything(rows[1:]), bits)
        rows[0] *= 1000
        both, _, _ = quantize(rows, everything(rows), bits)
        assert torch.equal(both[1:], alone)

    @every_width
    def test_a_channel_too_quiet_for_float16_becomes_zero_or_stays_near(self, bits: int) -> None:
        rows = torch.stack([torch.ones(20), *(random_tensor(20) * 10.0**-power for power in range(1, 45))])
        codes, scales, _ = quantize(rows, everything(rows), bits)
        decoded = dequantize(codes, scales)
        assert bool(torch.isfinite(decoded).all())
        norm = rows.double().square().sum(dim=1)
        assert bool(((decoded.double() - rows.double()).square().sum(dim=1) <= norm).all())
        assert not codes[scales.flatten() == 0].any()
