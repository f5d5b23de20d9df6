"""The feature loss against its formula, what it matches, and that it leaves nothing behind."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compress.inputs import call
from compress.training.features import FeatureMatch
from objectives.workloads.resnet import ResNet
from spaces.errors import CandidateError
from tests.models import Recurrent, Tied, digest, random_tensor, tokens
from tests.students import INPUTS, PRUNED, compressed, lesson_of, network, settings, trained

X = random_tensor(6, 5)


class Blocks(nn.Module):
    """A stem, two blocks in a list, and a head."""

    def __init__(self, width: int = 7, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Linear(5, 7)
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(7, width), nn.ReLU()), nn.Linear(width, 4)])
            self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(x)[-1])
        return logits

    def inner(self, x: Tensor) -> list[Tensor]:
        found = [self.stem(x)]
        for block in self.blocks:
            found.append(block(torch.relu(found[-1])))
        return found


def relative(s: Tensor, t: Tensor) -> float:
    return float((((s - t) ** 2).sum() / (t**2).sum()).detach())


def loss_of(student: nn.Module, teacher: nn.Module, x: Tensor = X) -> Tensor:
    with FeatureMatch(student, teacher) as match:
        call(student, x)
        return match.loss(x)


def test_it_is_the_mean_relative_squared_error_of_the_blocks_and_each_tensor_counts_once() -> None:
    student, teacher = Blocks(seed=1), Blocks()
    errors = [relative(s, t) for s, t in zip(student.inner(X), teacher.inner(X), strict=True)]
    assert float(loss_of(student, teacher).detach()) == pytest.approx(sum(errors) / 3, rel=1e-5)


def test_blocks_of_other_shapes_do_not_count() -> None:
    student, teacher = Blocks(width=9, seed=1), Blocks()
    errors = [relative(s, t) for s, t in zip(student.inner(X)[::2], teacher.inner(X)[::2], strict=True)]
    assert float(loss_of(student, teacher).detach()) == pytest.approx(sum(errors) / 2, rel=1e-5)


def test_it_is_zero_for_the_teacher_itself() -> None:
    teacher = ResNet(width=4).eval()
    assert float(loss_of(copy.deepcopy(teacher), teacher, random_tensor(2, 1, 28, 28)).detach()) == 0


def test_blocks_with_large_numbers_do_not_count_more() -> None:
    student, teacher = (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2)) for _ in range(2))
    before = float(loss_of(student, teacher).detach())
    with torch.no_grad():
        for model in (student, teacher):
            model.get_parameter("0.weight").mul_(100)
            model.get_parameter("0.bias").mul_(100)
            model.get_parameter("1.weight").div_(100)
    assert float(loss_of(student, teacher).detach()) == pytest.approx(before, rel=1e-4)


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = Blocks(seed=1), Blocks()
    loss_of(student, teacher).backward()  # type: ignore[no-untyped-call]
    assert student.stem.weight.grad is not None
    assert student.stem.weight.grad.any()
    assert student.head.weight.grad is None  # the model's own output is the soft loss's matter
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("model", [Recurrent, Tied])
def test_modules_that_return_more_than_a_tensor_or_run_twice_are_matched_too(model: type[nn.Module]) -> None:
    student, teacher = model(), model()
    assert float(loss_of(student, teacher, tokens(3, 6)).detach()) > 0


def test_no_hook_stays_even_after_an_error_and_the_teacher_is_untouched() -> None:
    student, teacher = Blocks(seed=1), Blocks()
    before = digest(student), digest(teacher)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        loss_of(student, teacher, random_tensor(6, 4))
    assert (digest(student), digest(teacher)) == before


def test_models_that_have_nothing_in_common_are_refused() -> None:
    with pytest.raises(CandidateError, match=r"distillation\.features.*set it to 0"):
        FeatureMatch(nn.Sequential(nn.Linear(5, 3)), Blocks())
    with pytest.raises(CandidateError, match="in the same shape"):
        loss_of(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)))


class TestStudents:
    def test_inner_outputs_come_nearer(self) -> None:
        def distance(weight: float) -> float:
            model = network()
            student, _ = trained(model, PRUNED, (60,), settings=settings(features=weight))
            ours, theirs = (one[0](INPUTS) for one in (student.model, model) if isinstance(one, nn.Sequential))
            return float((ours - theirs).detach().square().mean())

        assert distance(10.0) < 0.8 * distance(0.0)

    def test_a_lesson_without_the_model_is_an_error_that_says_so(self) -> None:
        student = compressed(network(), PRUNED).student(settings(features=1.0))
        with pytest.raises(ValueError, match="give it to the lesson"):
            student.train(replace(lesson_of(network()), model=None), 3, torch.Generator())
