"""APoZ, Hu et al. 2016 (arXiv:1607.03250): neurons whose output is mostly zero go first."""

import torch


def apoz(rows: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Scores that order weights by their neuron's share of non-zero outputs, then by magnitude; float64 (channels, n).

    The whole part is how many different shares below that of the neuron there are, the rest is |w| over twice the
    largest |w|: at a ratio of one half the emptier half of the neurons goes, and the last neuron goes in part.

    Args:
        rows: weights, (channels, n); a row is a neuron.
        zeros: average percentage of zeros of each neuron as a share 0 to 1 (definition 1), (channels,).
    """
    _, rank = torch.unique(1 - zeros.double(), sorted=True, return_inverse=True)  # (channels,)
    size = rows.detach().double().abs()
    largest = size.amax().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.add(size / (2 * largest), rank[:, None])
