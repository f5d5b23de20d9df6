"""The accuracy of a model on a split, in fixed chunks, with a confidence interval."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from spaces.errors import CandidateError

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """A metric's value on a split (higher is better) and its 95 % interval, None where there are no outcomes.

    Attributes:
        outcomes: what the metric gave for each sample, (samples,), where it gives that; no part of the comparison.
    """

    value: float
    ci95: tuple[float, float] | None
    outcomes: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Top-1 outcomes: 1 where the largest output is the target's, else 0.

    Args:
        outputs: (samples, classes).
        targets: class numbers, (samples,).

    Returns:
        float32 (samples,).
    """
    return (outputs.argmax(dim=-1) == targets).float()


def summarize(result: object, samples: int) -> Accuracy:
    """Check what a metric returned, and reduce it.

    Args:
        result: one outcome per sample, (samples,), or one number for the split.
        samples: how many samples were scored.

    Raises:
        CandidateError: it is neither, or not finite.
    """
    if isinstance(result, torch.Tensor) and result.ndim == 1 and result.shape[0] == samples and samples > 1:
        outcomes = result.double()
        if not bool(torch.isfinite(outcomes).all()):
            bad = int((~torch.isfinite(outcomes)).sum())
            raise CandidateError(f"the metric is not finite on {bad} of {samples} samples")
        each = outcomes.cpu().numpy().astype(np.float32)
        return Accuracy(float(outcomes.mean()), interval(outcomes), each)
    try:
        number = float(result)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(result.shape)}" if isinstance(result, torch.Tensor) else ""
        raise CandidateError(
            f"the metric returned {type(result).__name__}{shape}, expected one number or one outcome for each of "
            f"{samples} samples"
        ) from error
    if not math.isfinite(number):
        raise CandidateError(f"the metric is {number}, expected a finite number")
    return Accuracy(number, None)


def interval(outcomes: torch.Tensor) -> tuple[float, float]:
    """95 % interval of the mean of (samples,) outcomes.

    Wilson 1927 for outcomes that are 0 or 1; the normal approximation for any others.
    """
    n = outcomes.numel()
    mean = float(outcomes.mean())
    if bool(((outcomes == 0) | (outcomes == 1)).all()):
        middle = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)
    half = Z95 * float(outcomes.std()) / math.sqrt(n)
    return mean - half, mean + half
