"""Masks: against sorting by hand, with exact counts, what becomes of ties, and more pruning takes more of the same."""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from compress.pruning import semistructured, threshold, unstructured
from spaces.errors import CandidateError
from tests.models import random_tensor

RATIOS = (0.0, 0.001, 0.1, 0.25, 1 / 3, 0.5, 0.9, 0.999)


def by_sorting(values: list[float], pruned: int) -> list[bool]:
    """The definition: the least go first, and of equal ones the first."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    gone = set(order[:pruned])
    return [i not in gone for i in range(len(values))]


def with_ties(*shape: int, seed: int = 0) -> Tensor:
    return random_tensor(*shape, seed=seed).round(decimals=1).abs()


class TestUnstructured:
    @pytest.mark.parametrize("ratio", RATIOS)
    @pytest.mark.parametrize("seed", range(5))
    def test_it_keeps_what_sorting_keeps(self, seed: int, ratio: float) -> None:
        draw = random.Random(seed)
        values = [draw.choice([draw.random(), draw.randrange(3), 0.0]) for _ in range(draw.randrange(1, 90))]
        kept = unstructured.mask(torch.tensor([values], dtype=torch.float64), ratio)
        assert kept.tolist() == [by_sorting(values, round(ratio * len(values)))]

    @pytest.mark.parametrize("per_row", [False, True])
    @pytest.mark.parametrize("ratio", RATIOS)
    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (10, 10), (13, 11)], ids=str)
    def test_exactly_as_many_are_pruned_as_asked(self, shape: tuple[int, int], ratio: float, per_row: bool) -> None:
        kept = unstructured.mask(with_ties(*shape), ratio, per_row=per_row)
        assert kept.shape == shape
        assert kept.dtype == torch.bool
        assert int((~kept).sum()) == round(ratio * shape[0] * shape[1])

    @pytest.mark.parametrize("ratio", RATIOS)
    def test_each_row_loses_as_many_of_its_own(self, ratio: float) -> None:
        importance = with_ties(13, 11) * torch.arange(1, 14)[:, None]
        kept = unstructured.mask(importance, ratio, per_row=True)
        lost = (~kept).sum(dim=1)
        assert int(lost.max() - lost.min()) <= 1
        assert lost.tolist() == sorted(lost.tolist(), reverse=True)
        for row, count, mask in zip(importance, lost, kept, strict=True):
            assert mask.tolist() == by_sorting(row.tolist(), int(count))

    @pytest.mark.parametrize("per_row", [False, True])
    def test_a_higher_ratio_prunes_more_of_the_same(self, per_row: bool) -> None:
        importance = with_ties(12, 13)
        masks = [unstructured.mask(importance, step / 157, per_row=per_row) for step in range(157)]
        assert all(bool((~more | less).all()) for less, more in pairwise(masks))

    def test_the_order_of_memory_does_not_matter(self) -> None:
        importance = with_ties(6, 4)
        assert torch.equal(unstructured.mask(importance.T.contiguous().T, 0.5), unstructured.mask(importance, 0.5))


class TestSemiStructured:
    @pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (1, 2), (3, 4), (15, 16)])
    def test_of_each_m_consecutive_weights_the_n_largest_stay(self, n: int, m: int) -> None:
        importance = with_ties(5, 48)
        kept = semistructured.mask(importance, n, m)
        assert kept.shape == importance.shape
        for row, mask in zip(importance, kept, strict=True):
            for values, stays in zip(row.split(m), mask.split(m), strict=True):
                assert stays.tolist() == by_sorting(values.tolist(), m - n)

    def test_keeping_fewer_prunes_more_of_the_same(self) -> None:
        importance = with_ties(6, 32)
        masks = [semistructured.mask(importance, n, 8) for n in range(7, 0, -1)]
        assert all(bool((~more | less).all()) for less, more in pairwise(masks))

    def test_a_row_that_does_not_divide_is_refused_with_site_and_numbers(self) -> None:
        with pytest.raises(CandidateError, match=r"site conv1: 2:4 pruning keeps 2 of each 4 .* has 27 weights"):
            semistructured.mask(torch.ones(8, 27), 2, 4, name="conv1")


class TestThreshold:
    def test_what_is_below_goes(self) -> None:
        rows = torch.tensor([[0.5, -0.5, 0.25, -0.25], [0.0, -0.0, 0.249, 3.0]])
        assert threshold.mask(rows, 0.25).tolist() == [[True] * 4, [False, False, False, True]]

    def test_a_higher_threshold_prunes_more_of_the_same(self) -> None:
        rows = random_tensor(9, 9)
        masks = [threshold.mask(rows, step / 10) for step in range(1, 30)]
        assert all(bool((~more | less).all()) for less, more in pairwise(masks))

    def test_it_equals_magnitude_pruning_of_as_many(self) -> None:
        rows = random_tensor(9, 9)
        kept = threshold.mask(rows, 0.7)
        assert torch.equal(kept, unstructured.mask(rows.abs(), 1 - float(kept.double().mean())))
