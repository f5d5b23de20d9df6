"""Magnitude pruning: against sorting by hand, with exact counts, and what becomes of ties."""

import random
from itertools import pairwise

import pytest
import torch

from compress.pruning.magnitude import magnitude_mask
from tests.models import random_tensor

RATIOS = (0.0, 0.001, 0.1, 0.25, 1 / 3, 0.5, 0.9, 0.999)


def by_sorting(values: list[float], ratio: float) -> list[bool]:
    """The definition: the least |w| go first, and of equal ones the first."""
    order = sorted(range(len(values)), key=lambda i: (abs(values[i]), i))
    gone = set(order[: round(ratio * len(values))])
    return [i not in gone for i in range(len(values))]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("seed", range(5))
def test_it_keeps_what_sorting_keeps(seed: int, ratio: float) -> None:
    draw = random.Random(seed)
    values = [draw.choice([draw.gauss(0, 1), draw.randrange(-3, 4), -0.0]) for _ in range(draw.randrange(1, 90))]
    weight = torch.tensor(values, dtype=torch.float64)
    assert magnitude_mask(weight, ratio).tolist() == by_sorting(values, ratio)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", [(1,), (7,), (10, 10), (3, 4, 5, 6)], ids=str)
def test_exactly_as_many_are_pruned_as_asked(shape: tuple[int, ...], ratio: float) -> None:
    weight = random_tensor(*shape)
    mask = magnitude_mask(weight, ratio)
    assert mask.shape == weight.shape
    assert mask.dtype == torch.bool
    assert int((~mask).sum()) == round(ratio * weight.numel())
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_of_equal_weights_the_later_ones_stay(value: float) -> None:
    assert magnitude_mask(torch.full((2, 4), value), 0.5).tolist() == [[False] * 4, [True] * 4]


def test_it_prunes_more_of_the_same_at_a_higher_ratio() -> None:
    weight = random_tensor(12, 12).round(decimals=1)
    masks = [magnitude_mask(weight, ratio) for ratio in RATIOS]
    assert all(bool((~more | less).all()) for less, more in pairwise(masks))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_reads_a_parameter_of_any_type_without_touching_it(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(random_tensor(5, 5).to(dtype))
    before = weight.detach().clone()
    mask = magnitude_mask(weight, 0.4)
    assert mask.tolist() == magnitude_mask(before.double(), 0.4).tolist()
    assert torch.equal(weight, before)
    assert not mask.requires_grad


def test_the_order_of_memory_does_not_matter() -> None:
    weight = random_tensor(6, 4).round(decimals=1)
    assert torch.equal(magnitude_mask(weight.T.contiguous().T, 0.5), magnitude_mask(weight, 0.5))
