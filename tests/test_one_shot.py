"""Candidates carried out without training, and the loss that their corrections are judged by."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.calibration import DistanceToTeacher
from compress.distillation import OutputKind, sample_losses
from compress.inputs import metered, outputs
from objectives.drawing import drawn, unsureness
from objectives.one_shot import LOSS_SAMPLES, Workshop
from objectives.score import Scorer
from objectives.workload import LoadedWorkload, Workload, load_workload
from tests import tiny
from tests.models import random_tensor, subject
from tests.scoring import CHUNK, coarse, evaluation, policy, scorer_of

INPUTS = random_tensor(24, 2, 8, 8, seed=7) + 1


def many() -> Workload:
    """The tiny workload with more calibration samples than corrections are judged by."""
    return replace(tiny.workload(), calibration=tiny.clouds(4 * LOSS_SAMPLES, seed=1))


@pytest.fixture
def loaded() -> LoadedWorkload:
    return load_workload("tests.test_one_shot:many")


@pytest.fixture
def scorer(loaded: LoadedWorkload, tmp_path: Path) -> Scorer:
    return scorer_of(loaded, evaluation(tmp_path))


def losses(scorer: Scorer, model: torch.nn.Module) -> torch.Tensor:
    """Of a model for each calibration sample."""
    out = outputs(model, scorer.loaded.splits["calibration"].inputs, CHUNK)
    return sample_losses(out, scorer.teacher.calibration, "logits").double()


class TestWeights:
    """Of the loss: how much each sample counts."""

    @pytest.mark.parametrize("kind", ["logits", "values"])
    def test_it_is_the_weighted_sum_unless_that_is_more_than_enough(self, kind: OutputKind) -> None:
        model, teacher = subject("convolutions").model, random_tensor(24, 3, seed=9)
        each = [DistanceToTeacher(INPUTS[i : i + 1], teacher[i : i + 1], kind, 8)(model) for i in range(24)]
        weights = random_tensor(24, seed=3).abs().double()
        loss = DistanceToTeacher(INPUTS, teacher, kind, 8, weights=weights)
        whole = loss(model)
        assert whole == pytest.approx(sum(w * one for w, one in zip(weights.tolist(), each, strict=True)), rel=1e-5)
        for enough, expected, samples in ((whole, whole, 24), (2 * whole, whole, 24), (0.0, math.inf, 8)):
            with metered(model) as meter:
                assert loss(model, enough) == expected
            assert meter.samples == samples

    @pytest.mark.parametrize("kind", ["logits", "values"])
    def test_equal_ones_are_none(self, kind: OutputKind) -> None:
        model, teacher = subject("convolutions").model, random_tensor(24, 3, seed=9)
        weights = torch.full((24,), 1 / 24, dtype=torch.float64)
        plain = DistanceToTeacher(INPUTS, teacher, kind, 8)(model)
        assert DistanceToTeacher(INPUTS, teacher, kind, 8, weights=weights)(model) == pytest.approx(plain, rel=1e-5)


class TestJudgedBySome:
    def test_the_loss_is_that_of_the_drawn_samples(self, scorer: Scorer) -> None:
        at, weights = drawn(unsureness(scorer.teacher.calibration, "logits"), LOSS_SAMPLES)
        for number in range(4):
            shot = scorer.one_shot(policy(number))
            expected = float(losses(scorer, shot.model)[at] @ weights)
            assert shot.calibration_loss == pytest.approx(expected, rel=1e-4)

    def test_it_is_near_the_loss_of_all(self, scorer: Scorer) -> None:
        ratios = []
        for number in range(12):
            shot = scorer.one_shot(policy(number))
            ratios.append(math.log(shot.calibration_loss / float(losses(scorer, shot.model).mean())))
        assert abs(sum(ratios) / len(ratios)) < 0.1
        assert max(map(abs, ratios)) < 0.3

    def test_corrections_cost_few_passes(self, scorer: Scorer) -> None:
        """Statistics are taken from all samples; the loss, before and after two corrections, is taken of some."""
        assert scorer.one_shot(coarse()).forwards <= 4 * LOSS_SAMPLES + 3 * LOSS_SAMPLES

    def test_of_few_samples_all_are_taken(self, tmp_path: Path) -> None:
        small = scorer_of(load_workload("tests.tiny:workload"), evaluation(tmp_path))
        shot = small.one_shot(coarse())
        assert small.teacher.calibration.shape[0] < LOSS_SAMPLES
        assert shot.calibration_loss == pytest.approx(float(losses(small, shot.model).mean()), rel=1e-4)

    def test_a_correction_is_kept_only_where_the_loss_is_lower(self, scorer: Scorer) -> None:
        at, weights = drawn(unsureness(scorer.teacher.calibration, "logits"), LOSS_SAMPLES)
        workshop = Workshop(scorer.loaded, scorer.evaluation, scorer.teacher, scorer.models)
        for number in range(6):
            _, applied = workshop.carry_out(policy(number))
            before = float(losses(scorer, applied.model.eval())[at] @ weights)
            assert scorer.one_shot(policy(number)).calibration_loss <= before * (1 + 1e-6)
