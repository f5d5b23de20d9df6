"""Pruning by an absolute threshold, Han et al. 2015 (arXiv:1506.02626, section 3.1): what is smaller becomes zero."""

import torch


def mask(rows: torch.Tensor, value: float) -> torch.Tensor:
    """Which weights stay, boolean in the shape of `rows`: those of an absolute value of at least `value`."""
    return rows.detach().double().abs() >= value
