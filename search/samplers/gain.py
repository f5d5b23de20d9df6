"""How much hypervolume a point would add to a front, for many points at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.pareto import Box

Floats = npt.NDArray[np.float64]

# Gauss-Hermite quadrature of five points for a standard normal variable (Abramowitz & Stegun, table 25.10)
NODES = np.array([-2.8569700138728, -1.3556261799742659, 0.0, 1.3556261799742659, 2.8569700138728])
WEIGHTS = np.array([0.011257411327721, 0.222075922005613, 0.533333333333333, 0.222075922005613, 0.011257411327721])


@dataclass(frozen=True, eq=False)
class Stairs:
    """A front: bytes and accuracies, both increasing, (points,)."""

    bytes: Floats
    accuracies: Floats

    @staticmethod
    def of(bytes: Floats, accuracies: Floats) -> "Stairs":
        """The front of any points."""
        order = np.lexsort((-accuracies, bytes))
        best = np.maximum.accumulate(accuracies[order])
        fresh = np.concatenate(([True], best[1:] > best[:-1])) if len(order) else np.zeros(0, bool)
        return Stairs(bytes[order][fresh], accuracies[order][fresh])


def gains(front: Stairs, bytes: Floats, accuracies: Floats, boxes: Sequence[Box]) -> Floats:
    """The share of each box that points would add to what a front dominates, summed over the boxes.

    Args:
        front: what is dominated already.
        bytes: of the points, (points,).
        accuracies: of the points, any shape that starts with (points, ...).
        boxes: in log bytes x accuracy, as in `search.pareto.hypervolume`.

    Returns:
        In the shape of `accuracies`.
    """
    total = np.zeros(accuracies.shape)
    for box in boxes:
        if box.smallest < box.largest and box.worst < box.best:
            total += _gain(front, bytes, accuracies, box)
    return total


def _gain(front: Stairs, bytes: Floats, accuracies: Floats, box: Box) -> Floats:
    edges = np.log(np.clip(np.append(front.bytes, box.largest), box.smallest, box.largest))
    starts = np.concatenate(([np.log(box.smallest)], edges[:-1]))  # of each step; the first one is worth nothing
    heights = np.clip(np.concatenate(([box.worst], front.accuracies)), box.worst, box.best)
    at = np.log(np.clip(bytes, box.smallest, box.largest))
    widths = np.maximum(0.0, edges[None] - np.maximum(starts[None], at[:, None]))  # (points, steps)
    widths = widths.reshape(len(bytes), *(1,) * (accuracies.ndim - 1), -1)
    higher = np.maximum(0.0, np.clip(accuracies, box.worst, box.best)[..., None] - heights)
    area = np.log(box.largest / box.smallest) * (box.best - box.worst)
    return np.asarray((widths * higher).sum(axis=-1) / area)
