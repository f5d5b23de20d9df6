"""The best values of the weights that stay, by conjugate gradients, as in ALPS (Meng et al. 2024, arXiv:2406.07831).

For a mask the output error is least where H (v - w) is zero at every kept weight (their section 3.3). The rows, each
with a mask of its own, go through the steps together.
"""

import torch

from compress.hessian import Curvature

TINY = torch.finfo(torch.float32).tiny


def refill(
    left: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor, curvature: Curvature, steps: int
) -> torch.Tensor:
    """Kept weights that make up for the pruned ones, (jobs, blocks, n, rows); no step raises the output error.

    Args:
        left: where to start; what is not kept is taken out of it.
        weights: those of the float layer, laid out by `Curvature.laid_out`.
        kept: which of them stay, boolean.
        curvature: of the layer's output error.
        steps: of conjugate gradients, preconditioned by the diagonal.
    """
    left = torch.where(kept, left, 0.0)
    residual = torch.where(kept, curvature.times(weights - left), 0.0)
    scaled = residual / curvature.diagonal
    direction, size = scaled, (residual * scaled).sum(dim=2, keepdim=True)
    for _ in range(steps):
        image = torch.where(kept, curvature.times(direction), 0.0)
        length = size / (direction * image).sum(dim=2, keepdim=True).clamp(min=TINY)
        left = left + length * direction
        residual = residual - length * image
        scaled = residual / curvature.diagonal
        before, size = size, (residual * scaled).sum(dim=2, keepdim=True)
        direction = scaled + size / before.clamp(min=TINY) * direction
    return left
