"""What points would add to a front: against differences of hypervolume."""

import math

import numpy as np
import pytest

from search.pareto import Box, hypervolume, pareto
from search.samplers.gain import NODES, WEIGHTS, Stairs, gains
from tests.worlds import Point

BOX = Box(1000, 50_000, 0.1, 0.95)
NARROW = Box(5000, 20_000, 0.7, 0.9)


def cloud(seed: int, count: int = 40) -> list[Point]:
    """Some are outside of the boxes, some have equal bytes or accuracies."""
    draw = np.random.default_rng(seed)
    bytes = np.exp(draw.uniform(math.log(400), math.log(90_000), count)).astype(int) // 50 * 50
    return [
        Point(i, int(b), round(float(a), 2)) for i, (b, a) in enumerate(zip(bytes, draw.random(count), strict=True))
    ]


def stairs(points: list[Point]) -> Stairs:
    return Stairs.of(np.array([p.bytes for p in points], float), np.array([p.accuracy for p in points]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("known", [0, 1, 40])
def test_they_are_differences_of_hypervolume(seed: int, known: int) -> None:
    front, new = cloud(seed)[:known], cloud(100 + seed)
    bytes, accuracies = np.array([p.bytes for p in new], float), np.array([p.accuracy for p in new])
    wished = [
        sum(
            hypervolume([*front, Point(99, p.bytes, p.accuracy)], box) - hypervolume(front, box)
            for box in (BOX, NARROW)
        )
        for p in new
    ]
    np.testing.assert_allclose(gains(stairs(front), bytes, accuracies, (BOX, NARROW)), wished, atol=1e-12)


def test_any_shape_of_accuracies() -> None:
    front, draw = stairs(cloud(1)), np.random.default_rng(0)
    bytes, accuracies = draw.uniform(1000, 50_000, 7), draw.random((7, 5, 3))
    found = gains(front, bytes, accuracies, [BOX])
    assert found.shape == (7, 5, 3)
    for i in range(5):
        np.testing.assert_array_equal(found[:, i, 2], gains(front, bytes, accuracies[:, i, 2], [BOX]))


@pytest.mark.parametrize("box", [Box(1000, 1000, 0, 1), Box(1000, 500, 0, 1), Box(1000, 2000, 0.5, 0.5)])
def test_a_box_without_an_area_counts_nothing(box: Box) -> None:
    assert gains(stairs([]), np.array([100.0]), np.array([0.9]), [box]).tolist() == [0.0]


def test_what_has_no_size_stands_on_the_edge() -> None:
    front = Stairs.of(np.array([0.0]), np.array([0.5]))
    found = gains(front, np.array([0.0, 1000.0]), np.array([0.95, 0.95]), [BOX])
    np.testing.assert_allclose(found, 0.45 / 0.85)


@pytest.mark.parametrize("seed", range(5))
def test_stairs_are_the_front(seed: int) -> None:
    points = cloud(seed)
    found = stairs(points)
    assert list(zip(found.bytes, found.accuracies, strict=True)) == [(p.bytes, p.accuracy) for p in pareto(points)]


def test_quadrature_has_the_moments_of_a_normal_variable() -> None:
    for power in range(10):
        moment = 0.0 if power % 2 else float(math.prod(range(power - 1, 0, -2)))
        assert WEIGHTS @ NODES**power == pytest.approx(moment, abs=1e-9)
