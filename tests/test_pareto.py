"""The geometry of fronts: against its definition, against Optuna, and on shapes whose answer is known."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume

from search.pareto import Box, hypervolume, knee, pareto

BOX = Box(smallest=10_000, largest=200_000, worst=0.1, best=1.0)


@dataclass(frozen=True)
class Dot:
    trial: int
    bytes: int
    accuracy: float


def dots(*pairs: tuple[int, float]) -> list[Dot]:
    return [Dot(i, size, accuracy) for i, (size, accuracy) in enumerate(pairs)]


def random_dots(seed: int, count: int) -> list[Dot]:
    draw = random.Random(seed)
    return [Dot(i, draw.randrange(5_000, 300_000, 5_000), draw.randrange(0, 41) / 40) for i in range(count)]


def dominates(one: Dot, other: Dot) -> bool:
    no_worse = one.bytes <= other.bytes and one.accuracy >= other.accuracy
    return no_worse and (one.bytes, one.accuracy) != (other.bytes, other.accuracy)


class TestPareto:
    @pytest.mark.parametrize("seed", range(30))
    def test_it_is_what_no_other_point_dominates_and_the_first_of_equal_ones(self, seed: int) -> None:
        points = random_dots(seed, 60)
        kept = [one for one in points if not any(dominates(other, one) for other in points)]
        first = [one for one in kept if not any(o.trial < one.trial and o == replace(one, trial=o.trial) for o in kept)]
        assert pareto(reversed(points)) == sorted(first, key=lambda one: one.bytes)

    @pytest.mark.parametrize("seed", range(3))
    def test_it_has_the_values_of_optunas_best_trials(self, seed: int) -> None:
        study = optuna.create_study(directions=["maximize", "minimize"])
        points = random_dots(seed, 40)
        for one in points:
            study.add_trial(optuna.trial.create_trial(values=[one.accuracy, one.bytes]))
        theirs = {tuple(trial.values) for trial in study.best_trials}
        assert {(one.accuracy, one.bytes) for one in pareto(points)} == theirs

    def test_nothing_has_no_front(self) -> None:
        assert pareto([]) == []


def area_by_cells(points: Sequence[Dot], box: Box) -> float:
    """The definition: cut the box at every coordinate, and add up the cells that some point dominates."""

    def scaled(one: Dot) -> tuple[float, float]:
        x = math.log(one.bytes / box.smallest) / math.log(box.largest / box.smallest)
        return x, (one.accuracy - box.worst) / (box.best - box.worst)

    places = [scaled(one) for one in points]
    xs = sorted({0.0, 1.0, *(x for x, _ in places if 0 < x < 1)})
    ys = sorted({0.0, 1.0, *(y for _, y in places if 0 < y < 1)})
    return sum(
        (right - left) * (high - low)
        for left, right in pairwise(xs)
        for low, high in pairwise(ys)
        if any(x <= (left + right) / 2 and y >= (low + high) / 2 for x, y in places)
    )


class TestHypervolume:
    @pytest.mark.parametrize("seed", range(20))
    def test_it_is_the_share_of_the_cells_that_are_dominated(self, seed: int) -> None:
        points = random_dots(seed, 25)
        assert hypervolume(points, BOX) == pytest.approx(area_by_cells(points, BOX), abs=1e-12)
        assert hypervolume(pareto(points), BOX) == hypervolume(points, BOX)

    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_optunas_inside_the_box(self, seed: int) -> None:
        draw = random.Random(seed)
        points = [Dot(i, draw.randrange(10_000, 200_000), draw.uniform(0.1, 1.0)) for i in range(30)]
        losses = np.array([[math.log(one.bytes), -one.accuracy] for one in points])
        area = compute_hypervolume(losses, np.array([math.log(BOX.largest), -BOX.worst]))
        whole = math.log(BOX.largest / BOX.smallest) * (BOX.best - BOX.worst)
        assert hypervolume(points, BOX) == pytest.approx(float(area) / whole, abs=1e-12)

    @pytest.mark.parametrize(
        ("pairs", "share"),
        [
            pytest.param([], 0.0, id="nothing"),
            pytest.param([(10_000, 1.0)], 1.0, id="ideal"),
            pytest.param([(10, 1.5)], 1.0, id="smaller and better than the box counts on its edges"),
            pytest.param([(200_000, 1.0)], 0.0, id="as large as allowed"),
            pytest.param([(900_000, 1.0)], 0.0, id="larger"),
            pytest.param([(10_000, 0.1)], 0.0, id="guessing"),
            pytest.param([(10_000, 0.0)], 0.0, id="worse than guessing"),
            pytest.param([(10_000, 0.55)], 0.5, id="half the height"),
            pytest.param([(round(10_000 * 20**0.5), 1.0)], 0.5, id="half the width"),
        ],
    )
    def test_known_shares(self, pairs: Sequence[tuple[int, float]], share: float) -> None:
        assert hypervolume(dots(*pairs), BOX) == pytest.approx(share, abs=1e-5)

    @pytest.mark.parametrize("box", [replace(BOX, smallest=200_000), replace(BOX, worst=1.0)])
    def test_a_box_without_an_area_has_none(self, box: Box) -> None:
        assert hypervolume(dots((10, 1.0)), box) == 0


class TestKnee:
    def test_it_is_the_corner_of_an_l(self) -> None:
        assert knee(dots((1_000, 0.1), (2_000, 0.9), (4_000, 0.91), (64_000, 0.92))).trial == 1

    def test_it_looks_at_log_bytes(self) -> None:
        # 0.5 above a chord of slope 0.1 per doubling; in plain bytes the third would be farthest
        assert knee(dots((1_000, 0.0), (4_000, 0.5), (16_000, 0.65), (1_024_000, 1.0))).trial == 1

    def test_it_is_farthest_from_the_chord_in_the_scaled_plane(self) -> None:
        draw = random.Random(0)
        points = pareto(Dot(i, draw.randrange(1_000, 99_000), draw.random()) for i in range(50))
        ends = points[0], points[-1]
        x = [math.log(one.bytes / ends[0].bytes) / math.log(ends[1].bytes / ends[0].bytes) for one in points]
        y = [(one.accuracy - ends[0].accuracy) / (ends[1].accuracy - ends[0].accuracy) for one in points]
        distance = [(b - a) / math.sqrt(2) for a, b in zip(x, y, strict=True)]
        assert knee(points) == points[distance.index(max(distance))]

    @pytest.mark.parametrize("pairs", [[(1_000, 0.1), (10_000, 0.2), (100_000, 0.9)], [(1_000, 0.1), (2_000, 0.9)]])
    def test_without_a_corner_it_is_the_most_accurate(self, pairs: Sequence[tuple[int, float]]) -> None:
        assert knee(dots(*pairs)).trial == len(pairs) - 1

    def test_a_straight_line_has_no_corner(self) -> None:
        assert knee(dots(*((1_000 * 2**i, 0.1 * i) for i in range(9)))).trial == 8

    def test_a_single_point_is_it_and_none_is_an_error(self) -> None:
        assert knee(dots((1_000, 0.1))).trial == 0
        with pytest.raises(ValueError, match="no knee"):
            knee([])
