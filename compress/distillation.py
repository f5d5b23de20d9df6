"""Distillation losses, Hinton et al. 2015 (arXiv:1503.02531): the student learns the float model's soft outputs."""

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional

OutputKind = Literal["logits", "values"]
HardLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float, kind: OutputKind) -> torch.Tensor:
    """How far the student's outputs are from the teacher's, a scalar mean.

    Logits (samples, ..., classes): T^2 KL(softmax(teacher / T) || softmax(student / T)), the T^2 keeping gradients of
    one size at every T (Hinton et al. 2015, section 2.1). Values: mean squared error, where T plays no part.
    """
    if kind == "values":
        return functional.mse_loss(student, teacher)
    classes = student.shape[-1]
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1).reshape(-1, classes),
        functional.log_softmax(teacher / temperature, dim=-1).reshape(-1, classes),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def sample_losses(outputs: torch.Tensor, teacher: torch.Tensor, kind: OutputKind) -> torch.Tensor:
    """How far the outputs for each sample are from the teacher's, (samples,): `soft_loss` at T = 1 of each.

    Logits (samples, ..., classes): KL(softmax(teacher) || softmax(outputs)), the mean over positions. Values: mean
    squared error.
    """
    if kind == "values":
        each = functional.mse_loss(outputs, teacher, reduction="none")
    else:
        logs = functional.log_softmax(outputs, dim=-1), functional.log_softmax(teacher, dim=-1)
        each = functional.kl_div(*logs, reduction="none", log_target=True).sum(dim=-1)
    return each.reshape(each.shape[0], -1).mean(dim=1)


def pseudo_label_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the student's logits against the class that the teacher finds most likely, a scalar mean.

    Both are (samples, ..., classes); positions count as samples (Lee 2013, "Pseudo-Label", eq. 15, with a teacher).
    """
    classes = student.shape[-1]
    return functional.cross_entropy(student.reshape(-1, classes), teacher.argmax(dim=-1).reshape(-1))
