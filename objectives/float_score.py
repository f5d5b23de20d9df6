"""What the uncompressed model is worth, and whether its workload can be searched at all."""

import math
from dataclasses import dataclass

import torch

from compress.artifact import Layout
from compress.training.lesson import Lesson
from objectives.accuracy import Accuracy
from objectives.compute import dense_macs
from objectives.evaluation import Evaluation, forward
from objectives.judging import JUDGED, judge
from objectives.workload import LoadedWorkload
from spaces.errors import CandidateError, RetryableError, WorkloadError


@dataclass(frozen=True)
class FloatScore:
    """The uncompressed model: the bytes of its packed file, its accuracies and multiply-accumulates."""

    bytes: int
    validation: Accuracy
    test: Accuracy
    macs: float


def float_score(loaded: LoadedWorkload, evaluation: Evaluation) -> FloatScore:
    """The uncompressed model's score.

    Raises:
        WorkloadError: model or metric fails, or the metric is not finite on it, so nothing could be searched.
    """
    model = loaded.model.to(evaluation.device)
    try:
        validation, test = (judge(loaded, forward(loaded, model, name, evaluation), name) for name in JUDGED)
    except (CandidateError, RetryableError) as error:
        raise WorkloadError(f"{loaded.entry}: the float model cannot be scored: {error}") from error
    finally:
        model.cpu()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = sum(parameters[site.parameter].nbytes for site in loaded.sites)
    layout = Layout(model, loaded.sites, loaded.entry, b"")
    return FloatScore(layout.file_bytes(weights), validation, test, sum(_macs(loaded).values()))


def _macs(loaded: LoadedWorkload) -> dict[str, float]:
    try:
        return dense_macs(loaded.model, loaded.sites, loaded.workload.example_input)
    except Exception as error:
        raise WorkloadError(
            f"{loaded.entry}: the model fails on the example_input, which is to be one batch: "
            f"{type(error).__name__}: {error}"
        ) from error


def check_loss(loaded: LoadedWorkload, lesson: Lesson, evaluation: Evaluation) -> None:
    """Try the loss against targets once, on the float model's outputs.

    Raises:
        WorkloadError: it fails or is not finite, so no candidate could be trained.
    """
    if lesson.hard is None or lesson.targets is None or not evaluation.steps:
        return
    some = torch.arange(min(evaluation.chunk, lesson.targets.shape[0]))
    where = f"{loaded.entry}: the loss ({getattr(lesson.hard, '__name__', 'given')}) on the train split"
    try:
        value = float(lesson.hard(lesson.teacher.at(some), lesson.targets[some]))
    except Exception as error:
        raise WorkloadError(
            f"{where} fails: {type(error).__name__}: {error}; give the Workload a loss, or set "
            "distillation.alpha to [1, 1]"
        ) from error
    if not math.isfinite(value):
        raise WorkloadError(f"{where} is {value} for the float model, expected a finite number")
