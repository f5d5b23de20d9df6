"""Accuracy as a falling function of the log loss: what a measured loss is worth, without the luck of the samples.

Isotonic regression by pooling adjacent violators (Barlow et al. 1972), its blocks joined by straight lines.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FLOOR = 3.0  # in logs below the least loss seen, where a model is as good as the float model
SLOPE = 1e-6  # accuracy for each unit of log loss: of two that are worth the same, the one with less loss


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy over log loss.

    Attributes:
        losses, accuracies: knots, increasing in log loss and falling in accuracy, both (knots,).
    """

    losses: Floats
    accuracies: Floats

    def __call__(self, losses: Floats) -> Floats:
        """The accuracy at log losses, any shape."""
        return np.interp(losses, self.losses, self.accuracies) - SLOPE * losses


def curve(losses: Floats, accuracies: Floats, best: float | None = None) -> Curve:
    """The falling curve through measured points.

    Args:
        losses: log losses, (trials,), at least one.
        accuracies: (trials,).
        best: accuracy of a model that loses nothing; None takes the best one seen.
    """
    order = np.argsort(losses, kind="stable")
    x, y = losses[order], accuracies[order]
    top = float(y.max()) if best is None else max(best, float(y.mean()))
    blocks: list[tuple[float, float, int]] = [(float(x[0]) - FLOOR, top, 1)]  # mean loss, mean accuracy, size
    for loss, accuracy in zip(x, y, strict=True):
        blocks.append((float(loss), float(accuracy), 1))
        while len(blocks) > 1 and blocks[-1][1] >= blocks[-2][1]:
            (x1, y1, n1), (x2, y2, n2) = blocks[-2:]
            blocks[-2:] = [((x1 * n1 + x2 * n2) / (n1 + n2), (y1 * n1 + y2 * n2) / (n1 + n2), n1 + n2)]
    return Curve(np.array([block[0] for block in blocks]), np.array([block[1] for block in blocks]))
