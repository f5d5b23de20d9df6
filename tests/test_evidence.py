"""Evaluations chunk by chunk find what one evaluation of all finds, and races stop them where they say so."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.distillation import sample_losses, soft_loss
from compress.inputs import outputs
from objectives.evaluation import Evaluation, teach
from objectives.evidence import MOST_LOSS, Evidence, can_race, evaluate
from objectives.judging import judge
from objectives.racing import Outcomes, Race, Verdict, typical_loss
from objectives.workload import LoadedWorkload, Metric, load_workload
from spaces.errors import CandidateError
from tests.scoring import evaluation

LOST, WON = Race(2.0, (), 0.95), Race(-1e9, (), 0.95)  # no accuracy is above 2, all are above -1e9


def damaged(loaded: LoadedWorkload, by: float = 0.4) -> nn.Module:
    """The float model with noise on its weights."""
    model, _ = loaded.model, torch.manual_seed(0)
    changed = load_workload(loaded.entry).model
    for old, new in zip(model.parameters(), changed.parameters(), strict=True):
        new.data.add_(by * torch.randn(old.shape))
    return changed


def found(loaded: LoadedWorkload, race: Race | None, settings: Evaluation | None = None) -> Evidence:
    settings = settings or evaluation(Path())
    return evaluate(loaded, damaged(loaded), "validation", teach(loaded, settings).validation, settings, race)


def with_metric(loaded: LoadedWorkload, metric: Metric) -> LoadedWorkload:
    return replace(loaded, workload=replace(loaded.workload, metric=metric))


@pytest.mark.parametrize("entry", ["workload", "regression", "scalar", "unlabelled"])
@pytest.mark.parametrize("race", [None, WON])
def test_a_full_evaluation_is_that_of_all_outputs_at_once(entry: str, race: Race | None) -> None:
    loaded, settings = load_workload(f"tests.tiny:{entry}"), evaluation(Path())
    out = outputs(damaged(loaded), loaded.splits["validation"].inputs, settings.chunk)
    made = found(loaded, race)
    assert made.accuracy == judge(loaded, out, "validation")
    assert (made.samples, made.stopped) == (150, False)
    teacher = teach(loaded, settings).validation
    roots = sample_losses(out, teacher, loaded.workload.outputs).double().sqrt()
    assert made.loss == pytest.approx(float(roots.mean()) ** 2, rel=1e-6)
    if entry == "scalar":
        assert made.outcomes is None
        return
    assert made.outcomes is not None
    assert made.outcomes.values.tolist() == torch.as_tensor(loaded.workload.metric(out, _targets(loaded))).tolist()
    assert typical_loss(made.outcomes.losses) == made.loss
    mean = float(soft_loss(out, teacher, 1.0, loaded.workload.outputs))
    assert made.outcomes.losses.mean() == pytest.approx(mean, rel=1e-5)


def _targets(loaded: LoadedWorkload) -> Tensor:
    targets = loaded.splits["validation"].targets
    return torch.empty(0) if targets is None else targets


def test_losses_are_the_divergence_of_each_sample() -> None:
    loaded, settings = load_workload("tests.tiny:workload"), evaluation(Path())
    out = outputs(damaged(loaded), loaded.splits["validation"].inputs, settings.chunk).double()
    float_out = teach(loaded, settings).validation.double()
    p, q = float_out.softmax(dim=1), out.softmax(dim=1)
    made = found(loaded, None).outcomes
    assert made is not None
    assert np.allclose(made.losses, (p * (p / q).log()).sum(dim=1).numpy(), atol=1e-5)


@pytest.mark.parametrize("entry", ["workload", "regression", "scalar"])
@pytest.mark.parametrize("chunk", [7, 32, 50])
def test_it_stops_at_the_first_look_that_is_hopeless(entry: str, chunk: int) -> None:
    loaded = load_workload(f"tests.tiny:{entry}")
    settings = replace(evaluation(Path()), chunk=chunk)
    whole = found(loaded, None, settings)
    race = Race(whole.accuracy.value + 0.2 * (1 + abs(whole.accuracy.value)), (), 0.95)
    made = found(loaded, race, settings)
    looks = _verdicts(loaded, whole, race, settings)
    first = next((i for i, verdict in enumerate(looks) if verdict.hopeless), None)
    if first is None:
        assert not made.stopped
        return
    assert made.stopped
    assert (made.samples, made.outcomes) == ((first + 1) * chunk, None)
    most = race.threshold - 1 / 300
    assert made.accuracy.value == min(looks[first].accuracy, most) < race.threshold
    assert made.accuracy.ci95 == (min(looks[first].low, most), min(looks[first].high, most))
    if whole.outcomes is not None:
        assert made.loss == pytest.approx(typical_loss(whole.outcomes.losses[: made.samples]), rel=1e-6)


def _verdicts(loaded: LoadedWorkload, whole: Evidence, race: Race, settings: Evaluation) -> list[Verdict]:
    """What the race says after each chunk but the last, from what the whole evaluation found."""
    ends = range(settings.chunk, 150, settings.chunk)
    if whole.outcomes is not None:
        values, losses = whole.outcomes.values, whole.outcomes.losses
        return [race.judge(Outcomes(values[:end], losses[:end]), 150) for end in ends]
    out = outputs(damaged(loaded), loaded.splits["validation"].inputs, settings.chunk)
    chunks = zip(torch.split(out, settings.chunk), torch.split(_targets(loaded), settings.chunk), strict=True)
    parts = [(float(loaded.workload.metric(*chunk)), settings.chunk) for chunk in chunks]
    return [race.judge_chunks(parts[: i + 1], 150) for i in range(len(ends))]


def test_a_lost_race_ends_early_and_below_the_bar() -> None:
    made = found(load_workload("tests.tiny:workload"), LOST)
    assert made.stopped
    assert made.samples < 150
    assert made.accuracy.value < LOST.threshold


def test_the_cut_is_below_the_threshold_however_large_that_is() -> None:
    loaded = with_metric(load_workload("tests.tiny:workload"), lambda out, _: out[:, 0] * 1e18)
    made = found(loaded, Race(1e20, (), 0.95))
    assert made.stopped
    assert made.accuracy.value < 1e20


def _only_all(out: Tensor, targets: Tensor) -> Tensor:
    if len(out) < 150:
        raise ValueError("needs both kinds of samples")
    return (out.argmax(dim=1) == targets).float()


@pytest.mark.parametrize("metric", [_only_all, lambda out, _: torch.nan if len(out) < 150 else 0.5])
def test_a_metric_that_cannot_judge_a_few_samples_judges_all(metric: Metric) -> None:
    made = found(with_metric(load_workload("tests.tiny:workload"), metric), LOST)
    assert (made.stopped, made.samples) == (False, 150)


def test_a_metric_that_fails_on_all_samples_fails() -> None:
    def bad(out: Tensor, targets: Tensor) -> Tensor:
        raise ArithmeticError("no")

    for race in (None, LOST):
        with pytest.raises(CandidateError, match="the metric failed on the validation split: ArithmeticError: no"):
            found(with_metric(load_workload("tests.tiny:workload"), bad), race)


class Noisy(nn.Module):
    """Draws in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :6] + torch.rand(len(x), 6)


def test_what_a_metric_draws_is_nothing_to_the_model() -> None:
    def drawing(out: Tensor, targets: Tensor) -> Tensor:
        torch.rand(3)
        return out[:, 0]

    loaded, settings = load_workload("tests.tiny:workload"), evaluation(Path())
    loaded, teacher = with_metric(loaded, drawing), teach(loaded, settings).validation
    made = [evaluate(loaded, Noisy(), "validation", teacher, settings, race) for race in (None, WON)]
    assert made[0].accuracy == made[1].accuracy


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_losses_are_finite_whatever_a_model_says(value: float) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 6), value) * torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, 1.0])

    loaded, settings = load_workload("tests.tiny:workload"), evaluation(Path())
    made = evaluate(loaded, Broken(), "validation", teach(loaded, settings).validation, settings)
    assert made.outcomes is not None
    assert 0 < made.loss <= MOST_LOSS * (1 + 1e-9)
    assert made.outcomes.losses.max() <= MOST_LOSS


def test_looking_changes_neither_model_nor_gradients() -> None:
    loaded = load_workload("tests.tiny:workload")
    model, settings = damaged(loaded), evaluation(Path())
    before = [parameter.clone() for parameter in model.parameters()]
    evaluate(loaded, model, "validation", teach(loaded, settings).validation, settings, LOST)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_pre_hooks


def recall_of_all_classes(out: Tensor, targets: Tensor) -> float:
    """A class that is not among the samples counts as missed: few samples have few of ten classes."""
    right = out.argmax(dim=-1) == targets
    return float(torch.stack([right[targets == c].float().mean().nan_to_num(0.0) for c in range(10)]).mean())


def test_a_metric_races_where_its_chunks_make_up_the_whole() -> None:
    loaded, settings = load_workload("tests.tiny:workload"), evaluation(Path())
    teacher = teach(loaded, settings).validation
    assert can_race(loaded, teacher, 25)  # an outcome per sample

    def share(out: Tensor, targets: Tensor) -> float:
        return float((out.argmax(dim=-1) == targets).float().mean())

    def broken(out: Tensor, targets: Tensor) -> float:
        raise ValueError("needs all samples")

    assert can_race(with_metric(loaded, share), teacher, 25)
    assert can_race(with_metric(loaded, share), teacher, 40)  # the last chunk is shorter
    assert not can_race(with_metric(loaded, recall_of_all_classes), teacher, 5)
    assert not can_race(with_metric(loaded, lambda out, targets: math.sqrt(share(out, targets))), teacher, 10)
    assert not can_race(with_metric(loaded, broken), teacher, 25)
