"""Optimal Brain Surgeon on a layer's squared output error, Frantar et al. 2022 (arXiv:2208.11580, "OBC").

The error of a row v for w is (w - v) H (w - v)^T with H the mean of x x^T. Its least value where weight p is zero is
known in closed form (LeCun et al. 1990, Hassibi & Stork 1993): which says what to remove, and what to do to the others.
"""

import torch

DAMPING = 0.01  # share of the Hessian's mean diagonal that is added to it, as in GPTQ (arXiv:2210.17323, section 3.3)
_BATCH = 2**25  # numbers in the inverses that are downdated at a time: 256 MiB


def saliency(rows: torch.Tensor, hessian: torch.Tensor, *, damping: float = DAMPING) -> torch.Tensor:
    """w_p^2 / [H^-1]_pp of each weight (eq. 2): the error where it alone is removed; float64 (channels, n).

    Args:
        rows: weights, (channels, n).
        hessian: mean over positions of x x^T, (blocks, n, n).
        damping: share of the Hessian's mean diagonal that is added to its diagonal.

    Raises:
        ValueError: the Hessian is not positive definite, dampened as it is.
    """
    factor = _factor(hessian, damping)
    one = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    # H = L L^T, so [H^-1]_pp is the squared norm of column p of L^-1
    diagonal = torch.linalg.solve_triangular(factor, one, upper=False).square().sum(dim=1)  # (blocks, n)
    blocked = rows.detach().double().reshape(len(hessian), -1, rows.shape[1])  # (blocks, channels / blocks, n)
    return torch.div(blocked.square(), diagonal[:, None]).reshape(rows.shape)


def prune_rows(
    rows: torch.Tensor, hessian: torch.Tensor, count: int, *, damping: float = DAMPING
) -> tuple[torch.Tensor, torch.Tensor]:
    """Remove `count` weights of each row, one at a time, and let the others make up for each (algorithm 1).

    It costs O(channels n^2 count): for small layers. Rows are independent, since they share no weight.

    Args:
        rows: weights, (channels, n).
        hessian: mean over positions of x x^T, (blocks, n, n).
        count: weights to remove of each row, 0 to n.
        damping: share of the Hessian's mean diagonal that is added to its diagonal.

    Returns:
        The weights that are left, float32 (channels, n), and which they are, boolean. For the weights that it keeps
        no other values have less (dampened) error.

    Raises:
        ValueError: the Hessian is not positive definite, dampened as it is.
    """
    inverses = torch.cholesky_inverse(_factor(hessian, damping))  # (blocks, n, n)
    blocked = rows.detach().double().reshape(len(hessian), -1, rows.shape[1])  # (blocks, channels / blocks, n)
    at_once = max(1, _BATCH // hessian[0].numel())
    done = [
        _prune(part, inverse, count)
        for block, inverse in zip(blocked, inverses, strict=True)
        for part in block.split(at_once)
    ]
    return torch.cat([left for left, _ in done]).float(), torch.cat([kept for _, kept in done])


def _prune(weights: torch.Tensor, inverse: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left of rows (m, n) that share an inverse Hessian (n, n), and which weights they are."""
    weights, inverse = weights.clone(), inverse.repeat(len(weights), 1, 1)  # (m, n), (m, n, n)
    kept = torch.ones_like(weights, dtype=torch.bool)
    row = torch.arange(len(weights), device=weights.device)
    for _ in range(count):
        diagonal = torch.where(kept, inverse.diagonal(dim1=1, dim2=2), 1.0)
        p = torch.where(kept, weights.square() / diagonal, torch.inf).argmin(dim=1)  # eq. 2, left
        column, pivot = inverse[row, :, p], diagonal[row, p, None]  # (m, n), (m, 1)
        weights -= weights[row, p, None] / pivot * column  # eq. 2, right
        # eq. 3 (lemma 1): the inverse of H without its row and column p
        inverse.baddbmm_(column[:, :, None], (column / pivot)[:, None, :], alpha=-1)
        kept[row, p] = False
        weights[row, p] = 0.0
    return torch.where(kept, weights, 0.0), kept


def _factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The lower Cholesky factor of each dampened Hessian, float64 (blocks, n, n)."""
    dampened = hessian.double()
    extra = damping * dampened.diagonal(dim1=1, dim2=2).mean(dim=1)  # (blocks,)
    dampened = dampened + torch.diag_embed(extra[:, None].expand(-1, hessian.shape[-1]))
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(dampened)
    if bool(failed.any()) or not bool(factor.isfinite().all()):
        raise ValueError(f"the Hessian of the inputs, dampened by {damping:g} of its mean, is not positive definite")
    return factor
