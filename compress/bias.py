"""Bias correction, Nagel et al. 2019 (arXiv:1906.04721), section 4.2: changed weights move the mean of the outputs."""

import torch


def bias_shift(rows: torch.Tensor, decoded: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """What to add to a layer's bias, so that its mean output over the calibration data is that of the float layer.

    Args:
        rows: float weights, (channels, n).
        decoded: what stands for them in the compressed layer, (channels, n).
        mean: mean of each input column, (blocks, n); block b belongs to the b-th of as many equal parts of the rows.

    Returns:
        E[y] - E[y~] = (W - W~) E[x], float32 (channels,).
    """
    blocks, n = mean.shape
    lost = (rows.detach().double() - decoded.double()).reshape(blocks, -1, n)  # -eps, (blocks, channels / blocks, n)
    return torch.einsum("bcn,bn->bc", lost, mean.double()).flatten().float()
