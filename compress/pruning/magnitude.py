"""Magnitude pruning, Han et al. 2015 (arXiv:1506.02626): the weights of least absolute value become zero."""

from typing import Literal

import torch

from compress.pruning import unstructured


def magnitude(rows: torch.Tensor) -> torch.Tensor:
    """|w| of each weight, (channels, n)."""
    return rows.detach().abs()


def channel_scores(rows: torch.Tensor, norm: Literal["l1", "l2"]) -> torch.Tensor:
    """One score a channel, (channels,): the L1 or the L2 norm of its weights, or of other scores of its weights.

    L1 is the filter pruning of Li et al. 2017 (arXiv:1608.08710), L2 that of He et al. 2018 (arXiv:1808.06866).

    Args:
        rows: weights or their importance, (channels, n).
        norm: which norm; scores that are squares already (Taylor, Hessian) are summed by "l1".
    """
    size = rows.detach().abs()
    return size.sum(dim=1) if norm == "l1" else size.square().sum(dim=1).sqrt()


def magnitude_mask(weight: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which weights of a tensor of any shape stay: `unstructured.mask` of their magnitudes."""
    return unstructured.mask(magnitude(weight), ratio)
