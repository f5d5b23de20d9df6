"""Whose error it is when a candidate, a metric or the workload itself fails while it is scored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.distillation import HardLoss
from objectives.accuracy import accuracy
from objectives.evaluation import resolve_device
from objectives.score import Scorer
from objectives.splits import SPLITS, SplitName
from objectives.workload import LoadedWorkload, Metric, load_workload
from spaces.errors import CandidateError, RetryableError, WorkloadError
from spaces.policy import Choice, Policy, Unstructured
from tests import tiny
from tests.scoring import Until, evaluation, policy, scorer_of


@pytest.fixture
def loaded() -> LoadedWorkload:
    return load_workload("tests.tiny:workload")


@pytest.fixture
def scorer(loaded: LoadedWorkload, tmp_path: Path) -> Scorer:
    return scorer_of(loaded, evaluation(tmp_path))


def with_metric(loaded: LoadedWorkload, metric: Metric) -> LoadedWorkload:
    return replace(loaded, workload=replace(loaded.workload, metric=metric))


def test_a_metric_that_raises_fails_the_candidate(tmp_path: Path) -> None:
    scorer = scorer_of(load_workload("tests.tiny:picky"), evaluation(tmp_path))
    bad = Policy(sites=dict.fromkeys(("first", "second", "head"), Choice(prune=Unstructured(ratio=0.99))))
    with pytest.raises(CandidateError, match=r"the metric failed on the validation split: ArithmeticError: only 0"):
        scorer.score(bad, Until(2))
    assert scorer.float_score().validation.value > tiny.TOO_WRONG


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: torch.ones(2**62, dtype=torch.uint8), "out of memory: .*can't allocate memory"),
        (lambda: bytes(2**62), "out of memory"),
        (lambda: Path("/nowhere/table").read_bytes(), "FileNotFoundError: .*nowhere"),
    ],
    ids=["tensor", "bytes", "file"],
)
def test_a_metric_that_is_refused_memory_or_a_file_is_tried_again(
    loaded: LoadedWorkload, tmp_path: Path, ask: Callable[[], Any], words: str
) -> None:
    scorer = scorer_of(with_metric(loaded, lambda outputs, targets: ask()), evaluation(tmp_path))
    with pytest.raises(RetryableError, match="the metric failed on the validation split: " + words):
        scorer.score(policy(1), Until(2))


def test_a_metric_that_is_not_finite_fails_the_candidate(loaded: LoadedWorkload, tmp_path: Path) -> None:
    def half(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(torch.arange(len(outputs)) % 2 == 0, torch.nan, accuracy(outputs, targets))

    scorer = scorer_of(with_metric(loaded, half), evaluation(tmp_path))
    with pytest.raises(CandidateError, match="the metric is not finite on 75 of 150 samples"):
        scorer.score(policy(1), Until(2))


def test_a_site_that_the_policy_leaves_out_fails_the_candidate(scorer: Scorer) -> None:
    with pytest.raises(CandidateError, match="second"):
        scorer.score(Policy(sites={"first": Choice(), "head": Choice()}), Until(0))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (lambda outputs, targets: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda outputs, targets: float("nan"), "the metric is nan"),
        (lambda outputs: 1.0, "TypeError"),
    ],
)
def test_a_metric_that_fails_on_the_float_model_is_the_workloads_error(
    loaded: LoadedWorkload, tmp_path: Path, metric: Metric, words: str
) -> None:
    scorer = scorer_of(with_metric(loaded, metric), evaluation(tmp_path))
    with pytest.raises(WorkloadError, match="tests.tiny:workload: the float model cannot be scored: .*" + words):
        scorer.float_score()


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_the_model_cannot_read_is_the_workloads_error(
    loaded: LoadedWorkload, tmp_path: Path, name: SplitName
) -> None:
    wrong = replace(loaded.splits["test"], inputs=torch.zeros(120, 5))
    spoiled = replace(loaded, splits={**loaded.splits, name: wrong})
    with pytest.raises(
        WorkloadError, match=f"tests.tiny:workload: the model fails on the {name} split: RuntimeError: .*32x5"
    ):
        scorer_of(spoiled, evaluation(tmp_path)).float_score()


def test_an_example_that_the_model_cannot_read_is_the_workloads_error(loaded: LoadedWorkload, tmp_path: Path) -> None:
    spoiled = replace(loaded, workload=replace(loaded.workload, example_input=torch.zeros(1, 5)))
    with pytest.raises(WorkloadError, match=r"tests.tiny:workload: the model fails on the example_input"):
        scorer_of(spoiled, evaluation(tmp_path)).float_score()


def test_a_device_that_is_not_there_is_said() -> None:
    assert resolve_device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto") == "cpu"
        with pytest.raises(WorkloadError, match="take auto or cpu"):
            resolve_device("cuda")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda outputs, targets: outputs - targets, r"\(<lambda>\) on the train split fails: RuntimeError"),
        (lambda outputs, targets: outputs.sum() * torch.inf, "is -?inf for the float model"),
        (lambda outputs, targets: outputs[:, targets + 2].sum(), "IndexError.*give the Workload a loss"),
    ],
)
def test_a_loss_that_fails_on_the_float_model_is_the_workloads_error(
    loaded: LoadedWorkload, tmp_path: Path, loss: HardLoss, words: str
) -> None:
    spoiled = replace(loaded, workload=replace(loaded.workload, loss=loss))
    with pytest.raises(WorkloadError, match=r"tests\.tiny:workload: the loss .*" + words):
        scorer_of(spoiled, evaluation(tmp_path)).check_loss()
    scorer_of(spoiled, evaluation(tmp_path, steps=())).check_loss()  # nothing will be trained
