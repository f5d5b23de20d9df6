"""The predicted front against all policies of small spaces, and what is taken from it."""

import itertools
import random
from math import log

import numpy as np
import pytest

from search.sensitivity import MAX_STATES, predicted_front, spread, within

Table = list[list[int]]
Errors = list[list[float]]


def instance(seed: int) -> tuple[Table, Errors]:
    """A few sites with a few choices; sizes collide often, errors sometimes."""
    draw = random.Random(seed)
    choices = [draw.randint(1, 4) for _ in range(draw.randint(1, 6))]
    sizes = [[draw.randint(1, draw.choice([6, 1000])) for _ in range(n)] for n in choices]
    errors = [[draw.choice([draw.randint(0, 4), draw.randint(0, 2**20)]) / 2**10 for _ in range(n)] for n in choices]
    return sizes, errors


def brute_force(sizes: Table, errors: Errors) -> list[tuple[int, float]]:
    """The non-dominated (bytes, error) of all policies."""
    states = sorted(
        (
            sum(own[i] for own, i in zip(sizes, one, strict=True)),
            sum(own[i] for own, i in zip(errors, one, strict=True)),
        )
        for one in itertools.product(*(range(len(own)) for own in sizes))
    )
    found: list[tuple[int, float]] = []
    for size, error in states:
        if not found or error < found[-1][1]:
            found.append((size, error))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_front_of_all_policies(seed: int) -> None:
    sizes, errors = instance(seed)
    total, error, chosen = predicted_front(sizes, errors)
    # errors are multiples of 2**-10, so that sums are exact in any order
    assert list(zip(total.tolist(), error.tolist(), strict=True)) == brute_force(sizes, errors)
    for state, row in enumerate(chosen.tolist()):
        assert sum(own[i] for own, i in zip(sizes, row, strict=True)) == total[state]
        assert sum(own[i] for own, i in zip(errors, row, strict=True)) == error[state]


def many(sites: int = 60) -> tuple[Table, Errors]:
    """Enough different sums that states are thinned out."""
    draw = random.Random(5)
    sizes = [[int(draw.uniform(1, 5000) * 2**k) for k in range(7)] for _ in range(sites)]
    errors = [[draw.uniform(0.5, 1) * 4.0**-k for k in range(7)] for _ in range(sites)]
    return sizes, errors


def test_thinning_keeps_bytes_exact_the_ends_and_the_order() -> None:
    sizes, errors = many()
    total, error, chosen = predicted_front(sizes, errors)
    assert MAX_STATES / 2 < total.size <= MAX_STATES
    assert np.all(np.diff(total) > 0)
    assert np.all(np.diff(error) < 0)
    picked = np.take_along_axis(np.asarray(sizes)[None], chosen[:, :, None], axis=2)[:, :, 0]
    assert np.array_equal(picked.sum(axis=1), total)
    assert total[0] == sum(min(own) for own in sizes)
    assert error[-1] == pytest.approx(sum(min(own) for own in errors), rel=1e-12)
    steps = np.diff(np.log(total))
    assert steps.max() < 40 * (log(total[-1]) - log(total[0])) / MAX_STATES  # no part of the range is left empty


def test_thinning_costs_little() -> None:
    """Against the bound that Lagrange multipliers give: no policy has less error at these bytes."""
    sizes, errors = many()
    total, error, _ = predicted_front(sizes, errors)
    size, loss = np.asarray(sizes, float), np.asarray(errors)
    for state in range(0, total.size, 200):
        prices = np.geomspace(1e-9, 1, 2000)[:, None, None]
        least = (loss + prices * size).min(axis=2).sum(axis=1) - prices[:, 0, 0] * total[state]
        assert error[state] <= 1.02 * least.max() + 1e-3


def test_work_is_bounded_by_sites_times_choices_times_states() -> None:
    """200 sites with 40 choices each: 33 million sums at most, which take about 3 s; no site keeps more states."""
    draw = np.random.default_rng(0)
    sizes = [(np.exp(draw.uniform(6, 12)) * draw.uniform(0.05, 1, 40)).astype(int) for _ in range(200)]
    errors = [draw.exponential(np.exp(draw.normal()), 40) for _ in range(200)]
    few = 256  # the work is proportional to it
    total, error, chosen = predicted_front(sizes, errors, few)
    assert few / 4 < total.size <= few
    assert chosen.shape == (total.size, 200)
    assert total[0] == sum(own.min() for own in sizes)
    assert error[-1] == pytest.approx(sum(own.min() for own in errors), rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_within_a_number_of_bytes(seed: int) -> None:
    sizes, errors = instance(seed)
    total, error, chosen = predicted_front(sizes, errors)
    every = brute_force(sizes, errors)
    for most in [total[0], total[-1] + 1, *(total[:-1] + total[1:]) // 2]:
        state = within(total, float(most))
        assert total[state] <= most
        assert error[state] == min(loss for size, loss in every if size <= most)
        assert sum(own[i] for own, i in zip(sizes, chosen[state], strict=True)) == total[state]
    with pytest.raises(ValueError, match=f"no policy has at most .* bytes; the smallest has {total[0]:,}"):
        within(total, float(total[0]) - 1)


def test_one_site_is_its_own_front() -> None:
    total, error, chosen = predicted_front([[10, 20, 15]], [[3.0, 1.0, 4.0]])
    assert (total.tolist(), error.tolist(), chosen.tolist()) == ([10, 20], [3.0, 1.0], [[0], [1]])


class TestSpread:
    TOTAL = np.arange(100, 5001, 7)
    ERROR = np.linspace(9.0, 0.0, len(TOTAL)) ** 2

    def way(self, found: list[int]) -> list[float]:
        """How far along the front the states are, by the definition."""
        last = int(np.flatnonzero(self.TOTAL <= 4000)[-1])
        size = log(self.TOTAL[last] / self.TOTAL[0])
        fall = self.ERROR[0] - self.ERROR[last]
        return [log(self.TOTAL[i] / self.TOTAL[0]) / size + (self.ERROR[0] - self.ERROR[i]) / fall for i in found]

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 30, 64])
    def test_it_goes_evenly_along_the_front_without_duplicates(self, count: int) -> None:
        found = spread(self.TOTAL, self.ERROR, count, 4000.0)
        sizes = [int(self.TOTAL[i]) for i in found]
        assert len(set(found)) == len(found) == count
        assert sizes[0] == 3999 - (3999 - 100) % 7  # the largest not above 4000 comes first
        if count > 1:
            assert min(sizes) == 100
            steps = np.diff(self.way(sorted(found)))
            grain = max(np.diff(self.way(list(range(len(self.TOTAL))))))
            assert np.all(abs(steps - 2 / (count - 1)) <= grain)

    def test_it_is_dense_where_the_loss_changes_fast(self) -> None:
        cliff = np.where(self.TOTAL < 200, 9.0 - (self.TOTAL - 100) * 0.08, 0.01 - self.TOTAL * 1e-6)
        found = spread(self.TOTAL, cliff, 20, 4000.0)
        assert sum(self.TOTAL[i] <= 207 for i in found) >= 10

    def test_any_first_few_cover_the_range(self) -> None:
        found = self.way(spread(self.TOTAL, self.ERROR, 33, 4000.0))
        for few in (4, 8, 16):
            at = sorted([min(found), *found[:few]])
            assert max(b - a for a, b in itertools.pairwise(at)) <= 2 * 2 / (few - 1)

    def test_fewer_states_than_wished_are_each_taken_once(self) -> None:
        found = spread(np.array([100, 200, 400]), np.array([3.0, 2.0, 1.0]), 50, 400.0)
        assert sorted(found) == [0, 1, 2]

    def test_none_is_none(self) -> None:
        assert spread(self.TOTAL, self.ERROR, 0, 4000.0) == []

    def test_it_is_the_same_every_time(self) -> None:
        assert spread(self.TOTAL, self.ERROR, 20, 4000.0) == spread(self.TOTAL, self.ERROR, 20, 4000.0)

    def test_a_range_below_the_smallest_gives_the_smallest(self) -> None:
        assert spread(self.TOTAL, self.ERROR, 5, 40.0) == [0]
        assert spread(self.TOTAL, self.ERROR, 1, 100.0) == [0]
