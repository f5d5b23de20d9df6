"""The Hessian of a layer's squared output error, made fit to be inverted."""

from dataclasses import dataclass

import torch

DAMPENING = (0.01, 0.02, 0.04, 0.08, 0.1)  # of the mean diagonal, GPTQ's section 3.3 step 3; the next where one fails


class UnusableHessianError(ValueError):
    """A Hessian that says nothing about the weights, and why."""


@dataclass(frozen=True)
class Curvature:
    """Hessians of the squared output error of a layer's rows, dampened, their columns in the order of the sweep.

    Attributes:
        order: (blocks, n), which column of the weight comes at each place: of largest diagonal first ("act-order"),
            so that the columns that matter most are rounded while most others can still make up for it.
        hessian: (blocks, n, n), dampened, float32.
        factor: (blocks, n, n), the upper Cholesky factor U of the inverse, H^-1 = U^T U, float32.
        raw: (blocks, n, n), as it was given: columns in the order of the weight, not dampened.
        dampening: share of the mean diagonal that was added.
    """

    order: torch.Tensor
    hessian: torch.Tensor
    factor: torch.Tensor
    raw: torch.Tensor
    dampening: float

    @property
    def inverse_diagonal(self) -> torch.Tensor:
        """The diagonal of the inverse, (blocks, n)."""
        return self.factor.square().sum(dim=1)

    @property
    def diagonal(self) -> torch.Tensor:
        """The diagonal of the dampened Hessian, (blocks, n, 1)."""
        return self.hessian.diagonal(dim1=1, dim2=2)[..., None]

    def laid_out(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of several jobs, (jobs, channels, n), as the sweep takes them: (jobs, blocks, n, channels / blocks)."""
        jobs, _, n = rows.shape
        parts = rows.reshape(jobs, len(self.order), -1, n).transpose(2, 3)
        return parts.gather(2, self.order[:, :, None].expand_as(parts))

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """The inverse of `laid_out`."""
        back = torch.empty_like(values).scatter_(2, self.order[:, :, None].expand_as(values), values)
        return back.transpose(2, 3).flatten(1, 2).contiguous()

    def times(self, values: torch.Tensor) -> torch.Tensor:
        """The Hessian times laid out numbers."""
        return times(self.hessian, values)


def times(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A matrix of each block times the columns of each job; job by job, so that none depends on the others' number.

    Args:
        matrix: (blocks, m, k).
        values: (jobs, blocks, k, columns).

    Returns:
        (jobs, blocks, m, columns).
    """
    return torch.stack([torch.bmm(matrix, one) for one in values])


def curvature(hessian: torch.Tensor | None, *, by_diagonal: bool = True) -> Curvature:
    """Dampen and factor Hessians.

    An input that is always zero has nothing but its dampening, so its weights are rounded to nearest.

    Args:
        hessian: mean over positions of x x^T, (blocks, n, n).
        by_diagonal: whether columns come in descending order of the diagonal, else as they are.

    Raises:
        UnusableHessianError: there is none, it is not finite, zero, or not positive definite however it is dampened.
    """
    if hessian is None:
        raise UnusableHessianError("there is no Hessian of its inputs")
    if not bool(hessian.isfinite().all()):
        raise UnusableHessianError("the Hessian of its inputs is not finite")
    wide = hessian.double()
    means = wide.diagonal(dim1=1, dim2=2).mean(dim=1)  # (blocks,)
    if not bool((means > 0).any()):
        raise UnusableHessianError("its inputs are all zero on the calibration data")
    means = torch.where(means > 0, means, 1.0)  # a group whose inputs are all zero
    diagonal = wide.diagonal(dim1=1, dim2=2)
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    if not by_diagonal:
        order = torch.arange(wide.shape[1]).expand_as(order).contiguous()
    blocks = torch.arange(len(wide))[:, None, None]
    wide = wide[blocks, order[:, :, None], order[:, None, :]]
    for share in DAMPENING:
        dampened = wide + torch.diag_embed((share * means)[:, None].expand_as(diagonal))
        factor = _inverse_factor(dampened)
        if factor is not None:
            return Curvature(order, dampened.float(), factor.float(), hessian, share)
    raise UnusableHessianError(f"the Hessian of its inputs is not positive definite, dampened by {DAMPENING[-1]:.0%}")


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor | None:
    """Upper U with H^-1 = U^T U, (blocks, n, n), or None where a Hessian is not positive definite.

    With rows and columns turned round H is L L^T; turned back, L is an upper R with H = R R^T, so that U = R^-1.
    """
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(1, 2))
    if bool(failed.any()) or not bool(lower.isfinite().all()):
        return None
    upper = lower.flip(1, 2)
    one = torch.eye(hessian.shape[1], dtype=hessian.dtype).expand_as(hessian)
    inverse: torch.Tensor = torch.linalg.solve_triangular(upper, one, upper=True)
    return inverse if bool(inverse.isfinite().all()) else None


def output_error(difference: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Mean squared change of each channel's output, d H d^T, float64 (channels,).

    Args:
        difference: changes of the weights, (channels, n).
        hessian: mean over positions of x x^T, (blocks, n, n); block b belongs to the b-th of as many parts of the rows.
    """
    parts = difference.double().reshape(len(hessian), -1, difference.shape[1])
    return ((parts @ hessian.double()) * parts).sum(dim=2).flatten().clamp(min=0)
