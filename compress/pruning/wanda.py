"""Wanda, Sun et al. 2023 (arXiv:2306.11695): a weight counts by its magnitude times the norm of its input."""

import torch


def wanda(rows: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """S_ij = |W_ij| ||X_j||_2 (section 3), up to a factor that is the same for the whole site; float64 (channels, n).

    The paper compares weights of one output with each other only: take the mask with `per_row=True`.

    Args:
        rows: weights, (channels, n).
        hessian: mean over positions of x x^T, (blocks, n, n), of which the diagonal is ||X_j||^2 over their number.
    """
    norms = hessian.diagonal(dim1=1, dim2=2).double().clamp(min=0).sqrt()  # (blocks, n)
    blocked = rows.detach().double().abs().reshape(len(norms), -1, rows.shape[1])  # (blocks, channels / blocks, n)
    return (blocked * norms[:, None]).reshape(rows.shape)
