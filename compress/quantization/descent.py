"""Coordinate descent on rounded weights, QuantEase, Behdin et al. 2023 (arXiv:2309.01885), algorithm 1.

GPTQ rounds each column once, knowing nothing of the errors of later ones. Here each weight in turn takes the level that
is best for the layer's output given all the others; no step raises the output error. The rows of many choices of one
layer go through the columns together.
"""

import torch

from compress.hessian import Curvature, times
from compress.quantization.levels import Levels

BLOCK = 32  # columns whose changes reach the others together


def slope(values: torch.Tensor, weights: torch.Tensor, curvature: Curvature) -> torch.Tensor:
    """Half the gradient of the output error, H (v - w), laid out as the weights are."""
    return curvature.times(values - weights)


def descend(
    values: torch.Tensor, gradient: torch.Tensor, kept: torch.Tensor | None, curvature: Curvature, levels: Levels
) -> None:
    """Give each weight its best level once, column after column, in place.

    Args:
        values: rounded weights as `sweep` returns them, (jobs, blocks, n, rows); changed.
        gradient: of the output error at them, from `slope`; kept up to date.
        kept: which weights stay, boolean; None: all.
        curvature: of the layer's output error.
        levels: what a weight may be.
    """
    hessian, n = curvature.hessian, values.shape[2]
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        changes = torch.empty_like(values[:, :, start:end])
        for j in range(start, end):
            now = values[:, :, j]
            best = torch.addcdiv(now, gradient[:, :, j], hessian[:, j, j, None], value=-1)  # their eq. 8
            rounded = levels.nearest(best, j)
            if kept is not None:
                rounded = torch.where(kept[:, :, j], rounded, 0.0)
            change = changes[:, :, j - start] = rounded - now
            values[:, :, j] = rounded
            gradient[:, :, j:end].addcmul_(hessian[:, j:end, j, None], change[:, :, None])
        gradient[:, :, :start] += times(hessian[:, :start, start:end], changes)
        gradient[:, :, end:] += times(hessian[:, end:, start:end], changes)
