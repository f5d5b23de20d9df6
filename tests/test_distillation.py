"""The losses of distillation against their formulas, and which of them a lesson takes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress.distillation import HardLoss, OutputKind, pseudo_label_loss, soft_loss
from compress.training.lesson import Lesson
from compress.training.teacher import WholeOutputs
from spaces.policy import Distillation
from tests.models import random_tensor

STUDENT, TEACHER = random_tensor(6, 5), random_tensor(6, 5, seed=1)
TARGETS = torch.tensor([4, 0, 2, 1, 1, 3])
INDEX = torch.tensor([5, 2, 2])


class TestSoftLoss:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
    def test_it_is_the_divergence_by_hand_times_the_squared_temperature(self, temperature: float) -> None:
        student, teacher = random_tensor(7, 5), random_tensor(7, 5, seed=1) * 2
        total = 0.0
        for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
            q = [math.exp(value / temperature) / sum(math.exp(z_j / temperature) for z_j in z) for value in z]
            p = [math.exp(value / temperature) / sum(math.exp(v_j / temperature) for v_j in v) for value in v]
            total += sum(p_i * (math.log(p_i) - math.log(q_i)) for p_i, q_i in zip(p, q, strict=True))
        found = float(soft_loss(student, teacher, temperature, "logits"))
        assert found == pytest.approx(temperature**2 * total / 7, rel=1e-4)

    def test_positions_count_as_samples(self) -> None:
        student, teacher = random_tensor(3, 4, 5), random_tensor(3, 4, 5, seed=1)
        flat = soft_loss(student.reshape(12, 5), teacher.reshape(12, 5), 2.0, "logits")
        assert float(soft_loss(student, teacher, 2.0, "logits")) == float(flat)

    def test_it_is_zero_for_the_teacher_and_positive_for_others(self) -> None:
        teacher = random_tensor(6, 5)
        assert float(soft_loss(teacher, teacher, 3.0, "logits")) == pytest.approx(0, abs=1e-6)
        assert float(soft_loss(teacher + 7, teacher, 3.0, "logits")) == pytest.approx(0, abs=1e-5)
        assert all(float(soft_loss(random_tensor(6, 5, seed=i), teacher, 3.0, "logits")) > 0 for i in range(1, 20))

    def test_values_are_compared_by_squared_error_at_any_temperature(self) -> None:
        student, teacher = random_tensor(6, 5), random_tensor(6, 5, seed=1)
        expected = float(((student - teacher) ** 2).mean())
        assert [float(soft_loss(student, teacher, t, "values")) for t in (1.0, 9.0)] == pytest.approx([expected] * 2)

    def gradient(self, z: Tensor, v: Tensor, temperature: float) -> Tensor:
        z = z.clone().requires_grad_()
        (found,) = torch.autograd.grad(soft_loss(z, v, temperature, "logits"), z)
        return found * z.shape[0]  # of the sum over samples

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
    def test_its_gradient_is_that_of_the_paper_times_the_squared_temperature(self, temperature: float) -> None:
        z, v = random_tensor(6, 5).double(), random_tensor(6, 5, seed=1).double()
        q, p = (z / temperature).softmax(-1), (v / temperature).softmax(-1)
        expected = temperature**2 * (q - p) / temperature  # eq. 2
        assert torch.allclose(self.gradient(z, v, temperature), expected, rtol=1e-6)

    def test_at_high_temperature_it_matches_logits(self) -> None:
        z, v = random_tensor(6, 5).double(), random_tensor(6, 5, seed=1).double()
        z, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
        assert torch.allclose(self.gradient(z, v, 1e4), (z - v) / 5, atol=2e-4)  # eq. 4, times T^2
        norms = [float(self.gradient(z, v, temperature).norm()) for temperature in (20, 100, 1000)]
        assert max(norms) / min(norms) < 1.1


class TestPseudoLabels:
    def test_it_is_the_mean_negative_log_probability_of_the_teacher_s_class(self) -> None:
        by_hand = [-float(z.log_softmax(0)[int(v.argmax())]) for z, v in zip(STUDENT, TEACHER, strict=True)]
        assert float(pseudo_label_loss(STUDENT, TEACHER)) == pytest.approx(sum(by_hand) / 6)

    def test_positions_count_as_samples(self) -> None:
        student, teacher = random_tensor(3, 4, 5), random_tensor(3, 4, 5, seed=1)
        flat = pseudo_label_loss(student.reshape(12, 5), teacher.reshape(12, 5))
        assert float(pseudo_label_loss(student, teacher)) == float(flat)


class TestLesson:
    def loss(
        self,
        alpha: float,
        *,
        targets: Tensor | None = TARGETS,
        hard: HardLoss | None = functional.cross_entropy,
        kind: OutputKind = "logits",
        labels: str = "given",
    ) -> float:
        settings = Distillation.model_validate(
            {"temperature": 2.0, "alpha": alpha, "learning_rate": 0.1, "batch_size": 3, "labels": labels}
        )
        lesson = Lesson(torch.empty(6, 0), WholeOutputs(TEACHER), targets, hard, kind)
        return float(lesson.loss(STUDENT[INDEX], INDEX, settings))

    soft = float(soft_loss(STUDENT[INDEX], TEACHER[INDEX], 2.0, "logits"))
    pseudo = float(pseudo_label_loss(STUDENT[INDEX], TEACHER[INDEX]))

    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_alpha_is_the_share_of_the_soft_loss(self, alpha: float) -> None:
        hard = float(functional.cross_entropy(STUDENT[INDEX], TARGETS[INDEX]))
        assert self.loss(alpha) == pytest.approx(alpha * self.soft + (1 - alpha) * hard)

    def test_without_targets_or_if_told_so_the_teacher_gives_the_labels(self) -> None:
        expected = pytest.approx(0.3 * self.soft + 0.7 * self.pseudo)
        assert self.loss(0.3, targets=None) == expected
        assert self.loss(0.3, targets=None, hard=None) == expected
        assert self.loss(0.3, labels="teacher") == expected

    def test_values_have_no_class_so_the_soft_loss_stands_alone(self) -> None:
        alone = pytest.approx(float(functional.mse_loss(STUDENT[INDEX], TEACHER[INDEX])))
        assert self.loss(0.3, kind="values", targets=None) == alone
        assert self.loss(0.3, kind="values", labels="teacher") == alone

    def test_targets_without_a_loss_leave_the_soft_loss_alone(self) -> None:
        assert self.loss(0.3, hard=None) == pytest.approx(self.soft)
