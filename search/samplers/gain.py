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
    """What points add to the area below a front, from prefix sums over its steps."""
    low, high = np.log(box.smallest), np.log(box.largest)
    ends = np.log(np.clip(front.bytes, box.smallest, box.largest))
    edges = np.concatenate(([low], ends, [high]))  # step i goes from edge i to the next one, at height i
    heights = np.clip(np.concatenate(([box.worst], front.accuracies)), box.worst, box.best) - box.worst
    areas = np.concatenate(([0.0], np.cumsum(heights * np.diff(edges))))  # below the front, left of each edge

    at = np.log(np.clip(bytes, box.smallest, box.largest))
    step = np.searchsorted(ends, at, side="right")
    left = areas[step] + heights[step] * (at - edges[step])
    shape = (len(bytes), *(1,) * (accuracies.ndim - 1))
    at, left = at.reshape(shape), left.reshape(shape)

    new = np.clip(accuracies, box.worst, box.best) - box.worst
    until = np.searchsorted(heights, new)  # where the front is as high
    added = np.where(edges[until] > at, new * (edges[until] - at) - (areas[until] - left), 0.0)
    return np.asarray(added / ((high - low) * (box.best - box.worst)))
