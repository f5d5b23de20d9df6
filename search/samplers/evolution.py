"""Any axes of which nothing is known: uniform crossover of good trials, and mutation (Deb et al. 2002, NSGA-II)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

FEWEST = 10  # complete trials, before which points are drawn evenly
SWAP = 0.5
WIDTH = 0.2  # of a numeric mutation, as a share of the axis


def anywhere(axis: BaseDistribution, draw: np.random.Generator) -> Any:
    """A value of an axis, drawn evenly."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[int(draw.integers(len(axis.choices)))]
    return _at(axis, draw.random())


def bred(
    axes: Mapping[str, BaseDistribution],
    trials: Sequence[FrozenTrial],
    directions: Sequence[StudyDirection],
    draw: np.random.Generator,
) -> dict[str, Any]:
    """A point of these axes, from two parents among the best trials that have values on them.

    Args:
        axes: by name.
        trials: complete ones.
        directions: of their values.
        draw: of random numbers.
    """
    known = [
        one for one in trials if all(name in one.params and axes[name] == one.distributions[name] for name in axes)
    ]
    if len(known) < FEWEST or not axes:
        return {name: anywhere(axis, draw) for name, axis in axes.items()}
    parents = _best(known, directions)
    first, second = (parents[int(draw.integers(len(parents)))].params for _ in range(2))
    child = {name: (first if draw.random() < SWAP else second)[name] for name in axes}
    for name, axis in axes.items():
        if draw.random() < max(1 / len(axes), 0.05):
            child[name] = _mutated(axis, child[name], draw)
    return child


def _best(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The quarter that the fewest others dominate, at least four."""
    signs = np.array([-1.0 if one is StudyDirection.MAXIMIZE else 1.0 for one in directions])
    values = np.array([one.values for one in trials]) * signs
    better = (values[None] <= values[:, None]).all(axis=2) & (values[None] < values[:, None]).any(axis=2)
    order = np.argsort(better.sum(axis=1), kind="stable")
    return [trials[i] for i in order[: max(4, len(trials) // 4)]]


def _mutated(axis: BaseDistribution, value: Any, draw: np.random.Generator) -> Any:
    if isinstance(axis, CategoricalDistribution) or draw.random() < 0.3:
        return anywhere(axis, draw)
    return _at(axis, min(1.0, max(0.0, _place(axis, value) + WIDTH * draw.standard_normal())))


def _place(axis: BaseDistribution, value: float) -> float:
    """Where a value is between the ends of its axis, 0..1."""
    low, high, now = _ends(axis)[0], _ends(axis)[1], float(value)
    if getattr(axis, "log", False):
        low, high, now = np.log(low), np.log(high), np.log(now)
    return float((now - low) / (high - low)) if high > low else 0.5


def _at(axis: BaseDistribution, place: float) -> Any:
    """The value at a place between the ends of an axis, rounded to its steps."""
    low, high = _ends(axis)
    log = getattr(axis, "log", False)
    step = getattr(axis, "step", None)
    if isinstance(axis, IntDistribution):
        if log:
            return int(min(high, max(low, round(float(np.exp(np.log(low) + place * (np.log(high) - np.log(low))))))))
        steps = round((high - low) / axis.step)
        return int(low) + axis.step * min(steps, int(place * (steps + 1)))
    if log:
        return float(min(high, max(low, np.exp(np.log(low) + place * (np.log(high) - np.log(low))))))
    if step is not None:
        steps = round((high - low) / step)
        return float(min(high, low + step * min(steps, int(place * (steps + 1)))))
    return float(low + place * (high - low))


def _ends(axis: BaseDistribution) -> tuple[float, float]:
    if isinstance(axis, IntDistribution | FloatDistribution):
        return float(axis.low), float(axis.high)
    raise TypeError(f"{type(axis).__name__} has no ends")
