"""How candidates are trained: temperature, alpha and other numbers that no size depends on.

Thompson sampling (Thompson 1933) on a Bayesian quadratic regression of what training gained, from the trials that were
trained.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from optuna.distributions import FloatDistribution

from search.samplers.history import Seen

Floats = npt.NDArray[np.float64]

FEWEST = 6  # trained trials, before which numbers are drawn evenly
DRAWS = 64  # recipes to choose from
PRIOR = 1.0  # standard deviation of each weight, in logs of the loss


def recipe(axes: Mapping[str, FloatDistribution], told: Sequence[Seen], draw: np.random.Generator) -> dict[str, float]:
    """Values of these axes for the next trial.

    Args:
        axes: by name.
        told: trials, in the order of their numbers.
        draw: of random numbers.
    """
    if not axes:
        return {}
    drawn = draw.random((DRAWS, len(axes)))
    trained = [one for one in told if len(one.losses) > 1 and axes.keys() <= one.params.keys() and _has_logs(one)]
    if len(trained) < FEWEST or draw.random() < 0.1:
        return _values(axes, drawn[0])
    places = np.array([[_place(axis, one.params[name]) for name, axis in axes.items()] for one in trained])
    begun = np.log([one.losses[0] for one in trained])
    gained = np.log([one.losses[-1] for one in trained]) - begun
    middle, spread = begun.mean(), begun.std() or 1.0
    features = _features(places, (begun - middle) / spread)
    level = gained.mean()
    noise = max(0.05, float(gained.std()) / 2)
    precision = features.T @ features / noise**2 + np.eye(features.shape[1]) / PRIOR**2
    mean = np.linalg.solve(precision, features.T @ (gained - level) / noise**2)
    sample = mean + np.linalg.solve(np.linalg.cholesky(precision).T, draw.standard_normal(len(mean)))
    return _values(axes, drawn[int(np.argmin(_features(drawn, np.zeros(DRAWS)) @ sample))])


def _has_logs(one: Seen) -> bool:
    return all(0 < loss < math.inf for loss in one.losses)


def _features(places: Floats, begun: Floats) -> Floats:
    """1, the loss before training, each place, and their products; (trials, features)."""
    centred = 2 * places - 1
    count = places.shape[1]
    pairs = [centred[:, i] * centred[:, j] for i in range(count) for j in range(i, count)]
    return np.stack([np.ones(len(places)), begun, *centred.T, *pairs], axis=1)


def _place(axis: FloatDistribution, value: float) -> float:
    """Where a value is between the ends of its axis, 0..1."""
    if axis.low == axis.high:
        return 0.5
    if axis.log:
        return math.log(value / axis.low) / math.log(axis.high / axis.low)
    return (value - axis.low) / (axis.high - axis.low)


def _values(axes: Mapping[str, FloatDistribution], places: Floats) -> dict[str, float]:
    found = {}
    for (name, axis), place in zip(axes.items(), places.tolist(), strict=True):
        value = axis.low * (axis.high / axis.low) ** place if axis.log else axis.low + (axis.high - axis.low) * place
        found[name] = float(min(axis.high, max(axis.low, value)))
    return found
