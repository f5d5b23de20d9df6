"""Codebooks: against every partition of tiny layers, against the paper's linear initialisation, and their contract."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.quantization.codebook import dequantize, encode, fit
from spaces.errors import CandidateError
from tests.models import random_tensor

every_width = pytest.mark.parametrize("bits", range(1, 9))


def everything(rows: Tensor) -> Tensor:
    return torch.ones_like(rows, dtype=torch.bool)


def error(rows: Tensor, kept: Tensor, entries: Tensor, weights: Tensor | None = None) -> float:
    """Weighted squared error of the kept weights, float64."""
    lost = (dequantize(encode(rows, kept, entries), entries).double() - rows.double()).square()
    return float((lost * (1.0 if weights is None else weights.double()))[kept].sum())


def least_error(values: list[float], count: int, weights: list[float]) -> float:
    """The definition: of all partitions of numbers on the line into `count` runs, the least weighted squared error."""
    order = np.argsort(values)
    x, w = np.array(values)[order], np.array(weights)[order]
    found = np.inf
    for cuts in itertools.combinations(range(1, len(x)), min(count, len(x)) - 1):
        runs = list(itertools.pairwise([0, *cuts, len(x)]))
        means = [np.average(x[a:b], weights=w[a:b]) for a, b in runs]
        found = min(found, sum((w[a:b] * (x[a:b] - m) ** 2).sum() for (a, b), m in zip(runs, means, strict=True)))
    return float(found)


class TestOptimum:
    @pytest.mark.parametrize(("bits", "size"), [(1, 12), (2, 12), (2, 24), (3, 11), (3, 15)])
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("weighted", [False, True])
    def test_it_is_the_best_of_all_partitions(self, bits: int, size: int, seed: int, weighted: bool) -> None:
        rows = random_tensor(1, size, seed=seed) ** (1 + 2 * (seed % 2))  # even and heavy tails
        weights = random_tensor(1, size, seed=seed + 100).square() + 0.01 if weighted else torch.ones(1, size)
        entries, _ = fit(rows, everything(rows), bits, weights if weighted else None)
        best = least_error(rows.flatten().tolist(), 2**bits - 1, weights.flatten().tolist())
        rounding = float((weights * (rows.abs() * 2.0**-11).square()).sum())  # of entries to float16
        if weighted:  # a weight may lie nearer to another entry than to that of its run
            assert error(rows, everything(rows), entries, weights) <= best + 2 * rounding
        else:
            assert error(rows, everything(rows), entries) == pytest.approx(best, rel=1e-3, abs=2 * rounding)

    @pytest.mark.parametrize("bits", [2, 3, 4])
    @pytest.mark.parametrize("power", [1, 3])
    def test_entries_are_the_means_of_their_weights(self, bits: int, power: int) -> None:
        rows = random_tensor(40, 300) ** power  # more different weights than places to cut
        entries, _ = fit(rows, everything(rows), bits)
        codes = encode(rows, everything(rows), entries)
        for k, entry in enumerate(entries, 1):
            assert float(rows[codes == k].double().mean()) == pytest.approx(float(entry), rel=3e-3, abs=3e-3)

    @every_width
    @pytest.mark.parametrize("kind", ["normal", "heavy", "pruned", "few"])
    def test_it_is_never_worse_than_lloyd_from_the_linear_initialisation(self, bits: int, kind: str) -> None:
        rows = random_tensor(30, 50)
        kept = rows.abs() > 1 if kind == "pruned" else everything(rows)
        rows = {"heavy": rows**3, "few": rows.round()}.get(kind, rows)
        entries, _ = fit(rows, kept, bits)
        x = rows[kept].double()
        centres = torch.linspace(float(x.min()), float(x.max()), 2**bits - 1, dtype=torch.float64)  # section 3.2
        for _ in range(100):
            nearest = (x[:, None] - centres).abs().argmin(dim=1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, x)
            counts = torch.bincount(nearest, minlength=len(centres))
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        lloyd = float((x[:, None] - centres).square().amin(dim=1).sum())
        assert error(rows, kept, entries) <= lloyd * (1 + 1e-3) + float(x.square().sum()) * 2.0**-23

    def test_a_weight_that_counts_more_is_met_more_exactly(self) -> None:
        rows = random_tensor(8, 100)
        fisher = torch.where(rows > 1, 1000.0, 1.0)
        plain, weighted = (fit(rows, everything(rows), 3, weights)[0] for weights in (None, fisher))
        assert error(rows, rows > 1, weighted) < 0.3 * error(rows, rows > 1, plain)
        assert error(rows, everything(rows), weighted, fisher) < error(rows, everything(rows), plain, fisher)

    def test_fisher_information_of_zero_everywhere_says_nothing(self) -> None:
        rows = random_tensor(4, 20)
        assert torch.equal(fit(rows, everything(rows), 3, torch.zeros(4, 20))[0], fit(rows, everything(rows), 3)[0])

    @pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
    def test_fisher_information_that_is_none_is_refused(self, bad: float) -> None:
        rows = random_tensor(4, 20)
        weights = torch.ones(4, 20)
        weights[2, 3] = bad
        with pytest.raises(CandidateError, match="Fisher information"):
            fit(rows, everything(rows), 3, weights)


class TestEntries:
    @every_width
    @pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-30, 1.0, 1e30, 3.4e38])
    def test_they_increase_and_are_exact_in_float16_times_a_power_of_two(self, bits: int, largest: float) -> None:
        rows = random_tensor(4, 200)
        rows = (rows.double() / rows.abs().max() * largest).float()
        entries, exponent = fit(rows, everything(rows), bits)
        assert (entries.dtype, entries.shape) == (torch.float32, (2**bits - 1,))
        assert -128 <= exponent <= 127, "it is one byte of the record"
        assert bool(torch.isfinite(entries).all())
        halves = (entries.double() * 2.0**-exponent).half()
        assert torch.equal((halves.double() * 2.0**exponent).float(), entries)
        assert bool((entries[1:] > entries[:-1]).all() if largest > 1e-40 else (entries[1:] >= entries[:-1]).all())

    @every_width
    @pytest.mark.parametrize("values", [[3.0], [-1.9], [1.0, -1.0], [0.0, 0.5], [1.0, 1.0001, 1.0002], [65504.0, 1e-8]])
    def test_few_different_weights_come_back_among_different_entries(self, bits: int, values: list[float]) -> None:
        rows = torch.tensor([values * 4])
        entries, _ = fit(rows, everything(rows), bits)
        assert len(set(entries.tolist())) == 2**bits - 1
        if len(values) < 2**bits:
            assert torch.allclose(dequantize(encode(rows, everything(rows), entries), entries), rows, rtol=2.0**-11)

    @every_width
    @pytest.mark.parametrize("kept", [True, False])
    def test_of_nothing_but_zeros_they_are_zeros(self, bits: int, kept: bool) -> None:
        rows = torch.zeros(3, 4) if kept else random_tensor(3, 4)
        mask = torch.full((3, 4), kept)
        entries, exponent = fit(rows, mask, bits)
        assert (entries.tolist(), exponent) == ([0.0] * (2**bits - 1), 0)
        assert not dequantize(encode(rows, mask, entries), entries).any()

    def test_what_is_not_kept_plays_no_part(self) -> None:
        rows, kept = random_tensor(6, 50), random_tensor(6, 50, seed=1) > 0
        louder = torch.where(kept, rows, 100.0)
        weights = random_tensor(6, 50, seed=2).square()
        for one in (None, weights):
            other = None if one is None else torch.where(kept, one, torch.nan)
            assert torch.equal(fit(rows, kept, 4, one)[0], fit(louder, kept, 4, other)[0])

    @every_width
    def test_the_order_of_the_weights_plays_no_part(self, bits: int) -> None:
        rows = random_tensor(6, 500)
        again = rows.flatten()[torch.randperm(3000, generator=torch.Generator().manual_seed(0))].reshape(60, 50)
        assert torch.equal(fit(rows, everything(rows), bits)[0], fit(again, everything(again), bits)[0])


class TestCodes:
    @every_width
    def test_kept_weights_get_the_nearest_entry_and_others_code_zero(self, bits: int) -> None:
        rows, kept = random_tensor(6, 50), random_tensor(6, 50, seed=1) > 0
        entries, _ = fit(rows, kept, bits)
        codes = encode(rows, kept, entries)
        assert codes.dtype == torch.uint8
        assert not codes[~kept].any()
        assert bool((codes[kept] > 0).all())
        distance = (rows[..., None] - entries).abs()
        taken = (rows - dequantize(codes, entries)).abs()
        assert torch.allclose(taken[kept], distance.amin(dim=-1)[kept], rtol=1e-5, atol=1e-7)

    def test_code_zero_is_the_number_zero_and_others_count_from_one(self) -> None:
        entries = torch.tensor([-2.0, 0.5, 4.0])
        rows = torch.tensor([[-9.0, -0.8, -0.7, 2.2, 2.3, 0.0, 1.0]])
        kept = torch.tensor([[True, True, True, True, True, True, False]])
        codes = encode(rows, kept, entries)
        assert codes.tolist() == [[1, 1, 2, 2, 3, 2, 0]]
        assert dequantize(codes, entries).tolist() == [[-2.0, -2.0, 0.5, 0.5, 4.0, 0.5, 0.0]]
        assert dequantize(codes, entries).dtype == torch.float32

    def test_middles_between_the_largest_floats_are_no_overflow(self) -> None:
        entries = torch.tensor([1e38, 2e38, 3e38])
        rows = torch.tensor([[3.4e38, 2.4e38, 1.1e38]])
        assert encode(rows, everything(rows), entries).tolist() == [[3, 2, 1]]
