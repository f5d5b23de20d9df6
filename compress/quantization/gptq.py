"""Error-compensated rounding, GPTQ, Frantar et al. 2022 (arXiv:2210.17323), algorithm 1.

With pruned weights among those that are rounded it is SparseGPT's reconstruction (Frantar & Alistarh 2023,
arXiv:2301.00774, algorithm 1): a pruned weight is one that is rounded to zero. Rows are independent of each other given
the inverse Hessian, so the rows of many choices of one layer go through the columns together.
"""

import torch

from compress.hessian import Curvature, times
from compress.quantization.levels import Levels

BLOCK = 32  # columns whose errors reach the later columns together; the paper's 128 is for a GPU


def sweep(
    weights: torch.Tensor, kept: torch.Tensor | None, curvature: Curvature, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round column after column to the nearest level, and let the columns not yet rounded make up for the errors.

    Args:
        weights: laid out by `Curvature.laid_out`, (jobs, blocks, n, rows).
        kept: which of them stay, boolean; None: all.
        curvature: of the layer's output error.
        levels: what a weight may be.

    Returns:
        The rounded weights, laid out likewise, and the (dampened) output error of each row, (jobs, blocks, rows).
    """
    loss = torch.zeros_like(weights[:, :, 0])
    left, values, factor = weights.clone(), torch.empty_like(weights), curvature.factor
    n = weights.shape[2]
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = torch.empty_like(weights[:, :, start:end])
        for j in range(start, end):
            rounded = levels.nearest(left[:, :, j], j)
            if kept is not None:
                rounded = torch.where(kept[:, :, j], rounded, 0.0)
            values[:, :, j] = rounded
            error = (left[:, :, j] - rounded).div_(factor[:, j, j, None])
            errors[:, :, j - start] = error
            left[:, :, j + 1 : end].addcmul_(factor[:, j, j + 1 : end, None], error[:, :, None], value=-1)  # eq. 2
        left[:, :, end:] -= times(factor[:, start:end, end:].mT, errors)  # eq. 4: lazy batch
        loss += errors.square_().sum(dim=2)  # eq. 2, summed
    return values, loss
