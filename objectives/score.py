"""Scoring one candidate: stitch, correct, evaluate, and, while it is promising, distil."""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compress.apply import Applied, SiteReport, apply
from compress.artifact import Layout
from compress.calibration import BatchNormStatistics, BiasCorrection, Correction, correct
from compress.coding import CodedWeight
from compress.distillation import soft_loss
from compress.family import Variant
from compress.files import artifact_path, write_file
from compress.inputs import outputs
from compress.training.student import Student
from objectives.accuracy import Accuracy
from objectives.compute import dense_macs, policy_macs
from objectives.evaluation import Evaluation, Teacher, forward, seed_of
from objectives.failures import sorted_failures
from objectives.judging import JUDGED, judge
from objectives.models import Models
from objectives.splits import SplitName
from objectives.workload import LoadedWorkload
from spaces.errors import ArtifactError, CandidateError, SlimfrontError, WorkloadError
from spaces.policy import Policy

Promote = Callable[[int, float, int], bool]
Keep = Callable[[float, int], bool]


@dataclass(frozen=True)
class RungScore:
    """What a candidate was worth on one rung. `loss` is the soft loss (T = 1) on calibration data."""

    rung: int
    accuracy: float
    bytes: int
    macs: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """What a candidate is worth: its last rung, all rungs, and the packed file's hash where it was kept."""

    accuracy: float
    ci95: tuple[float, float] | None
    bytes: int
    macs: float
    rungs: tuple[RungScore, ...]
    artifact: str | None

    @property
    def rung(self) -> int:
        """The last rung."""
        return self.rungs[-1].rung


@dataclass(frozen=True)
class FloatScore:
    """The uncompressed model: the bytes of its packed file, its accuracies and multiply-accumulates."""

    bytes: int
    validation: Accuracy
    test: Accuracy
    macs: float


def _macs(loaded: LoadedWorkload) -> dict[str, float]:
    try:
        return dense_macs(loaded.model, loaded.sites, loaded.workload.example_input)
    except Exception as error:
        raise WorkloadError(
            f"{loaded.entry}: the model fails on the example_input, which is to be one batch: "
            f"{type(error).__name__}: {error}"
        ) from error


class Scorer:
    """Scores candidates of one workload; its answers depend on (seed, policy, promotions) alone.

    Args:
        loaded: the workload.
        evaluation: settings of the study.
        teacher: the float model's outputs.
    """

    def __init__(self, loaded: LoadedWorkload, evaluation: Evaluation, teacher: Teacher) -> None:
        torch.set_num_threads(evaluation.threads)
        if evaluation.device == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.loaded, self.evaluation, self.teacher = loaded, evaluation, teacher
        self.models = Models(loaded, evaluation, teacher)
        self._macs: dict[tuple[str | None, bytes], dict[str, float]] = {}

    def float_score(self) -> FloatScore:
        """The uncompressed model's score.

        Raises:
            WorkloadError: model or metric fails, or the metric is not finite on it, so nothing could be searched.
        """
        model = self.loaded.model.to(self.evaluation.device)
        try:
            validation, test = (
                judge(self.loaded, forward(self.loaded, model, name, self.evaluation), name) for name in JUDGED
            )
        except CandidateError as error:
            raise WorkloadError(f"{self.loaded.entry}: the float model cannot be scored: {error}") from error
        finally:
            model.cpu()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = sum(parameters[site.parameter].nbytes for site in self.loaded.sites)
        layout = Layout(model, self.loaded.sites, self.loaded.entry, b"")
        return FloatScore(layout.file_bytes(weights), validation, test, sum(_macs(self.loaded).values()))

    def check_loss(self) -> None:
        """Try the loss against targets once, on the float model's outputs.

        Raises:
            WorkloadError: it fails or is not finite, so no candidate could be trained.
        """
        lesson = self.models.lesson
        if lesson.hard is None or lesson.targets is None or not self.evaluation.steps:
            return
        some = torch.arange(min(self.evaluation.chunk, lesson.targets.shape[0]))
        where = f"{self.loaded.entry}: the loss ({getattr(lesson.hard, '__name__', 'given')}) on the train split"
        try:
            value = float(lesson.hard(lesson.teacher.at(some), lesson.targets[some]))
        except Exception as error:
            raise WorkloadError(
                f"{where} fails: {type(error).__name__}: {error}; give the Workload a loss, or set "
                "distillation.alpha to [1, 1]"
            ) from error
        if not math.isfinite(value):
            raise WorkloadError(f"{where} is {value} for the float model, expected a finite number")

    def score(self, policy: Policy, promote: Promote, keep: Keep) -> Score:
        """Score a policy on rung 0, and on further rungs while `promote(rung, accuracy, bytes)` says so.

        The packed file is written to the cache where `keep(accuracy, bytes)` says so.

        Raises:
            CandidateError: the policy or the metric fails on it.
            RetryableError: out of memory.
        """
        with sorted_failures(self.evaluation.cache):
            return self._score(policy, promote, keep)

    def _score(self, policy: Policy, promote: Promote, keep: Keep) -> Score:
        evaluation = self.evaluation
        clock = time.perf_counter()
        variant, applied = self._apply(policy)
        model, coded = applied.model.to(evaluation.device), applied.coded
        shifts = {name: layer.shift for name, layer in applied.layers.items() if layer.shift is not None}
        loss = self._correct(model, BiasCorrection(variant.sites, shifts))
        validation = self._accuracy(model, "validation")
        rungs = [self._rung(0, validation, variant, coded, loss, clock)]
        student: Student | None = None
        generator = torch.Generator().manual_seed(seed_of(evaluation.seed, policy.digest))
        for rung, until in enumerate(evaluation.steps, start=1):
            last = rungs[-1]
            if policy.distillation is None or not promote(last.rung, last.accuracy, last.bytes):
                break
            clock = time.perf_counter()
            student = student or self._student(policy, variant, model, applied)
            student.train(self.models.lesson, until - (evaluation.steps[rung - 2] if rung > 1 else 0), generator)
            coded_now, now = student.finish(), copy.deepcopy(student.model)
            loss_now = self._correct(now)
            if loss_now < loss:  # chosen on calibration data: a student that unlearned is not taken
                coded, model, loss = coded_now, now, loss_now
                validation = self._accuracy(model, "validation")
            rungs.append(self._rung(rung, validation, variant, coded, loss, clock))
        artifact = self._keep(variant.layout, model, coded) if keep(validation.value, rungs[-1].bytes) else None
        return Score(validation.value, validation.ci95, rungs[-1].bytes, rungs[-1].macs, tuple(rungs), artifact)

    def report(self, policy: Policy) -> tuple[SiteReport, ...]:
        """What a policy does at each site, without training.

        Raises:
            CandidateError: the policy does not fit the workload.
        """
        return self._apply(policy)[1].report

    def _apply(self, policy: Policy) -> tuple[Variant, Applied]:
        variant = self.models.variant(policy)
        database = self.models.database(policy.model)
        return variant, apply(variant.model, variant.sites, policy.sites, database, variant.cuts)

    def _student(self, policy: Policy, variant: Variant, model: nn.Module, applied: Applied) -> Student:
        parameters = dict(variant.model.named_parameters(remove_duplicate=False))
        originals = {site.name: parameters[site.parameter].detach() for site in variant.sites}
        kept = {}
        for site in variant.sites:
            mask = applied.layers[site.name].kept
            kept[site.name] = torch.ones(site.shape, dtype=torch.bool) if mask is None else site.weight(mask)
        settings = policy.distillation
        if settings is None:
            raise CandidateError("the policy has no settings of distillation")
        early = self._early(variant) if settings.rewind and policy.model is None else None  # students have none
        prune = {name: choice.prune for name, choice in policy.sites.items()}
        return Student(copy.deepcopy(model), variant.sites, originals, kept, applied.coded, settings, prune, early)

    def _early(self, variant: Variant) -> dict[str, torch.Tensor]:
        """Early weights of the brought model's sites, with its channels cut out."""
        given = self.loaded.workload.early
        if given is None:
            raise CandidateError(
                "distillation.rewind: the workload offers no early weights of its model: give Workload(early=...), or "
                "set distillation.rewind to false"
            )
        whole = {site.name: given[site.parameter].float() for site in variant.sites}
        cuts = variant.cuts
        return {
            site.name: whole[site.name].flatten()[cuts[site.name].index] if site.name in cuts else whole[site.name]
            for site in variant.sites
        }

    def _correct(self, model: nn.Module, *more: Correction) -> float:
        """Correct a model on calibration data, where that lowers the loss there; the loss that remains."""
        evaluation, split = self.evaluation, self.loaded.splits["calibration"]

        def loss(candidate: nn.Module) -> float:
            out = outputs(candidate, split.inputs, evaluation.chunk, evaluation.device)
            return float(soft_loss(out, self.teacher.calibration, 1.0, self.loaded.workload.outputs))

        statistics = BatchNormStatistics(split.inputs, evaluation.chunk, evaluation.device)
        return correct(model, (*more, statistics), loss)

    def _accuracy(self, model: nn.Module, name: SplitName) -> Accuracy:
        inputs = self.loaded.splits[name].inputs
        return judge(self.loaded, outputs(model, inputs, self.evaluation.chunk, self.evaluation.device), name)

    def _rung(
        self,
        rung: int,
        accuracy: Accuracy,
        variant: Variant,
        coded: Mapping[str, CodedWeight],
        loss: float,
        since: float,
    ) -> RungScore:
        key = (variant.member.name, variant.layout.structure)
        if key not in self._macs:
            self._macs[key] = dense_macs(variant.model, variant.sites, self.loaded.workload.example_input)
        density = {name: one.nonzero / one.values.numel() for name, one in coded.items()}
        macs = policy_macs(self._macs[key], density)
        size = sum(one.payload_bytes(self.evaluation.coding) for one in coded.values())
        bytes = variant.layout.file_bytes(size)
        return RungScore(rung, accuracy.value, bytes, macs, loss, time.perf_counter() - since)

    def _keep(self, layout: Layout, model: nn.Module, coded: Mapping[str, CodedWeight]) -> str:
        blob = layout.pack(model, coded)
        sha256 = hashlib.sha256(blob).hexdigest()
        path = artifact_path(self.evaluation.cache, sha256)
        if not path.exists():
            write_file(path, blob)
        return sha256

    def score_file(self, path: Path, name: SplitName) -> Accuracy:
        """Accuracy of a packed file on a split.

        Raises:
            ArtifactError: the file cannot be read as a model of this workload.
            CandidateError: the model or the metric fails on it.
        """
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file")
        try:
            return self._accuracy(self.models.family.load(path).to(self.evaluation.device), name)
        except SlimfrontError:
            raise
        except Exception as error:
            raise CandidateError(f"{path}: cannot be scored: {type(error).__name__}: {error}") from error
