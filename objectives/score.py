"""Scoring one candidate: stitch, correct, evaluate, and, while it is promising, distil."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from compress.apply import SiteReport
from compress.artifact import Opened, open_packed, opened
from compress.files import artifact_name
from compress.inputs import outputs
from compress.shared import END_SECONDS
from objectives.accuracy import Accuracy
from objectives.climbing import Climb
from objectives.evaluation import Evaluation, Teacher, forward
from objectives.evidence import Evidence, can_race, evaluate
from objectives.failures import sorted_failures
from objectives.float_score import FloatScore, check_loss, float_score
from objectives.judging import Judge, judge
from objectives.models import Models
from objectives.one_shot import OneShot, Workshop
from objectives.packed import keep_packed
from objectives.racing import Outcomes, Race
from objectives.splits import SplitName
from objectives.threads import set_threads
from objectives.workload import LoadedWorkload
from spaces.errors import CandidateError, SlimfrontError
from spaces.policy import Policy


@dataclass(frozen=True)
class RungScore:
    """What a candidate was worth on one rung, and what that took.

    Attributes:
        rung: 0 is without training.
        accuracy: on validation data; an estimate where a race stopped it.
        bytes: of its packed file.
        macs: multiply-accumulates with weights that are not zero.
        loss: soft loss (T = 1) on calibration data.
        seconds: spent on this rung.
        validation_loss: KL to the float model's outputs on the validation samples used: `racing.typical_loss`.
        samples: validation samples used.
        forwards: samples put through the model on this rung, to correct, evaluate and train it.
        backwards: samples trained on.
    """

    rung: int
    accuracy: float
    bytes: int
    macs: float
    loss: float
    seconds: float
    validation_loss: float
    samples: int
    forwards: int
    backwards: int


@dataclass(frozen=True)
class Score:
    """What a candidate is worth.

    Attributes:
        accuracy: of its last rung, as are `ci95` (None where the metric gives one number), `bytes` and `macs`.
        rungs: the scores of all rungs.
        artifact: the packed file's hash, where it was kept.
        stopped: whether a race stopped its last evaluation; the accuracy is then below what was to be beaten.
        outcomes: by rung, of all validation samples; None where it was stopped or the metric gives one number.
    """

    accuracy: float
    ci95: tuple[float, float] | None
    bytes: int
    macs: float
    rungs: tuple[RungScore, ...]
    artifact: str | None
    stopped: bool = False
    outcomes: tuple[Outcomes | None, ...] = field(default=(), compare=False, repr=False)

    @property
    def rung(self) -> int:
        """The last rung."""
        return self.rungs[-1].rung


class Scorer:
    """Scores candidates of one workload; its answers depend on (seed, policy, judge) alone.

    Args:
        loaded: the workload.
        evaluation: settings of the study.
        teacher: the float model's outputs.
    """

    def __init__(self, loaded: LoadedWorkload, evaluation: Evaluation, teacher: Teacher) -> None:
        set_threads(evaluation.threads)
        if evaluation.device == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.loaded, self.evaluation, self.teacher = loaded, evaluation, teacher
        self.models = Models(loaded, evaluation, teacher)
        self._workshop = Workshop(loaded, evaluation, teacher, self.models)
        self._taught: dict[SplitName, torch.Tensor] = {
            "calibration": teacher.calibration,
            "validation": teacher.validation,
        }

    @cached_property
    def _can_race(self) -> bool:
        return can_race(self.loaded, self.teacher.validation, self.evaluation.chunk)

    def float_score(self) -> FloatScore:
        """The uncompressed model's score.

        Raises:
            WorkloadError: model or metric fails, or the metric is not finite on it, so nothing could be searched.
        """
        return float_score(self.loaded, self.evaluation)

    def check_loss(self) -> None:
        """Try the loss against targets once, on the float model's outputs.

        Raises:
            WorkloadError: it fails or is not finite, so no candidate could be trained.
        """
        check_loss(self.loaded, self.models.lesson, self.evaluation)

    def score(self, policy: Policy, judge: Judge, start: Sequence[RungScore] = ()) -> Score:
        """Score a policy on rung 0, and on further rungs while the judge promotes it and no race stops it.

        The packed file is written to the cache where the judge keeps it.

        Args:
            policy: the candidate's.
            judge: the rules for it.
            start: see `packed`.

        Raises:
            CandidateError: the policy or the metric fails on it, or there is no next rung.
            RetryableError: out of memory, or the cache folder cannot be written.
        """
        score, blob = self.packed(policy, judge, start)
        if score.artifact is not None and blob is not None:
            self.share(score.artifact, blob)
            keep_packed(self.evaluation.cache, score.artifact, blob)
        return score

    def packed(self, policy: Policy, judge: Judge, start: Sequence[RungScore] = ()) -> tuple[Score, bytes | None]:
        """The same, which writes no packed file: where the judge keeps it, it comes beside the score.

        Args:
            policy: the candidate's.
            judge: the rules for it.
            start: the scores that it has on the first rungs: they are taken over at no cost, and it goes on to the
                next rung.

        Raises:
            CandidateError: the policy or the metric fails on it, or there is no next rung.
            RetryableError: out of memory.
        """
        with sorted_failures():
            return self._score(policy, judge, start)

    def _score(self, policy: Policy, judge: Judge, start: Sequence[RungScore]) -> tuple[Score, bytes | None]:
        clock = time.perf_counter()
        climb = Climb(self.loaded, self.evaluation, self.models, self._workshop, policy, self.one_shot(policy))
        rungs = [replace(one, seconds=0.0, forwards=0, backwards=0) for one in start]
        outcomes: list[Outcomes | None] = [None] * len(start)
        climb.up_to(max(0, len(start) - 1))
        found: Evidence | None = None
        for rung in range(len(start), len(self.evaluation.steps) + 1):
            if found is not None:
                goes_on = judge.promote(rung - 1, rungs[-1].accuracy, rungs[-1].bytes) if policy.distillation else False
                if found.stopped or not goes_on:
                    break
                clock = time.perf_counter()
            samples = 0
            if rung == 0 or climb.up():
                found = self._evaluate(climb.best.model, judge.race(rung, climb.best.bytes) if self._can_race else None)
                samples = found.samples
            elif found is None:  # what was taken over is still the best
                found = self._evaluate(climb.best.model, None)
                samples = found.samples
            rungs.append(_rung(rung, climb, found, samples, clock))
            outcomes.append(found.outcomes)
        if found is None:
            raise CandidateError(f"it has scores of {len(start)} rungs, and there is no next one")
        best, accuracy = climb.best, found.accuracy
        if not found.stopped:
            climb.keep()
        kept = not found.stopped and judge.keep(accuracy.value, best.bytes)
        blob = best.variant.layout.pack(best.model, best.coded) if kept else None
        artifact = None if blob is None else hashlib.sha256(blob).hexdigest()
        score = Score(
            accuracy.value, accuracy.ci95, best.bytes, best.macs, tuple(rungs), artifact, found.stopped, tuple(outcomes)
        )
        return score, blob

    def one_shot(self, policy: Policy) -> OneShot:
        """Carry a policy out without training, and correct it on calibration data.

        Raises:
            CandidateError: the policy does not fit the workload.
        """
        return self._workshop.one_shot(policy)

    def outcomes(self, model: nn.Module, split: SplitName) -> Outcomes:
        """Evidence for each sample of a split, all of it.

        Args:
            model: in evaluation mode, on the evaluation's device.
            split: its name; validation is in the racing order.

        Raises:
            CandidateError: the metric fails, or gives one number for all samples.
        """
        found = evaluate(self.loaded, model, split, self._teacher_on(split), self.evaluation).outcomes
        if found is None:
            raise CandidateError(f"the metric gives one number for the {split} split, expected one for each sample")
        return found

    def report(self, policy: Policy) -> tuple[SiteReport, ...]:
        """What a policy does at each site, without training.

        Raises:
            CandidateError: the policy does not fit the workload.
        """
        return self._workshop.carry_out(policy)[1].report

    def _evaluate(self, model: nn.Module, race: Race | None) -> Evidence:
        return evaluate(self.loaded, model, "validation", self.teacher.validation, self.evaluation, race)

    def _teacher_on(self, split: SplitName) -> torch.Tensor:
        """The float model's outputs, (samples, ...), on the CPU."""
        if split not in self._taught:
            model = self.loaded.model.to(self.evaluation.device)
            self._taught[split] = forward(self.loaded, model, split, self.evaluation)
            model.cpu()
        return self._taught[split]

    def share(self, sha256: str, blob: bytes) -> None:
        """Give other nodes a packed file, where the study has a shared folder; what fails is no error."""
        if self.models.shared is not None:
            self.models.shared.put(artifact_name(sha256), blob, wait=True)

    def close(self) -> None:
        """Give what other nodes may use, and is not yet in the study's shared folder, a few seconds to get there."""
        if self.models.shared is not None:
            self.models.shared.flush(END_SECONDS)

    def score_file(self, path: Path, name: SplitName) -> Accuracy:
        """Accuracy of a packed file on a split.

        Raises:
            ArtifactError: the file cannot be read as a model of this workload.
            CandidateError: the model or the metric fails on it.
        """
        return self._score_opened(open_packed(path), name)

    def score_blob(self, blob: bytes, path: Path, name: SplitName) -> Accuracy:
        """Accuracy of a packed file that was read on a split.

        Args:
            blob: it.
            path: where it was, for messages.
            name: the split's.

        Raises:
            ArtifactError: the file cannot be read as a model of this workload.
            CandidateError: the model or the metric fails on it.
        """
        return self._score_opened(opened(blob, path), name)

    def _score_opened(self, file: Opened, name: SplitName) -> Accuracy:
        try:
            model = self.models.family.model_of(file).to(self.evaluation.device)
            inputs = self.loaded.splits[name].inputs
            return judge(self.loaded, outputs(model, inputs, self.evaluation.chunk, self.evaluation.device), name)
        except SlimfrontError:
            raise
        except Exception as error:
            raise CandidateError(f"{file.path}: cannot be scored: {type(error).__name__}: {error}") from error


def _rung(rung: int, climb: Climb, found: Evidence, samples: int, since: float) -> RungScore:
    forwards, backwards = climb.spent()
    return RungScore(
        rung,
        found.accuracy.value,
        climb.best.bytes,
        climb.best.macs,
        climb.best.calibration_loss,
        time.perf_counter() - since,
        found.loss,
        found.samples,
        forwards + samples,
        backwards,
    )
