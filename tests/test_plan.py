"""What is proposed first, and what the sampler makes of all trials: fronts in a range, and the pool's best policy."""

import math

import numpy as np
import pytest
from optuna.samplers import RandomSampler

from search.pareto import Box, hypervolume
from search.samplers.features import Features
from search.samplers.gain import WEIGHTS
from search.samplers.history import History, Look
from search.samplers.plan import STATES, Plan, front_choices, make_plan
from search.samplers.start import start_points
from search.samplers.table import SiteTable, Table
from search.sensitivity import predicted_front
from tests.worlds import BEST, Point, World, searched, world

GIVEN = world(4, 5)


def planned(given: World, trials: int = 20) -> tuple[Plan, Look]:
    look = History([given.table]).look(searched(given, RandomSampler(seed=0), trials).trials)
    return make_plan(Features([given.table]), look.told, (given.box,), BEST, np.random.default_rng(0)), look


class TestFront:
    COSTS = tuple(site.losses[:, 1] for site in GIVEN.table.sites)

    @pytest.mark.parametrize(("low", "high"), [(1, 1e9), (20_000, 40_000)])
    def test_its_policies_are_on_the_predicted_front(self, low: float, high: float) -> None:
        found = front_choices(GIVEN.table, self.COSTS, low, high)
        sizes = GIVEN.table.bytes(found)
        losses = np.sum([cost[found[:, i]] for i, cost in enumerate(self.COSTS)], axis=0)
        total, error, _ = predicted_front([site.bytes for site in GIVEN.table.sites], self.COSTS)
        assert 10 < len(found) <= STATES
        assert sizes.min() >= low
        assert sizes.max() <= high
        assert (np.diff(sizes) > 0).all()
        for size, loss in zip(sizes, losses, strict=True):  # it keeps fewer states than the other one
            assert loss <= 1.05 * error[np.searchsorted(total + GIVEN.table.rest, size, side="right") - 1]

    def test_they_lie_evenly_over_log_bytes(self) -> None:
        sizes = GIVEN.table.bytes(front_choices(GIVEN.table, self.COSTS, 1, 1e9))
        assert np.diff(np.log(sizes)).max() < 6 * math.log(sizes[-1] / sizes[0]) / STATES

    @pytest.mark.parametrize("span", [(1, 2), (10**8, 10**9)])
    def test_where_none_is_in_the_range_it_is_the_nearest(self, span: tuple[int, int]) -> None:
        found = front_choices(GIVEN.table, self.COSTS, *span)
        assert len(found) == 1
        sizes = GIVEN.table.bytes(front_choices(GIVEN.table, self.COSTS, 1, 1e9))
        assert GIVEN.table.bytes(found)[0] == (sizes[0] if span[0] == 1 else sizes[-1])


class TestStart:
    def test_uniform_ones_from_the_largest_to_the_smallest_then_the_predicted_front(self) -> None:
        found = start_points([GIVEN.table], 5, 8)
        numbers = [GIVEN.table.numbers(one) for one in found]
        assert all(one is not None for one in numbers)
        assert all(len(set(one or [])) == 1 for one in numbers[:5])
        sizes = GIVEN.table.bytes(np.array(numbers))
        assert (np.diff(sizes[:5]) < 0).all()
        assert (np.diff(sizes[5:]) > 0).all()
        assert sizes[0] == GIVEN.table.largest
        assert len(found) in (12, 13)
        assert all(one not in found[:i] for i, one in enumerate(found))

    def test_sites_with_other_choices_have_no_uniform_policy(self) -> None:
        few = SiteTable("few", ({"few/bits": 4},), np.array([100]), np.array([[0.1, 0.1]]))
        assert len(start_points([Table((*GIVEN.table.sites, few))], 5, 0)) == 0

    def test_tables_share_what_is_predicted(self) -> None:
        tables = [Table(GIVEN.table.sites, {"c": c}) for c in (0.0, 0.5)]
        assert [one["c"] for one in start_points(tables, 0, 7)] == [0.0] * 4 + [0.5] * 3

    def test_none_is_none(self) -> None:
        assert start_points([], 5, 5) == []
        assert start_points([GIVEN.table], 0, 0) == []


class TestBest:
    def test_it_is_the_one_of_most_expected_hypervolume(self) -> None:
        """Against differences of hypervolume, at each node of the quadrature."""
        plan, look = planned(GIVEN)
        worth = plan.worth(plan.scale.logs(look.front))
        front = [Point(one.number, int(one.bytes), float(a)) for one, a in zip(look.front, worth, strict=True)]
        pool, box = plan.pools[0], plan.boxes[0]
        begun = hypervolume(front, box)
        draw = np.random.default_rng(0)
        found = plan.best(plan.front(look), look)
        assert found is not None
        chosen = next(i for i, one in enumerate(pool.choices) if np.array_equal(one, found[1]))

        def expected(i: int) -> float:
            added = [hypervolume([*front, Point(99, int(pool.bytes[i]), a)], box) - begun for a in pool.accuracies[i]]
            return float(np.array(added) @ WEIGHTS)

        best = expected(chosen)
        assert best > 0
        assert all(expected(int(i)) <= best + 1e-12 for i in draw.integers(0, len(pool.choices), 60))

    def test_what_was_asked_is_passed_over(self) -> None:
        plan, look = planned(GIVEN)
        asked, found = {one.place for one in look.told}, []
        for _ in range(5):
            best = plan.best(plan.front(look), asked)
            assert best is not None
            found.append(best[1].tobytes())
            asked.add((best[0], found[-1]))
        assert len(set(found)) == 5

    def test_what_runs_counts_as_predicted(self) -> None:
        plan, look = planned(GIVEN)
        found = plan.best(plan.front(look), set())
        assert found is not None
        runs = look.copy()
        trial = type(look.told[0])(99, {}, 0, found[1], math.nan, math.nan, (), False)
        runs.run(trial)
        size = float(GIVEN.table.bytes(found[1][None])[0])
        assert size in plan.front(runs).bytes
        assert size not in plan.front(look).bytes
        assert trial.place in runs
        assert trial.place not in look

    def test_a_box_that_is_full_gains_nothing(self) -> None:
        plan, look = planned(GIVEN)
        full = Plan(plan.model, plan.scale, plan.worth, (Box(1e7, 1e8, 0.0, 0.05),), plan.pools)
        assert full.best(full.front(look), set()) is None
