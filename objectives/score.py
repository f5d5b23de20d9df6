"""Scoring one candidate: stitch, re-estimate BatchNorm, evaluate, and, while it is promising, distil."""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.apply import stitch
from compress.artifact import Layout
from compress.calibration import reestimate_if_better
from compress.coding import CodedWeight
from compress.database import LayerDatabase, kept_mask
from compress.distillation import Lesson, Student, soft_loss
from compress.files import artifact_path, write_file
from compress.inputs import outputs
from objectives.accuracy import Accuracy, summarize
from objectives.compute import dense_macs, policy_macs
from objectives.workload import LoadedWorkload, SplitName
from spaces.errors import ArtifactError, CandidateError, RetryableError, SlimfrontError, WorkloadError
from spaces.policy import Policy

Promote = Callable[[int, float, int], bool]
Keep = Callable[[float, int], bool]
JUDGED: tuple[SplitName, SplitName] = ("validation", "test")


@dataclass(frozen=True)
class Evaluation:
    """How candidates are evaluated; fixed for a study.

    Attributes:
        seed: of the study.
        chunk: samples a forward pass.
        threads: torch threads.
        device: "cpu" or "cuda".
        steps: training steps after which rungs 1, 2, ... are scored.
        cache: folder for packed files.
    """

    seed: int
    chunk: int
    threads: int
    device: str
    steps: tuple[int, ...]
    cache: Path


@dataclass(frozen=True)
class Teacher:
    """The float model's outputs, computed once: (samples, ...), float32."""

    train: torch.Tensor
    calibration: torch.Tensor


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


def resolve_device(wished: str) -> str:
    """`auto` is cuda where there is one.

    Raises:
        WorkloadError: cuda is wished for and there is none.
    """
    if wished == "cuda" and not torch.cuda.is_available():
        raise WorkloadError("device: given cuda, but torch sees no CUDA device; take auto or cpu")
    return "cuda" if wished != "cpu" and torch.cuda.is_available() else "cpu"


def teach(loaded: LoadedWorkload, evaluation: Evaluation) -> Teacher:
    """The teacher's outputs on train (empty where nothing is distilled) and calibration data."""
    torch.set_num_threads(evaluation.threads)
    model = loaded.model.to(evaluation.device)
    try:
        calibration = _forward(loaded, model, "calibration", evaluation)
        train = _forward(loaded, model, "train", evaluation) if evaluation.steps else calibration[:0]
    finally:
        model.cpu()
    return Teacher(train, calibration)


def _forward(loaded: LoadedWorkload, model: nn.Module, split: SplitName, evaluation: Evaluation) -> torch.Tensor:
    try:
        return outputs(model, loaded.splits[split].inputs, evaluation.chunk, evaluation.device)
    except Exception as error:
        raise WorkloadError(
            f"{loaded.entry}: the model fails on the {split} split: {type(error).__name__}: {error}"
        ) from error


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
        self._loaded, self._evaluation, self._teacher = loaded, evaluation, teacher
        self.layout = Layout(loaded.model, loaded.sites, loaded.entry)
        self.database = LayerDatabase(loaded.model, loaded.sites)
        self._dense_macs = _macs(loaded)
        split = loaded.splits["train"]
        self._lesson = Lesson(split.inputs, teacher.train, split.targets, loaded.hard_loss(), loaded.workload.outputs)

    def float_score(self) -> FloatScore:
        """The uncompressed model's score.

        Raises:
            WorkloadError: model or metric fails, or the metric is not finite on it, so nothing could be searched.
        """
        model = self._loaded.model.to(self._evaluation.device)
        try:
            validation, test = (
                self._judge(_forward(self._loaded, model, name, self._evaluation), name) for name in JUDGED
            )
        except CandidateError as error:
            raise WorkloadError(f"{self._loaded.entry}: the float model cannot be scored: {error}") from error
        finally:
            model.cpu()
        weights = sum(self.database.weight(site.name).nbytes for site in self._loaded.sites)
        return FloatScore(self.layout.file_bytes(weights), validation, test, sum(self._dense_macs.values()))

    def check_loss(self) -> None:
        """Try the loss against targets once, on the float model's outputs.

        Raises:
            WorkloadError: it fails or is not finite, so no candidate could be trained.
        """
        lesson, some = self._lesson, slice(0, self._evaluation.chunk)
        if lesson.hard is None or lesson.targets is None or not lesson.teacher.shape[0]:
            return
        where = f"{self._loaded.entry}: the loss ({getattr(lesson.hard, '__name__', 'given')}) on the train split"
        try:
            value = float(lesson.hard(lesson.teacher[some], lesson.targets[some]))
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
        try:
            return self._score(policy, promote, keep)
        except SlimfrontError:
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise RetryableError(f"out of memory: {error}") from error
        except OSError as error:
            raise RetryableError(f"the cache folder {self._evaluation.cache} cannot be written: {error}") from error
        except Exception as error:
            raise CandidateError(f"{type(error).__name__}: {error}") from error

    def _score(self, policy: Policy, promote: Promote, keep: Keep) -> Score:
        evaluation = self._evaluation
        clock = time.perf_counter()
        coded = self.database.policy(policy.sites)
        model = stitch(self._loaded.model, self._loaded.sites, coded).to(evaluation.device)
        loss = self._calibrate(model)
        validation = self._accuracy(model, "validation")
        rungs = [self._rung(0, validation, coded, loss, clock)]
        student: Student | None = None
        generator = torch.Generator().manual_seed(seed_of(evaluation.seed, policy.digest))
        for rung, until in enumerate(evaluation.steps, start=1):
            last = rungs[-1]
            if policy.distillation is None or not promote(last.rung, last.accuracy, last.bytes):
                break
            clock = time.perf_counter()
            student = student or self._student(policy, model, coded)
            student.train(
                self._lesson,
                policy.distillation,
                until - (evaluation.steps[rung - 2] if rung > 1 else 0),
                generator,
            )
            coded_now, now = student.finish(), copy.deepcopy(student.model)
            loss_now = self._calibrate(now)
            if loss_now < loss:  # chosen on calibration data: a student that unlearned is not taken
                coded, model, loss = coded_now, now, loss_now
                validation = self._accuracy(model, "validation")
            rungs.append(self._rung(rung, validation, coded, loss, clock))
        artifact = self._keep(model, coded) if keep(validation.value, rungs[-1].bytes) else None
        return Score(validation.value, validation.ci95, rungs[-1].bytes, rungs[-1].macs, tuple(rungs), artifact)

    def _student(self, policy: Policy, model: nn.Module, coded: Mapping[str, CodedWeight]) -> Student:
        originals = {site.name: self.database.weight(site.name) for site in self._loaded.sites}
        kept = {name: kept_mask(weight, policy.sites[name]) for name, weight in originals.items()}
        return Student(copy.deepcopy(model), self._loaded.sites, originals, kept, coded)

    def _calibrate(self, model: nn.Module) -> float:
        evaluation, split = self._evaluation, self._loaded.splits["calibration"]

        def loss(candidate: nn.Module) -> float:
            out = outputs(candidate, split.inputs, evaluation.chunk, evaluation.device)
            return float(soft_loss(out, self._teacher.calibration, 1.0, self._loaded.workload.outputs))

        return reestimate_if_better(model, split.inputs, evaluation.chunk, loss, evaluation.device)

    def _accuracy(self, model: nn.Module, name: SplitName) -> Accuracy:
        inputs = self._loaded.splits[name].inputs
        return self._judge(outputs(model, inputs, self._evaluation.chunk, self._evaluation.device), name)

    def _judge(self, out: torch.Tensor, name: SplitName) -> Accuracy:
        split = self._loaded.splits[name]
        targets: Any = split.targets
        try:
            result = self._loaded.workload.metric(out, targets)
        except Exception as error:
            raise CandidateError(f"the metric failed on the {name} split: {type(error).__name__}: {error}") from error
        return summarize(result, split.samples)

    def _rung(
        self, rung: int, accuracy: Accuracy, coded: Mapping[str, CodedWeight], loss: float, since: float
    ) -> RungScore:
        density = {name: one.nonzero / one.values.numel() for name, one in coded.items()}
        macs = policy_macs(self._dense_macs, density)
        return RungScore(rung, accuracy.value, self._bytes(coded), macs, loss, time.perf_counter() - since)

    def _bytes(self, coded: Mapping[str, CodedWeight]) -> int:
        return self.layout.file_bytes(sum(one.payload_bytes for one in coded.values()))

    def _keep(self, model: nn.Module, coded: Mapping[str, CodedWeight]) -> str:
        blob = self.layout.pack(model, coded)
        sha256 = hashlib.sha256(blob).hexdigest()
        path = artifact_path(self._evaluation.cache, sha256)
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
            return self._accuracy(self.layout.unpack(path).to(self._evaluation.device), name)
        except SlimfrontError:
            raise
        except Exception as error:
            raise CandidateError(f"{path}: cannot be scored: {type(error).__name__}: {error}") from error


def seed_of(seed: int, text: str) -> int:
    """A 63-bit seed from the study's seed and a text such as a policy digest."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8]) >> 1
