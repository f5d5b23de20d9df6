"""Layers refitted by least squares to the inputs that are left, He et al. 2017 (arXiv:1707.06168), section 3.1."""

import torch

DAMPENING = (0.01, 0.1, 1.0)  # of the mean of the diagonal, the first as GPTQ has it: columns may depend on each other


def refit(
    rows: torch.Tensor, hessian: torch.Tensor, mean: torch.Tensor | None, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights on the inputs that are left with which a layer's output changes least, and what its bias gains.

    W' = W H[:, kept] H[kept, kept]^-1 minimises the mean of |W x - W' x_kept|^2. With a `mean` the bias is fitted, too:
    H is then the covariance. A layer without a bias can take that only if BatchNorm statistics behind it are
    re-estimated, which takes in any constant. Where no dampening makes the moments invertible, the weights that are
    left stay as they are.

    Args:
        rows: weights, (channels, n).
        hessian: mean of x x^T, (blocks, n, n); block b belongs to the b-th of as many equal parts of the rows.
        mean: mean of x, (blocks, n), or None if the layer has no bias and no BatchNorm behind it.
        columns: which columns are left, increasing, (kept,).

    Returns:
        New rows, float32 (channels, kept); and what is added to the bias, float32 (channels,), zero without `mean`.
    """
    parts, shifts = [], []
    for block, moments, centre in zip(
        rows.double().chunk(len(hessian)), hessian.double(), _means(mean, hessian), strict=True
    ):
        covariance = moments - torch.outer(centre, centre)  # (n, n)
        new = _solved(block, covariance, columns)
        parts.append(block[:, columns] if new is None else new)
        shifts.append(block.new_zeros(len(block)) if new is None else block @ centre - new @ centre[columns])
    return torch.cat(parts).float(), torch.cat(shifts).float()


def _solved(rows: torch.Tensor, covariance: torch.Tensor, columns: torch.Tensor) -> torch.Tensor | None:
    """The least-squares weights on the columns, (channels, kept); None where there are none."""
    size = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for dampening in DAMPENING:
        damped = covariance + dampening * size * torch.eye(len(covariance), dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(damped[columns][:, columns])
        if not failed:
            found = torch.cholesky_solve(damped[columns] @ rows.T, factor).T
            if bool(found.isfinite().all()):
                return found
    return None


def _means(mean: torch.Tensor | None, hessian: torch.Tensor) -> torch.Tensor:
    """The mean to take away, (blocks, n)."""
    return hessian.new_zeros(hessian.shape[:2]).double() if mean is None else mean.double()
