"""Evaluating a model on a split, chunk by chunk, until it is through or a race says that it cannot win any more."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.distillation import sample_losses
from compress.inputs import call, chunks, count, same_draws
from objectives.accuracy import Accuracy, summarize
from objectives.evaluation import Evaluation
from objectives.judging import measure
from objectives.racing import Outcomes, Race, Verdict, typical_loss
from objectives.splits import SplitName
from objectives.workload import LoadedWorkload
from spaces.errors import CandidateError

Values = NDArray[np.float32]
SAME = 1e-3  # by how much the mean over chunks may differ from the whole
MOST_LOSS = 65504.0  # the largest float16, which losses are stored as: outputs may be infinite or no numbers


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an evaluation found.

    Attributes:
        accuracy: of all samples; where it was stopped, an estimate below what had to be beaten.
        outcomes: of all samples; None where it was stopped or the metric gives one number.
        loss: `racing.typical_loss` of the samples seen.
        samples: how many were seen.
        stopped: whether a race stopped it.
    """

    accuracy: Accuracy
    outcomes: Outcomes | None
    loss: float
    samples: int
    stopped: bool


class _Seen:
    """What is known of the samples so far; outcomes as far as the metric gives them."""

    def __init__(self, loaded: LoadedWorkload, name: SplitName, teacher: torch.Tensor) -> None:
        self._loaded, self._name, self._teacher = loaded, name, teacher
        self.outputs: list[torch.Tensor] = []
        self.losses: list[Values] = []
        self.samples = 0
        self._values: list[Values] = []
        self._chunks: list[tuple[float, int]] = []

    def add(self, out: torch.Tensor, race: Race | None) -> Verdict | None:
        """Add the outputs of the next chunk, (chunk, ...); the race's verdict, if there is one to be had."""
        start, size = self.samples, out.shape[0]
        losses = sample_losses(out, self._teacher[start : start + size], self._loaded.workload.outputs)
        self.losses.append(np.nan_to_num(losses.numpy(), nan=MOST_LOSS).clip(0, MOST_LOSS))
        self.outputs.append(out)
        self.samples += size
        total = self._loaded.splits[self._name].samples
        if race is None or self.samples == total:
            return None
        try:
            with torch.random.fork_rng(devices=[]):  # what a metric draws is nothing to the model
                result = measure(self._loaded, out, self._name, start)
                value = summarize(result, size).value
        except CandidateError:  # what it cannot say of a few samples it may say of all
            return None
        self._chunks.append((value, size))
        values = _values(result, size)
        if values is not None:
            self._values.append(values)
        if len(self._values) == len(self.losses):
            return race.judge(Outcomes(np.concatenate(self._values), np.concatenate(self.losses)), total)
        return race.judge_chunks(self._chunks, total)


def can_race(loaded: LoadedWorkload, teacher: torch.Tensor, chunk: int) -> bool:
    """Whether the metric says on a part of the validation split what it says on all of it.

    It does where it gives an outcome per sample. One that gives a number must be the mean over chunks, tried on the
    float model's outputs and on a bad model's, which has every second output for another sample: an F1 score or a
    correlation of few samples is something else than of all.

    Args:
        loaded: the workload.
        teacher: the float model's outputs on validation, (samples, ...).
        chunk: samples between two looks.
    """
    bad = teacher.clone()
    bad[::2] = teacher.roll(1, dims=0)[::2]
    try:
        with torch.random.fork_rng(devices=[]):
            if _values(measure(loaded, teacher, "validation"), teacher.shape[0]) is not None:
                return True
            return all(_adds_up(loaded, out, chunk) for out in (teacher, bad))
    except CandidateError:
        return False


def _adds_up(loaded: LoadedWorkload, out: torch.Tensor, chunk: int) -> bool:
    """Whether the metric on all outputs, (samples, ...), is its mean over chunks."""
    samples = out.shape[0]
    whole, total = summarize(measure(loaded, out, "validation"), samples).value, 0.0
    for start in range(0, samples, chunk):
        part = out[start : start + chunk]
        total += summarize(measure(loaded, part, "validation", start), len(part)).value * len(part)
    return abs(total / samples - whole) <= SAME * max(1.0, abs(whole))


def evaluate(
    loaded: LoadedWorkload,
    model: nn.Module,
    name: SplitName,
    teacher: torch.Tensor,
    evaluation: Evaluation,
    race: Race | None = None,
) -> Evidence:
    """Evaluate a model in evaluation mode on a split.

    Args:
        loaded: the workload.
        model: on the evaluation's device.
        name: of the split.
        teacher: the float model's outputs for it, (samples, ...), on the CPU.
        evaluation: settings of the study.
        race: looked at after each chunk but the last; None evaluates in full.

    Raises:
        CandidateError: the metric fails, or is neither one finite number nor one a sample.
    """
    inputs = loaded.splits[name].inputs
    samples, seen, verdict = count(inputs), _Seen(loaded, name, teacher), None
    model.eval()
    with torch.no_grad(), same_draws(evaluation.device):
        for part in chunks(inputs, evaluation.chunk, evaluation.device):
            verdict = seen.add(call(model, part).float().cpu(), race)
            if verdict is not None and verdict.hopeless:
                break
    losses = np.concatenate(seen.losses)
    loss = typical_loss(losses)
    if race is not None and verdict is not None and verdict.hopeless:
        return Evidence(_below(race.threshold, verdict, samples), None, loss, seen.samples, True)
    result = measure(loaded, torch.cat(seen.outputs), name)
    values = _values(result, samples)
    outcomes = None if values is None else Outcomes(values, losses)
    return Evidence(summarize(result, samples), outcomes, loss, samples, False)


def _below(threshold: float, verdict: Verdict, samples: int) -> Accuracy:
    """What was estimated, cut to below the threshold by half of what a sample counts at least."""
    most = min(threshold - 1 / (2 * samples), math.nextafter(threshold, -math.inf))
    return Accuracy(min(verdict.accuracy, most), (min(verdict.low, most), min(verdict.high, most)))


def _values(result: Any, samples: int) -> Values | None:
    """The outcome of each sample, if that is what the metric returned."""
    if not isinstance(result, torch.Tensor) or result.shape != (samples,):
        return None
    values: Values = result.detach().float().cpu().numpy()
    return values
