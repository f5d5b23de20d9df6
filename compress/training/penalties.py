"""What shrinks weights while a student learns: L1 on weights, group lasso on channels, or L1 on BatchNorm scales.

L1: Tibshirani 1996. Group lasso: Wen et al. 2016 (arXiv:1608.03665). BatchNorm scales ("network slimming"): Liu et al.
2017 (arXiv:1708.06519).
"""

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spaces.errors import CandidateError
from spaces.policy import Penalty


def l1(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of the absolute values."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


def group_lasso(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over output channels of sqrt(n) ||w||_2, of weights (channels, n) each: Wen et al. 2016, eqs. 2 and 5.

    sqrt(n) makes channels of all sizes alike (Yuan & Lin 2006, eq. 2.1). A channel of zeros has gradient zero.
    """
    norms = [weight.shape[1] ** 0.5 * torch.linalg.vector_norm(weight, dim=1).sum() for weight in weights]
    return torch.stack(norms).sum()


def batchnorm_scales(model: nn.Module) -> list[nn.Parameter]:
    """The scales of a model's BatchNorm layers, once each.

    Raises:
        CandidateError: it has none.
    """
    found = [m.weight for m in model.modules() if isinstance(m, _BatchNorm) and m.weight is not None]
    if not found:
        raise CandidateError(
            f"the penalty batchnorm_l1 needs BatchNorm layers with scales, and {type(model).__name__} has none: "
            "take l1 or group_lasso"
        )
    return list(dict.fromkeys(found))


def penalty_of(penalty: Penalty, weights: Sequence[torch.Tensor], model: nn.Module) -> torch.Tensor:
    """The penalty times its strength, a scalar to add to the loss.

    Args:
        penalty: which one, and how strong.
        weights: the weights of the sites that are not pruned (zeros elsewhere), (channels, n) each.
        model: the student.

    Raises:
        CandidateError: it is one on BatchNorm scales, and the model has none.
    """
    match penalty.kind:
        case "l1":
            value = l1(weights)
        case "group_lasso":
            value = group_lasso(weights)
        case "batchnorm_l1":
            value = l1(batchnorm_scales(model))  # Liu et al. 2017, eq. 1: g(s) = |s|
        case _:
            assert_never(penalty.kind)
    return penalty.strength * value
