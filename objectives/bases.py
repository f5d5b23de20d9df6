"""The float models that candidates start from: whole, or with channels and blocks cut out and corrected for that."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from compress.apply import apply
from compress.calibration import BatchNormStatistics, BiasCorrection, DistanceToTeacher, correct
from compress.database import LayerDatabase
from compress.distillation import OutputKind, sample_losses
from compress.family import Variant
from compress.gradients import SINGLES, Gradient
from compress.inputs import Inputs, count, metered, outputs, take
from compress.sensitivity import slopes
from objectives.drawing import drawn, unsureness
from objectives.evaluation import Evaluation, Teacher
from objectives.workload import LoadedWorkload
from spaces.errors import CandidateError, WorkloadError
from spaces.policy import Choice


@dataclass(frozen=True, eq=False)
class Base:
    """The float model of a setting, and how far models are from the brought one on calibration data.

    Attributes:
        variant: of the setting.
        model: of our own, on the CPU, in evaluation mode; weights are fitted to the inputs that are left, and biases
            and BatchNorm corrected where that lowers the loss. To be copied, not changed.
        inputs: calibration samples.
        teacher: the brought model's outputs for them, (samples, ...).
        kind: of outputs.
        evaluation: settings of the study.
        forwards: samples run forward to make it.
    """

    variant: Variant
    model: nn.Module
    inputs: Inputs
    teacher: torch.Tensor
    kind: OutputKind
    evaluation: Evaluation
    forwards: int

    @property
    def samples(self) -> int:
        """Calibration samples."""
        return count(self.inputs)

    @cached_property
    def slopes(self) -> Mapping[str, Gradient]:
        """Gradients at the sites that the outputs depend on, of one backward pass over all calibration samples.

        Sites in front of something that no gradient passes are left out: a gradient of zero would say they are free.
        """
        evaluation = self.evaluation
        model = copy.deepcopy(self.model).to(evaluation.device)
        try:
            found = slopes(model, self.variant.sites, self.inputs, self.kind, evaluation.chunk, evaluation.device)
        except WorkloadError:  # no gradient passes the model at all
            return {}
        return {name: one for name, one in found.items() if bool(one.fisher.any())}

    @cached_property
    def _own(self) -> torch.Tensor:
        """The loss of its own model for each calibration sample, float64 (samples,)."""
        if self.variant.is_brought:
            return torch.zeros(self.samples, dtype=torch.float64)
        evaluation = self.evaluation
        model = copy.deepcopy(self.model).to(evaluation.device)
        out = outputs(model, self.inputs, evaluation.chunk, evaluation.device)
        return sample_losses(out.double(), self.teacher.double(), self.kind)

    def own_loss(self, samples: int) -> float:
        """`loss` of its own model; 0 where nothing is cut out."""
        at, weights = self.drawn(samples)
        return float(self._own[at] @ weights)

    def passes(self, *, measured: bool) -> tuple[int, int]:
        """Samples run forward and backward for all that its sites share.

        That is the model itself, its slopes (with what is run alone, and up to three samples to see how layers are
        called) and, where sites are measured, its own loss.
        """
        own = self.samples if measured and not self.variant.is_brought else 0
        if not self.slopes:
            return self.forwards + own, 0
        run = self.samples + (min(SINGLES, self.samples) if any(one.alone for one in self.slopes.values()) else 0)
        return self.forwards + own + run + min(3, 2 * self.samples - 1), run

    def loss(self, model: nn.Module, samples: int) -> float:
        """Mean KL of a model to the brought one's outputs, estimated from some samples; squared error for values.

        Args:
            model: on the device of the study, in evaluation mode.
            samples: how many, at least 1; all, where there are fewer.
        """
        (at, weights), evaluation = self.drawn(samples), self.evaluation
        out = outputs(model, take(self.inputs, at), evaluation.chunk, evaluation.device)
        return float(sample_losses(out.double(), self.teacher[at].double(), self.kind) @ weights)

    def drawn(self, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which calibration samples a loss is estimated from, and the weight of each in it, both (samples,)."""
        return drawn(self._unsure, samples)

    @cached_property
    def _unsure(self) -> torch.Tensor:
        return unsureness(self.teacher, self.kind)


def make_base(
    loaded: LoadedWorkload, evaluation: Evaluation, teacher: Teacher, variant: Variant, database: LayerDatabase
) -> Base:
    """The float model of a variant.

    Raises:
        CandidateError: there are no outputs of the brought model to compare with.
    """
    inputs, kind = loaded.splits["calibration"].inputs, loaded.workload.outputs
    if teacher.calibration.shape[0] != count(inputs):
        raise CandidateError(
            f"sensitivities: given the brought model's outputs for {teacher.calibration.shape[0]} calibration samples, "
            f"expected {count(inputs)}"
        )
    if variant.is_brought:
        model = copy.deepcopy(variant.model).eval()
        return Base(variant, model, inputs, teacher.calibration, kind, evaluation, 0)
    float32 = {site.name: Choice() for site in variant.sites}
    applied = apply(variant.model, variant.sites, float32, database, variant.cuts)
    shifts = {name: layer.shift for name, layer in applied.layers.items() if layer.shift is not None}
    model, chunk, device = applied.model.to(evaluation.device), evaluation.chunk, evaluation.device
    corrections = (BiasCorrection(variant.sites, shifts), BatchNormStatistics(inputs, chunk, device))
    with metered(model) as meter:
        correct(model, corrections, DistanceToTeacher(inputs, teacher.calibration, kind, chunk, device))
    return Base(variant, model.cpu(), inputs, teacher.calibration, kind, evaluation, meter.samples)
