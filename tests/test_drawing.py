"""Samples that a mean loss is estimated from: in proportion to what they may add, and without bias."""

import pytest
import torch

from objectives.drawing import drawn, unsureness
from tests.models import random_tensor

UNSURE = random_tensor(50).double().exp() ** 2  # a few are much larger than the others


class TestUnsureness:
    def test_it_is_the_trace_of_the_curvature(self) -> None:
        out = random_tensor(4, 3, 5)
        p = out.double().softmax(dim=-1)
        curvature = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
        trace = curvature.diagonal(dim1=-2, dim2=-1).sum(dim=-1).mean(dim=1)
        assert torch.allclose(unsureness(out, "logits"), trace)

    def test_of_values_it_is_the_same_everywhere(self) -> None:
        assert unsureness(random_tensor(4, 3), "values").tolist() == [1.0] * 4


class TestDrawn:
    @pytest.mark.parametrize("samples", [50, 51, 1000])
    def test_all_are_a_plain_mean(self, samples: int) -> None:
        at, weights = drawn(UNSURE, samples)
        assert at.tolist() == list(range(50))
        assert weights.tolist() == [1 / 50] * 50

    @pytest.mark.parametrize("samples", [1, 7, 20, 49])
    def test_there_are_as_many_as_wished(self, samples: int) -> None:
        at, weights = drawn(UNSURE, samples)
        assert len(at) == len(weights) == samples
        assert at.tolist() == sorted(set(at.tolist()))

    @pytest.mark.parametrize("samples", [7, 20, 49])
    def test_what_goes_with_the_chance_is_exact(self, samples: int) -> None:
        _, weights = drawn(UNSURE, samples)
        chance = 1 / (50 * weights)
        assert bool((chance <= 1 + 1e-12).all())
        assert float(chance @ weights) == pytest.approx(samples / 50)

    def test_the_most_unsure_are_certain(self) -> None:
        at, weights = drawn(UNSURE, 20)
        certain = set(at[weights <= 1 / 50 + 1e-12].tolist())
        assert certain == set(UNSURE.argsort(descending=True)[: len(certain)].tolist())
        assert len(certain) > 3

    @pytest.mark.parametrize("unsure", [torch.ones(50).double(), torch.zeros(50).double()])
    def test_equal_ones_are_evenly_spread_with_equal_weights(self, unsure: torch.Tensor) -> None:
        at, weights = drawn(unsure, 10)
        assert at.diff().tolist() == [5] * 9
        assert weights.tolist() == pytest.approx([0.1] * 10)

    def test_losses_of_unsure_samples_are_told_better_than_by_even_ones(self) -> None:
        errors = []
        for seed in range(40):
            losses = UNSURE * random_tensor(50, seed=seed).double().exp()
            at, weights = drawn(UNSURE, 12)
            found = float(losses[at] @ weights), float(losses[torch.arange(12) * 50 // 12].mean())
            errors.append([abs(one / float(losses.mean()) - 1) for one in found])
        ours, even = torch.tensor(errors).mean(dim=0).tolist()
        assert ours < 0.5 * even

    def test_it_has_no_bias(self) -> None:
        ratios = []
        for seed in range(300):
            mixed = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
            losses = random_tensor(50, seed=3).double().square()
            at, weights = drawn(UNSURE[mixed], 12)
            ratios.append(float(losses[at] @ weights) / float(losses.mean()))
        assert sum(ratios) / 300 == pytest.approx(1, abs=0.06)
