"""Magnitude pruning, Han et al. 2015 (arXiv:1506.02626): the weights of least absolute value become zero."""

import torch


def magnitude_mask(weight: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which weights stay.

    Args:
        weight: any shape.
        ratio: share of weights to prune, 0 to below 1; `round(ratio * n)` of them are.

    Returns:
        Boolean tensor of the weight's shape. Of equal magnitudes the later ones stay.
    """
    pruned = round(ratio * weight.numel())
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[torch.sort(weight.detach().abs().flatten(), stable=True).indices[:pruned]] = False
    return mask.reshape(weight.shape)
