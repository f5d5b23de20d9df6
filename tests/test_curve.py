"""Accuracy as a falling function of the log loss: against isotonic regression and what it was made of."""

import numpy as np
import numpy.typing as npt
import pytest

from search.samplers.curve import FLOOR, SLOPE, curve

Floats = npt.NDArray[np.float64]


def cloud(seed: int, count: int = 30) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    losses = draw.uniform(-6, 1, count)
    return losses, 0.9 / (1 + np.exp(losses)) + draw.normal(0, 0.08, count)


def by_formula(values: Floats) -> Floats:
    """The falling sequence of least squares: for each the smallest, over starts, of the largest mean over ends."""
    count = len(values)
    return np.array(
        [
            min(max(values[start : end + 1].mean() for end in range(i, count)) for start in range(i + 1))
            for i in range(count)
        ]
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("best", [None, 0.95])
def test_its_knots_are_the_blocks_of_isotonic_regression(seed: int, best: float | None) -> None:
    losses, accuracies = cloud(seed)
    order = np.argsort(losses)
    top = max(accuracies.max(), accuracies.mean()) if best is None else best
    x = np.concatenate(([losses.min() - FLOOR], losses[order]))
    levels = by_formula(np.concatenate(([top], accuracies[order])))
    found = curve(losses, accuracies, best)
    blocks = [np.isclose(levels, level, rtol=0, atol=1e-12) for level in dict.fromkeys(levels.round(12))]
    np.testing.assert_allclose(found.accuracies, [levels[block].mean() for block in blocks], atol=1e-9)
    np.testing.assert_allclose(found.losses, [x[block].mean() for block in blocks], atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_it_falls_everywhere_and_is_as_good_as_the_best_at_its_end(seed: int) -> None:
    losses, accuracies = cloud(seed)
    found = curve(losses, np.minimum(accuracies, 0.95), best=0.97)
    places = np.linspace(-30, 20, 500)
    worth = found(places)
    assert (np.diff(worth) < 0).all()  # of two that are worth the same, the one with less loss
    assert worth[0] == pytest.approx(0.97 + 30 * SLOPE)


def test_it_goes_straight_between_knots() -> None:
    found = curve(np.array([-2.0, 0.0]), np.array([0.8, 0.4]), 0.9)
    np.testing.assert_allclose(found(np.array([-2.0, -1.0, 0.0, 9.0])), [0.8, 0.6, 0.4, 0.4], atol=20 * SLOPE)


def test_any_shape() -> None:
    found, places = curve(*cloud(0)), np.random.default_rng(0).uniform(-5, 1, (3, 4))
    assert found(places).shape == (3, 4)
    assert found(places)[1, 2] == found(places[1, 2:3])[0]


@pytest.mark.parametrize("best", [None, 0.2, 0.9])
def test_one_point_and_equal_points(best: float | None) -> None:
    for losses, accuracies in (([-1.0], [0.5]), ([-1.0] * 4, [0.5] * 4), ([-1.0, 0.0, 1.0], [0.5] * 3)):
        found = curve(np.array(losses), np.array(accuracies), best)
        assert found(np.array([-1.0]))[0] == pytest.approx(0.5, abs=0.5 * (best == 0.9) + 1e-5)
