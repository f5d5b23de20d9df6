"""The sweep and the descent on tiny layers: against OBQ with explicit inverses, and against every rounding there is."""

import itertools

import pytest
import torch
from torch import Tensor

from compress.hessian import DAMPENING, UnusableHessianError, curvature, output_error
from compress.pruning import sparsegpt, unstructured
from compress.pruning.refilling import refill
from compress.quantization.descent import descend, slope
from compress.quantization.gptq import sweep
from compress.quantization.levels import Steps
from spaces.choice import SemiStructured, Unstructured
from tests.models import random_tensor


def correlated(*shape: int, seed: int = 0) -> Tensor:
    """A Hessian of correlated inputs, (blocks, n, n)."""
    blocks, n = shape
    mixed = random_tensor(blocks, 200, n, seed=seed) @ random_tensor(blocks, n, n, seed=seed + 1)
    return mixed.mT @ mixed / 200


def steps_of(step: Tensor, top: int, order: Tensor) -> Steps:
    """Symmetric levels of one job, one step a row: (rows,)."""
    bound = torch.full_like(step, top)
    member = torch.ones(len(order), 1, order.shape[1])
    blocked, low, high = (one.reshape(1, len(order), 1, -1) for one in (step, -bound, bound))
    return Steps(blocked, torch.ones(1), low, high, member, shared=False)


def dampened(hessian: Tensor, share: float) -> Tensor:
    wide = hessian.double()
    return wide + share * wide.diagonal().mean() * torch.eye(len(wide), dtype=torch.float64)


def obq(row: Tensor, kept: Tensor, hessian: Tensor, step: float, top: int, order: list[int]) -> tuple[Tensor, float]:
    """GPTQ's eq. 2 and 3 word for word, in a given order: one row, its inverse downdated for each weight."""
    left, rounded, inverse, loss = row.double().clone(), torch.zeros_like(row), torch.linalg.inv(hessian), 0.0
    for j in order:
        nearest = (left[j] / step).round().clamp(-top, top) * step if kept[j] else torch.tensor(0.0)
        rounded[j] = nearest
        error = left[j] - nearest
        loss += float(error**2 / inverse[j, j])
        left -= error / inverse[j, j] * inverse[:, j]  # eq. 2
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]  # eq. 3
        inverse[j], inverse[:, j] = 0.0, 0.0
    return rounded, loss


class TestCurvature:
    @pytest.mark.parametrize("by_diagonal", [True, False])
    def test_the_factor_is_that_of_the_inverse(self, by_diagonal: bool) -> None:
        hessian = correlated(3, 7)
        found = curvature(hessian, by_diagonal=by_diagonal)
        assert found.dampening == DAMPENING[0]
        assert bool((found.factor.tril(-1) == 0).all())
        for block in range(3):
            order = found.order[block]
            expected = torch.linalg.inv(dampened(hessian[block], 0.01)[order][:, order])
            factor = found.factor[block].double()
            assert torch.allclose(factor.T @ factor, expected, rtol=1e-4)
            assert torch.allclose(found.inverse_diagonal[block].double(), expected.diagonal(), rtol=1e-4)
        assert torch.equal(found.order[0], torch.arange(7)) is not by_diagonal

    def test_rows_come_back_from_their_layout(self) -> None:
        rows = random_tensor(5, 6, 4)  # jobs, channels, n
        found = curvature(correlated(3, 4))
        laid_out = found.laid_out(rows)
        assert laid_out.shape == (5, 3, 4, 2)
        assert torch.equal(found.rows(laid_out), rows)
        assert torch.equal(laid_out[2, 1, :, 1], rows[2, 3, found.order[1]])

    def test_more_dampening_is_taken_where_little_does_not_do(self) -> None:
        hessian = torch.eye(6) + 0.0
        hessian[0, 1] = hessian[1, 0] = 1.05  # an eigenvalue of -0.05
        assert curvature(hessian[None]).dampening == 0.08

    @pytest.mark.parametrize(
        ("hessian", "words"),
        [
            (None, "there is no Hessian"),
            (torch.full((1, 3, 3), torch.nan), "not finite"),
            (torch.full((1, 3, 3), torch.inf), "not finite"),
            (torch.zeros(2, 3, 3), "all zero"),
            (torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]), "not positive definite, dampened by 10%"),
        ],
    )
    def test_one_that_cannot_be_used_says_why(self, hessian: Tensor | None, words: str) -> None:
        with pytest.raises(UnusableHessianError, match=words):
            curvature(hessian)

    def test_a_group_without_inputs_does_not_spoil_the_others(self) -> None:
        hessian = torch.cat([correlated(1, 4), torch.zeros(1, 4, 4)])
        assert bool(curvature(hessian).factor.isfinite().all())

    def test_the_output_error_is_that_of_the_outputs(self) -> None:
        inputs, change = random_tensor(50, 2, 5), random_tensor(6, 5, seed=1)
        hessian = torch.einsum("pbm,pbn->bmn", inputs, inputs) / 50
        outputs = torch.einsum("pbn,bcn->pbc", inputs, change.reshape(2, 3, 5)).flatten(1)
        assert torch.allclose(output_error(change, hessian).float(), outputs.square().mean(dim=0), rtol=1e-4)


class TestSweep:
    @pytest.mark.parametrize("by_diagonal", [True, False])
    @pytest.mark.parametrize("columns", [5, 70])  # less than a block of columns, and more than two
    @pytest.mark.parametrize("pruned", [False, True])
    def test_it_is_obq_in_that_order(self, by_diagonal: bool, columns: int, pruned: bool) -> None:
        rows, hessian = random_tensor(6, columns), correlated(2, columns, seed=3)
        step = rows.abs().amax(dim=1) / 3
        kept = rows.abs() > 0.5 if pruned else torch.ones_like(rows, dtype=torch.bool)
        found = curvature(hessian, by_diagonal=by_diagonal)
        mask = found.laid_out(kept[None]) if pruned else None
        values, loss = sweep(found.laid_out(rows[None]), mask, found, steps_of(step, 3, found.order))
        back = found.rows(values)[0]
        for i, row in enumerate(rows):
            block = i // 3
            order = found.order[block].tolist()
            wide = dampened(hessian[block], 0.01)
            expected, its_loss = obq(row, kept[i], wide, float(step[i]), 3, order)
            assert torch.allclose(back[i], expected, atol=1e-5)
            assert float(loss.flatten()[i]) == pytest.approx(its_loss, rel=1e-3)
            difference = back[i].double() - row.double()
            assert float(difference @ wide @ difference) == pytest.approx(its_loss, rel=1e-3)
        assert bool((back[~kept] == 0).all())


def every_rounding(row: Tensor, hessian: Tensor, step: float, top: int) -> float:
    """The least output error of any codes for one row."""
    codes = torch.tensor(list(itertools.product(range(-top, top + 1), repeat=len(row))), dtype=torch.float64)
    difference = codes * step - row.double()
    return float(((difference @ hessian) * difference).sum(dim=1).min())


class TestDescent:
    @pytest.mark.parametrize("seed", range(5))
    def test_no_pass_raises_the_error_and_in_the_end_no_single_code_would_lower_it(self, seed: int) -> None:
        rows, hessian = random_tensor(8, 40, seed=seed), correlated(2, 40, seed=seed)
        step, found = rows.abs().amax(dim=1) / 3, curvature(hessian)
        levels, weights = steps_of(step, 3, found.order), found.laid_out(rows[None])
        values, error = sweep(weights, None, found, levels)
        for _ in range(30):
            descend(values, slope(values, weights, found), None, found, levels)
            now = ((values - weights) * slope(values, weights, found)).sum(dim=2)
            assert bool((now <= error * (1 + 1e-4)).all())
            error = now
        difference, gradient = values - weights, slope(values, weights, found)
        for move in (-1, 1):
            change = levels.step * move
            inside = (values + change).abs() <= 3.5 * levels.step
            gain = 2 * change * gradient + change.square() * found.diagonal  # of each single code alone
            assert bool((gain[inside] >= -1e-3 * error.max()).all())
        assert difference.shape == values.shape

    def test_with_the_sweep_it_comes_near_the_best_codes_of_all(self) -> None:
        rows, hessian = random_tensor(20, 6), correlated(1, 6)
        step, found = rows.abs().amax(dim=1) * 0.8, curvature(hessian)
        levels, weights = steps_of(step, 1, found.order), found.laid_out(rows[None])
        values, swept = sweep(weights, None, found, levels)
        for _ in range(5):
            descend(values, slope(values, weights, found), None, found, levels)
        descended = ((values - weights) * slope(values, weights, found)).sum(dim=2)
        wide = dampened(hessian[0], 0.01)
        best = sum(every_rounding(row, wide, float(one), 1) for row, one in zip(rows, step, strict=True))
        nearest = (rows / step[:, None]).round().clamp(-1, 1) * step[:, None] - rows
        plain = float(((nearest.double() @ wide) * nearest).sum())
        assert best * 0.999 <= float(descended.sum()) <= float(swept.sum()) < plain
        assert float(descended.sum()) < 1.3 * best

    def test_levels_move_to_the_best_step_of_each_row(self) -> None:
        rows, hessian = random_tensor(6, 30), correlated(2, 30)
        step, found = rows.abs().amax(dim=1) / 3, curvature(hessian)
        levels, weights = steps_of(step, 3, found.order), found.laid_out(rows[None])
        values, _ = sweep(weights, None, found, levels)
        moved, at = levels.refitted(values, slope(values, weights, found), found)
        codes = found.rows((values / levels.step).round())[0].double()
        for i, row in enumerate(rows.double()):
            wide = dampened(hessian[i // 3], 0.01)
            best = (row @ wide @ codes[i]) / (codes[i] @ wide @ codes[i])  # least squares
            assert float(moved.step.flatten()[i]) == pytest.approx(float(best), rel=1e-3)
        assert torch.equal(at, (values / levels.step).round() * moved.step)


def least_squares(row: Tensor, kept: Tensor, hessian: Tensor) -> float:
    """The least output error of a row whose other weights make up for those not kept."""
    gone = ~kept
    inverse = torch.linalg.inv(hessian)
    return float(row[gone] @ torch.linalg.solve(inverse[gone][:, gone], row[gone]))


class TestRefilling:
    def test_the_weights_that_stay_are_those_of_least_squares(self) -> None:
        rows, found = random_tensor(2, 6, 12), curvature(correlated(2, 12))
        kept = random_tensor(2, 6, 12, seed=1) > 0  # each row of both jobs has a mask of its own
        weights, mask = found.laid_out(rows), found.laid_out(kept)
        back = found.rows(refill(weights, weights, mask, found, 40))
        assert bool((back[~kept] == 0).all())
        for job, i in itertools.product(range(2), range(6)):
            row, stay, wide = rows[job, i].double(), kept[job, i], dampened(found.raw[i // 3], 0.01)
            expected = torch.linalg.solve(wide[stay][:, stay], wide[stay] @ row)
            assert torch.allclose(back[job, i, stay].double(), expected, atol=1e-3)

    def test_no_step_raises_the_error(self) -> None:
        rows, found = random_tensor(1, 6, 30), curvature(correlated(1, 30))
        weights, mask = found.laid_out(rows), found.laid_out(random_tensor(1, 6, 30, seed=1) > 0)
        errors = []
        for steps in range(8):
            left = refill(weights, weights, mask, found, steps)
            errors.append(((left - weights) * slope(left, weights, found)).sum(dim=2))
        assert all(bool((later <= before).all()) for before, later in itertools.pairwise(errors))

    def test_nothing_pruned_or_all_is_no_trouble(self) -> None:
        rows, found = random_tensor(1, 4, 6), curvature(correlated(1, 6))
        weights = found.laid_out(rows)
        for kept in (torch.ones_like(weights, dtype=torch.bool), torch.zeros_like(weights, dtype=torch.bool)):
            assert torch.equal(refill(weights, weights, kept, found, 5), weights * kept)


class TestMasks:
    def test_one_weight_is_pruned_where_that_costs_least(self) -> None:
        for seed in range(10):
            rows, hessian = random_tensor(1, 8, seed=seed), correlated(1, 8, seed=seed)
            found = curvature(hessian)
            (kept,) = sparsegpt.masks(rows, found, [Unstructured(ratio=1 / 8)], "a site")
            wide, every = dampened(hessian[0], 0.01), torch.eye(8) == 0
            costs = [least_squares(rows[0].double(), mask, wide) for mask in every]
            assert torch.equal(kept[0], every[costs.index(min(costs))])

    def test_half_of_the_weights_is_pruned_nearly_as_well_as_can_be(self) -> None:
        ours = best = magnitude = 0.0
        for seed in range(20):
            row, hessian = random_tensor(1, 8, seed=seed), correlated(1, 8, seed=seed)
            (kept,) = sparsegpt.masks(row, curvature(hessian), [Unstructured(ratio=0.5)], "a site")
            wide = dampened(hessian[0], 0.01)
            every = [[i in chosen for i in range(8)] for chosen in itertools.combinations(range(8), 4)]
            ours += least_squares(row[0].double(), kept[0], wide)
            best += min(least_squares(row[0].double(), torch.tensor(mask), wide) for mask in every)
            magnitude += least_squares(row[0].double(), unstructured.mask(row[0].abs(), 0.5), wide)
        assert best <= ours < 1.6 * best
        assert ours < 0.8 * magnitude

    @pytest.mark.parametrize("ratio", [0.001, 0.3, 0.5, 0.777, 0.999])
    def test_the_ratio_is_met_exactly(self, ratio: float) -> None:
        rows = random_tensor(12, 15)
        (kept,) = sparsegpt.masks(rows, curvature(correlated(3, 15)), [Unstructured(ratio=ratio)], "a site")
        assert int((~kept).sum()) == round(ratio * 180)

    @pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (1, 16), (15, 16)])
    def test_so_is_a_pattern_in_every_group_of_columns(self, n: int, m: int) -> None:
        rows = random_tensor(6, 48)
        (kept,) = sparsegpt.masks(rows, curvature(correlated(2, 48)), [SemiStructured(n=n, m=m)], "a site")
        assert bool((kept.reshape(6, -1, m).sum(dim=2) == n).all())

    def test_each_is_the_same_among_others(self) -> None:
        rows, found = random_tensor(6, 16), curvature(correlated(2, 16))
        prunes: list[Unstructured | SemiStructured] = [Unstructured(ratio=0.5), SemiStructured(n=2, m=4)]
        together = sparsegpt.masks(rows, found, prunes, "a site")
        for prune, kept in zip(prunes, together, strict=True):
            assert torch.equal(sparsegpt.masks(rows, found, [prune], "a site")[0], kept)
