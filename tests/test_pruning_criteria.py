"""Criteria: each against its definition, computed another way on inputs and losses that are really there."""

import dataclasses
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from compress.pruning import unstructured
from compress.pruning.apoz import apoz
from compress.pruning.importance import importance, kept_mask
from compress.pruning.magnitude import channel_scores, magnitude
from compress.pruning.obs import saliency
from compress.pruning.random_scores import random_scores
from compress.pruning.taylor import taylor
from compress.pruning.wanda import wanda
from compress.statistics import SiteStatistics
from spaces.choice import Criterion, NoPruning, SemiStructured, Threshold, Unstructured
from spaces.errors import CandidateError
from tests.models import random_tensor

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


def correlated(samples: int, n: int, seed: int = 0) -> Tensor:
    """Inputs as behind a ReLU: correlated, not centred, of unlike sizes."""
    mixed = random_tensor(samples, n, seed=seed) @ random_tensor(n, n, seed=seed + 1)
    return mixed.relu() * torch.linspace(0.2, 2, n)


def everything(channels: int = 6, n: int = 8) -> SiteStatistics:
    """Statistics of a site that has all of them."""
    inputs = correlated(64, n)
    return SiteStatistics(
        samples=64,
        mean=inputs.mean(dim=0, keepdim=True),
        hessian=(inputs.T @ inputs / 64)[None],
        gradient=random_tensor(channels, n, seed=5),
        fisher=random_tensor(channels, n, seed=6).square(),
        zeros=torch.linspace(0.1, 0.9, channels),
    )


class TestMagnitude:
    def test_it_is_the_absolute_value(self) -> None:
        assert magnitude(torch.tensor([[-2.0, 0.5, -0.0]])).tolist() == [[2.0, 0.5, 0.0]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_it_reads_a_parameter_of_any_type_without_touching_it(self, dtype: torch.dtype) -> None:
        weight = nn.Parameter(random_tensor(5, 5).to(dtype))
        before = weight.detach().clone()
        mask = unstructured.mask(magnitude(weight), 0.4)
        assert mask.tolist() == unstructured.mask(magnitude(before.double()), 0.4).tolist()
        assert torch.equal(weight, before)
        assert not mask.requires_grad

    def test_channels_are_scored_by_their_norms(self) -> None:
        rows = random_tensor(5, 7)
        assert torch.allclose(channel_scores(rows, "l1"), torch.linalg.norm(rows, ord=1, dim=1))
        assert torch.allclose(channel_scores(rows, "l2"), torch.linalg.norm(rows, ord=2, dim=1))

    def test_the_norms_may_disagree(self) -> None:
        rows = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
        assert channel_scores(rows, "l1").argmin() == 1
        assert channel_scores(rows, "l2").argmin() == 0


class TestRandom:
    def test_the_same_name_and_shape_give_the_same_scores(self) -> None:
        rows = torch.zeros(5, 7)
        assert torch.equal(random_scores(rows, "a"), random_scores(rows + 1, "a"))
        assert not torch.equal(random_scores(rows, "a"), random_scores(rows, "b"))

    def test_it_leaves_the_draws_of_others_alone(self) -> None:
        state = torch.get_rng_state()
        random_scores(torch.zeros(5, 7), "a")
        assert torch.equal(torch.get_rng_state(), state)

    def test_it_prunes_evenly(self) -> None:
        scores = random_scores(torch.zeros(100, 100), "a")
        lost = (~unstructured.mask(scores, 0.5)).double()
        assert abs(float(lost.mean(dim=0).std()) - 0.05) < 0.01  # binomial: sqrt(1/4 / 100)
        assert abs(float(lost.mean(dim=1).std()) - 0.05) < 0.01


class TestTaylor:
    def losses(self, rows: Tensor, inputs: Tensor, target: Tensor) -> Tensor:
        """A loss of each sample, linear in the weights, so that the first order is all there is."""
        return ((inputs @ rows.T) * target).sum(dim=1)

    def test_it_is_the_mean_squared_change_of_the_loss_without_the_weight(self) -> None:
        rows, inputs, target = random_tensor(3, 4).double(), correlated(9, 4).double(), random_tensor(9, 3).double()
        gradients = target[:, :, None] * inputs[:, None, :]  # (samples, channels, n)
        scores = taylor(rows, gradients.mean(dim=0), gradients.square().mean(dim=0))
        before = self.losses(rows, inputs, target)
        for i in range(3):
            for j in range(4):
                without = rows.clone()
                without[i, j] = 0
                change = (before - self.losses(without, inputs, target)).square().mean()
                assert float(scores[i, j]) == pytest.approx(float(change), rel=1e-9)

    def test_without_a_fisher_it_is_the_square_of_the_mean_change(self) -> None:
        rows, gradient = random_tensor(3, 4), random_tensor(3, 4, seed=1)
        assert torch.allclose(taylor(rows, gradient, None), (rows * gradient).double().square())

    def test_small_numbers_keep_their_order(self) -> None:
        rows = torch.tensor([[3e-25, 1e-25, 2e-25]])
        assert taylor(rows, None, torch.full((1, 3), 1e-30)).argsort().tolist() == [[1, 2, 0]]

    def test_it_needs_one_of_both(self) -> None:
        with pytest.raises(ValueError, match="neither gradient nor fisher"):
            taylor(torch.ones(1, 1), None, None)


class TestApoz:
    def test_weights_go_by_their_neurons_zeros_and_then_by_magnitude(self) -> None:
        rows = random_tensor(6, 8)
        zeros = torch.tensor([0.5, 0.25, 1.0, 0.25, 0.0, 1 - 2**-20])
        order = apoz(rows, zeros).flatten().argsort().tolist()
        assert order == sorted(range(48), key=lambda i: (1 - float(zeros[i // 8]), float(rows.flatten()[i].abs())))

    @pytest.mark.parametrize("zeros", [0.0, 0.3, 1.0])
    def test_within_neurons_of_equal_zeros_it_is_magnitude(self, zeros: float) -> None:
        rows = random_tensor(6, 8).round(decimals=1)
        assert torch.equal(
            unstructured.mask(apoz(rows, torch.full((6,), zeros)), 0.4), unstructured.mask(magnitude(rows), 0.4)
        )

    def test_neurons_that_are_always_zero_cost_nothing(self) -> None:
        layer, inputs = nn.Linear(5, 6), random_tensor(40, 5)
        with torch.no_grad():
            layer.weight.copy_(random_tensor(6, 5))
            layer.bias.copy_(torch.tensor([0.0, -90.0, 0.1, -90.0, 0.2, -90.0]))
            before = layer(inputs).relu()
            zeros = (before == 0).double().mean(dim=0)
            layer.weight *= unstructured.mask(apoz(layer.weight, zeros), 0.5)
            assert torch.equal(layer(inputs).relu(), before)

    def test_weights_that_are_all_zero_have_scores_too(self) -> None:
        assert apoz(torch.zeros(2, 3), torch.tensor([0.5, 0.1])).tolist() == [[0.0] * 3, [1.0] * 3]


class TestWanda:
    @pytest.mark.parametrize("groups", [1, 2])
    def test_it_is_magnitude_times_the_norm_of_the_input(self, groups: int) -> None:
        rows, inputs = random_tensor(6, 8), [correlated(50, 8, seed=i) for i in range(groups)]
        hessian = torch.stack([x.T @ x / 50 for x in inputs])
        scores = wanda(rows, hessian)
        for i in range(6):
            norms = inputs[i * groups // 6].norm(dim=0)  # ||X_j||_2
            assert torch.allclose(scores[i] * 50**0.5, (rows[i].abs() * norms).double(), rtol=1e-4)

    def test_an_input_that_is_always_zero_goes_first(self) -> None:
        inputs = correlated(50, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0])
        kept = unstructured.mask(wanda(random_tensor(5, 4), (inputs.T @ inputs / 50)[None]), 0.25, per_row=True)
        assert kept.tolist() == [[True, False, True, True]] * 5

    def test_it_beats_magnitude_where_inputs_are_of_unlike_sizes(self) -> None:
        rows, inputs = random_tensor(16, 32), correlated(200, 32) * torch.logspace(-1, 1, 32)
        hessian = (inputs.T @ inputs / 200)[None]

        def error(kept: Tensor) -> float:
            return float((inputs @ (rows * ~kept).T).square().sum())

        by_wanda = unstructured.mask(wanda(rows, hessian), 0.5, per_row=True)
        assert error(by_wanda) < 0.5 * error(unstructured.mask(magnitude(rows), 0.5))


class TestDispatch:
    def test_each_criterion_is_its_function(self) -> None:
        rows, known = random_tensor(6, 8), everything()
        assert known.hessian is not None
        assert known.zeros is not None
        expected = {
            "magnitude": magnitude(rows),
            "random": random_scores(rows, "a"),
            "taylor": taylor(rows, known.gradient, known.fisher),
            "apoz": apoz(rows, known.zeros),
            "wanda": wanda(rows, known.hessian),
            "hessian": saliency(rows, known.hessian),
        }
        assert set(expected) == set(CRITERIA)
        for criterion in CRITERIA:
            scores = importance(criterion, rows, known, "a")
            assert scores.shape == rows.shape
            assert torch.equal(scores, expected[criterion])

    @pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("magnitude", "random")])
    def test_what_a_site_has_not_is_an_error_that_says_why(self, criterion: Criterion) -> None:
        nothing = SiteStatistics(samples=4, reason="an embedding has no inputs to multiply")
        with pytest.raises(CandidateError, match=f"site head: criterion {criterion} needs .*space.rules") as caught:
            importance(criterion, torch.ones(2, 2), nothing, "head")
        assert ("an embedding has no inputs" in str(caught.value)) == (criterion in ("wanda", "hessian"))

    @pytest.mark.parametrize("criterion", ["magnitude", "random"])
    def test_others_need_nothing(self, criterion: Criterion) -> None:
        assert importance(criterion, torch.ones(2, 2), SiteStatistics(samples=0), "head").shape == (2, 2)

    def test_numbers_that_are_none_are_refused(self) -> None:
        known = dataclasses.replace(everything(), fisher=torch.full((6, 8), torch.nan))
        with pytest.raises(CandidateError, match="site a: criterion taylor gives scores that are not finite"):
            importance("taylor", random_tensor(6, 8), known, "a")

    def test_a_hessian_that_is_none_is_refused(self) -> None:
        known = dataclasses.replace(everything(), hessian=torch.zeros(1, 8, 8))
        with pytest.raises(CandidateError, match=r"site a: criterion hessian: .* not positive definite"):
            importance("hessian", random_tensor(6, 8), known, "a")

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_the_weights_are_left_as_they_are(self, criterion: Criterion) -> None:
        rows = random_tensor(6, 8)
        importance(criterion, rows, everything(), "a")
        assert torch.equal(rows, random_tensor(6, 8))


class TestKeptMask:
    def test_all_stay_without_pruning(self) -> None:
        assert kept_mask(NoPruning(), random_tensor(6, 8), everything(), "a").all()

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_every_criterion_meets_the_ratio(self, criterion: Criterion) -> None:
        kept = kept_mask(Unstructured(ratio=0.3, criterion=criterion), random_tensor(6, 8), everything(), "a")
        assert int((~kept).sum()) == round(0.3 * 48)

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_a_higher_ratio_prunes_more_of_the_same(self, criterion: Criterion) -> None:
        rows, known = random_tensor(6, 8).round(decimals=1), everything()
        ratios = [step / 48 for step in range(1, 48)]
        masks = [kept_mask(Unstructured(ratio=ratio, criterion=criterion), rows, known, "a") for ratio in ratios]
        assert all(bool((~more | less).all()) for less, more in pairwise(masks))

    def test_wanda_compares_within_an_output(self) -> None:
        rows = random_tensor(6, 8) * torch.logspace(-3, 3, 6)[:, None]
        kept = kept_mask(Unstructured(ratio=0.5, criterion="wanda"), rows, everything(), "a")
        assert kept.sum(dim=1).tolist() == [4] * 6

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_n_of_m_stay_by_every_criterion(self, criterion: Criterion) -> None:
        kept = kept_mask(SemiStructured(n=1, m=4, criterion=criterion), random_tensor(6, 8), everything(), "a")
        assert (kept.reshape(-1, 4).sum(dim=1) == 1).all()

    def test_a_threshold_is_one_of_weights(self) -> None:
        rows = random_tensor(6, 8)
        assert torch.equal(kept_mask(Threshold(value=0.5), rows, everything(), "a"), rows.abs() >= 0.5)

    def test_a_shape_that_does_not_fit_names_the_site(self) -> None:
        with pytest.raises(CandidateError, match=r"site a: 3:5 .* has 8 weights"):
            kept_mask(SemiStructured(n=3, m=5), random_tensor(6, 8), everything(), "a")
