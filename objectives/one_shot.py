"""Candidates as models: carried out without training, and corrected on calibration data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from compress.apply import Applied, apply
from compress.calibration import BatchNormStatistics, BiasCorrection, Correction, DistanceToTeacher, correct
from compress.coding import CodedWeight
from compress.family import Variant
from compress.inputs import metered, take
from objectives.compute import dense_macs, policy_macs
from objectives.drawing import drawn, unsureness
from objectives.evaluation import Evaluation, Teacher
from objectives.models import Models
from objectives.workload import LoadedWorkload
from spaces.policy import Policy

LOSS_SAMPLES = 64  # calibration samples by which corrections are judged


@dataclass(frozen=True, eq=False)
class OneShot:
    """A policy carried out, without training or as its training left it.

    Attributes:
        variant: the float model that its choices are for.
        applied: what was done at each site.
        model: stitched and corrected, in evaluation mode, on the evaluation's device.
        coded: the coded weights by site.
        bytes: of its packed file.
        macs: multiply-accumulates with weights that are not zero.
        calibration_loss: soft loss (T = 1) on calibration data, estimated from some of them.
        forwards: samples put through the model to correct it.
    """

    variant: Variant
    applied: Applied
    model: nn.Module
    coded: Mapping[str, CodedWeight]
    bytes: int
    macs: float
    calibration_loss: float
    forwards: int


class Workshop:
    """Carries policies of one workload out.

    Args:
        loaded: the workload.
        evaluation: settings of the study.
        teacher: the float model's outputs.
        models: of the workload.
    """

    def __init__(self, loaded: LoadedWorkload, evaluation: Evaluation, teacher: Teacher, models: Models) -> None:
        self._loaded, self._evaluation, self._teacher, self._models = loaded, evaluation, teacher, models
        self._macs: dict[tuple[str | None, bytes], dict[str, float]] = {}

    def carry_out(self, policy: Policy) -> tuple[Variant, Applied]:
        """The float model that a policy's choices are for, and what they make of it.

        Raises:
            CandidateError: the policy does not fit the workload.
        """
        variant = self._models.variant(policy)
        database = self._models.database(policy.model)
        return variant, apply(variant.model, variant.sites, policy.sites, database, variant.cuts)

    def one_shot(self, policy: Policy) -> OneShot:
        """Carry a policy out without training, and correct it on calibration data.

        Raises:
            CandidateError: the policy does not fit the workload.
        """
        variant, applied = self.carry_out(policy)
        shifts = {name: layer.shift for name, layer in applied.layers.items() if layer.shift is not None}
        bias = BiasCorrection(variant.sites, shifts)
        return self.corrected(variant, applied, applied.model.to(self._evaluation.device), applied.coded, bias)

    def corrected(
        self,
        variant: Variant,
        applied: Applied,
        model: nn.Module,
        coded: Mapping[str, CodedWeight],
        *more: Correction,
    ) -> OneShot:
        """Correct a model on calibration data, in place, where that lowers the loss there; what it is then.

        Args:
            variant: the float model that it was made of.
            applied: what was done to that.
            model: on the evaluation's device.
            coded: its coded weights by site.
            more: corrections before that of BatchNorm statistics.
        """
        evaluation, split = self._evaluation, self._loaded.splits["calibration"]
        statistics = BatchNormStatistics(split.inputs, evaluation.chunk, evaluation.device)
        with metered(model) as meter:
            left = correct(model, (*more, statistics), self._loss)
        size, macs = self._size(variant, coded)
        return OneShot(variant, applied, model, coded, size, macs, left, meter.samples)

    @cached_property
    def _loss(self) -> DistanceToTeacher:
        """Estimated from a few samples that tell the most: corrections are judged by it, which all candidates pay."""
        evaluation, teacher = self._evaluation, self._teacher.calibration
        kind, inputs = self._loaded.workload.outputs, self._loaded.splits["calibration"].inputs
        at, weights = drawn(unsureness(teacher, kind), LOSS_SAMPLES)
        return DistanceToTeacher(take(inputs, at), teacher[at], kind, evaluation.chunk, evaluation.device, weights)

    def _size(self, variant: Variant, coded: Mapping[str, CodedWeight]) -> tuple[int, float]:
        """Bytes of the packed file, and multiply-accumulates with weights that are not zero."""
        key = (variant.member.name, variant.layout.structure)
        if key not in self._macs:
            self._macs[key] = dense_macs(variant.model, variant.sites, self._loaded.workload.example_input)
        density = {name: one.nonzero / one.values.numel() for name, one in coded.items()}
        size = sum(one.payload_bytes(self._evaluation.coding) for one in coded.values())
        return variant.layout.file_bytes(size), policy_macs(self._macs[key], density)
