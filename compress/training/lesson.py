"""What a student learns from, and the loss that its outputs have there."""

from dataclasses import dataclass

import torch
from torch import nn

from compress.distillation import HardLoss, OutputKind, pseudo_label_loss, soft_loss
from compress.inputs import Inputs
from compress.training.teacher import TeacherOutputs
from spaces.policy import Distillation


@dataclass(frozen=True)
class Lesson:
    """Training inputs, the teacher's outputs on them, and targets where there are any.

    Attributes:
        inputs: of the training data.
        teacher: the float model's outputs on them.
        targets: of the training data; None where there are none.
        hard: the loss against targets; None leaves the soft loss alone.
        kind: "logits" (samples, ..., classes) or "values".
        model: the float model itself, which feature losses need.
    """

    inputs: Inputs
    teacher: TeacherOutputs
    targets: torch.Tensor | None
    hard: HardLoss | None
    kind: OutputKind = "logits"
    model: nn.Module | None = None

    def loss(self, output: torch.Tensor, index: torch.Tensor, settings: Distillation) -> torch.Tensor:
        """The loss of a student's outputs for the samples at `index`: alpha soft + (1 - alpha) hard, a scalar.

        The hard loss is against the targets. Where there are none, or settings.labels says so, it is the cross entropy
        to the class that the teacher finds most likely; values have no such class, and only the soft loss counts.
        """
        teacher = self.teacher.at(index).to(output.device)
        soft = soft_loss(output, teacher, settings.temperature, self.kind)
        if settings.alpha == 1:
            return soft
        if self.targets is None or settings.labels == "teacher":
            if self.kind == "values":
                return soft
            hard = pseudo_label_loss(output, teacher)
        elif self.hard is None:
            return soft
        else:
            hard = self.hard(output, self.targets[index].to(output.device))
        return settings.alpha * soft + (1 - settings.alpha) * hard
