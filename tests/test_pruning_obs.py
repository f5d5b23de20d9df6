"""Optimal Brain Surgeon: against exhaustive search over all masks, each with its least-squares solution."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from compress.pruning.magnitude import magnitude
from compress.pruning.obs import prune_rows, saliency
from tests.models import random_tensor


def hessian_of(n: int, seed: int = 0, samples: int = 40) -> Tensor:
    """Mean of x x^T for correlated, non-negative inputs, (1, n, n)."""
    inputs = (random_tensor(samples, n, seed=seed) @ random_tensor(n, n, seed=seed + 100)).relu().double()
    return (inputs.T @ inputs / samples + 0.02 * torch.eye(n))[None]


def error(row: Tensor, other: Tensor, hessian: Tensor) -> float:
    lost = (row - other).double()
    return float(lost @ hessian[0].double() @ lost)


def best_values(row: Tensor, kept: list[int], hessian: Tensor) -> Tensor:
    """The least-squares solution that is zero outside `kept`: H_kk v = H_k: w."""
    h, values = hessian[0].double(), torch.zeros(len(row), dtype=torch.float64)
    if kept:
        values[kept] = torch.linalg.solve(h[kept][:, kept], h[kept] @ row.double())
    return values


def exhaustive(row: Tensor, count: int, hessian: Tensor) -> float:
    """The least error of any `len(row) - count` weights with any values."""
    choices = combinations(range(len(row)), len(row) - count)
    return min(error(row, best_values(row, list(kept), hessian), hessian) for kept in choices)


class TestSaliency:
    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_the_error_of_removing_that_weight_alone(self, seed: int) -> None:
        rows, hessian = random_tensor(3, 6, seed=seed), hessian_of(6, seed)
        scores = saliency(rows, hessian, damping=0)
        for i, row in enumerate(rows):
            for p in range(6):
                values = best_values(row, [j for j in range(6) if j != p], hessian)
                assert float(scores[i, p]) == pytest.approx(error(row, values, hessian), rel=1e-6)

    def test_blocks_have_their_own_hessian(self) -> None:
        rows, first, second = random_tensor(4, 5), hessian_of(5, 1), hessian_of(5, 2)
        apart = torch.cat([saliency(rows[:2], first), saliency(rows[2:], second)])
        assert torch.allclose(saliency(rows, torch.cat([first, second])), apart)

    def test_with_inputs_that_know_nothing_of_each_other_it_is_magnitude(self) -> None:
        rows = random_tensor(4, 5)
        assert torch.allclose(saliency(rows, torch.eye(5)[None], damping=0), magnitude(rows).double().square())

    def test_damping_is_a_share_of_the_mean_diagonal(self) -> None:
        rows, hessian = random_tensor(4, 5), hessian_of(5)
        extra = 0.1 * hessian[0].diagonal().mean() * torch.eye(5)
        assert torch.allclose(saliency(rows, hessian, damping=0.1), saliency(rows, hessian + extra, damping=0))

    def test_a_dead_input_is_saved_by_damping(self) -> None:
        hessian = hessian_of(5)
        hessian[:, 2, :] = hessian[:, :, 2] = 0
        with pytest.raises(ValueError, match="dampened by 0 of its mean, is not positive definite"):
            saliency(torch.ones(1, 5), hessian, damping=0)
        assert saliency(torch.ones(1, 5), hessian).argmin() == 2


class TestPruneRows:
    @pytest.mark.parametrize("count", range(7))
    def test_the_values_are_the_least_squares_solution_for_what_is_kept(self, count: int) -> None:
        rows, hessian = random_tensor(5, 6), hessian_of(6)
        left, kept = prune_rows(rows, hessian, count, damping=0)
        assert (kept.sum(dim=1) == 6 - count).all()
        assert not left[~kept].any()
        for row, values, mask in zip(rows, left, kept, strict=True):
            best = best_values(row, mask.nonzero().flatten().tolist(), hessian)
            assert torch.allclose(values.double(), best, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("seed", range(10))
    def test_one_weight_is_removed_as_well_as_can_be(self, seed: int) -> None:
        rows, hessian = random_tensor(4, 8, seed=seed), hessian_of(8, seed)
        left, _ = prune_rows(rows, hessian, 1, damping=0)
        for row, values in zip(rows, left, strict=True):
            assert error(row, values, hessian) == pytest.approx(exhaustive(row, 1, hessian), rel=1e-5)

    @pytest.mark.parametrize("count", [2, 4, 6])
    def test_several_are_removed_nearly_as_well_as_can_be(self, count: int) -> None:
        ratios = []
        for seed in range(8):
            rows, hessian = random_tensor(4, 8, seed=seed), hessian_of(8, seed)
            left, _ = prune_rows(rows, hessian, count, damping=0)
            for row, values in zip(rows, left, strict=True):
                ratios.append(error(row, values, hessian) / exhaustive(row, count, hessian))
        assert min(ratios) > 1 - 1e-5  # nothing is better than the best
        assert max(ratios) < 2
        assert sum(ratios) / len(ratios) < 1.1

    def test_one_pass_has_every_sparsity_on_its_way(self) -> None:
        rows, hessian = random_tensor(4, 8), hessian_of(8)
        masks = [prune_rows(rows, hessian, count)[1] for count in range(9)]
        assert all(bool((~more | less).all()) for less, more in pairwise(masks))

    def test_it_has_a_third_of_the_error_of_zeroing_as_many_by_magnitude(self) -> None:
        rows, hessian = random_tensor(16, 24), hessian_of(24, samples=60)
        left, kept = prune_rows(rows, hessian, 12)
        least = magnitude(rows).argsort(dim=1)[:, :12]
        plain = rows.scatter(1, least, 0.0)
        alone = rows * kept

        def total(other: Tensor) -> float:
            return sum(error(row, values, hessian) for row, values in zip(rows, other, strict=True))

        assert total(left) < total(plain) / 3
        assert total(left) < total(alone)

    def test_rows_and_blocks_do_not_mind_each_other(self) -> None:
        rows, first, second = random_tensor(6, 5), hessian_of(5, 1), hessian_of(5, 2)
        left, kept = prune_rows(rows, torch.cat([first, second]), 2)
        for i, row in enumerate(rows):
            alone, mask = prune_rows(row[None], first if i < 3 else second, 2)
            assert torch.equal(kept[i], mask[0])
            assert torch.allclose(left[i], alone[0], atol=1e-6)

    def test_the_weights_are_left_as_they_are(self) -> None:
        rows = random_tensor(3, 5)
        prune_rows(rows, hessian_of(5), 3)
        assert torch.equal(rows, random_tensor(3, 5))
