"""Penalties against their formulas by hand, and what the papers want of them."""

import math

import pytest
import torch
from torch import nn

from compress.training.penalties import batchnorm_scales, group_lasso, l1, penalty_of
from spaces.errors import CandidateError
from spaces.policy import Penalty
from tests.models import Convolutions, random_tensor
from tests.students import PRUNED, network, settings, trained

WEIGHTS = [random_tensor(3, 4), random_tensor(2, 5, seed=1)]


def gradient(penalty: Penalty, weight: torch.Tensor) -> torch.Tensor:
    leaf = weight.clone().requires_grad_()
    penalty_of(penalty, [leaf], nn.Linear(2, 2)).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def test_l1_is_the_sum_of_absolute_values() -> None:
    by_hand = sum(abs(value) for weight in WEIGHTS for value in weight.flatten().tolist())
    assert float(l1(WEIGHTS)) == pytest.approx(by_hand, rel=1e-5)


def test_group_lasso_is_the_sum_of_channel_norms_times_the_root_of_their_size() -> None:
    by_hand = sum(
        math.sqrt(len(row)) * math.sqrt(sum(v * v for v in row)) for weight in WEIGHTS for row in weight.tolist()
    )
    assert float(group_lasso(WEIGHTS)) == pytest.approx(by_hand, rel=1e-5)


def test_the_strength_multiplies() -> None:
    for kind, function in (("l1", l1), ("group_lasso", group_lasso)):
        penalty = Penalty.model_validate({"kind": kind, "strength": 0.25})
        assert float(penalty_of(penalty, WEIGHTS, nn.Linear(2, 2))) == pytest.approx(0.25 * float(function(WEIGHTS)))


def test_l1_pulls_all_weights_alike_and_group_lasso_each_channel_as_one() -> None:
    weight = WEIGHTS[0]
    assert torch.equal(gradient(Penalty(kind="l1", strength=2.0), weight), 2 * weight.sign())
    pull = gradient(Penalty(kind="group_lasso", strength=1.0), weight)
    assert torch.allclose(pull.norm(dim=1), torch.full((3,), 2.0))  # sqrt(4), whatever the channel's norm
    assert torch.allclose(pull / 2, weight / weight.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", ["l1", "group_lasso"])
def test_zeros_stay_where_they_are(kind: str) -> None:
    found = gradient(Penalty.model_validate({"kind": kind, "strength": 1.0}), torch.zeros(2, 3))
    assert not found.any()


@pytest.mark.parametrize("kind", ["l1", "group_lasso"])
def test_descent_with_the_penalty_reaches_the_closed_solution(kind: str) -> None:
    """The minimum of ||w - a||^2 / 2 + strength x penalty is a soft threshold, of numbers or of norms."""
    target, strength = torch.tensor([[3.0, 0.5], [0.3, -0.2]]), 0.6
    penalty = Penalty.model_validate({"kind": kind, "strength": strength})
    weight = target.clone().requires_grad_()
    for step in range(4000):
        loss = (weight - target).square().sum() / 2 + penalty_of(penalty, [weight], nn.Linear(2, 2))
        (pull,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= pull / (10 + step)
    if kind == "l1":
        expected = target.sign() * (target.abs() - strength).clamp_min(0)
    else:
        norm = target.norm(dim=1, keepdim=True)
        expected = target * (1 - strength * math.sqrt(2) / norm).clamp_min(0)
    assert torch.allclose(weight.detach(), expected, atol=2e-3)


def test_batchnorm_scales_are_penalised_once_each() -> None:
    model = Convolutions()
    scales = batchnorm_scales(model)
    assert [id(scale) for scale in scales] == [id(model.get_parameter(f"{i}.weight")) for i in (1, 4)]
    with torch.no_grad():
        scales[0].copy_(torch.tensor([1.0, -2.0, 3.0, 0.0, 1.0, 1.0]))
    found = penalty_of(Penalty(kind="batchnorm_l1", strength=0.5), [], model)
    assert float(found.detach()) == pytest.approx(0.5 * (8 + 6))


def test_a_model_without_batchnorm_is_refused_by_name() -> None:
    with pytest.raises(CandidateError, match=r"batchnorm_l1 needs BatchNorm.*Linear has none"):
        penalty_of(Penalty(kind="batchnorm_l1", strength=0.5), WEIGHTS, nn.Linear(2, 2))


class TestStudents:
    @pytest.mark.parametrize("kind", ["l1", "group_lasso", "batchnorm_l1"])
    def test_a_strong_one_shrinks_what_it_is_on(self, kind: str) -> None:
        def size(strength: float | None) -> tuple[float, float]:
            penalty = None if strength is None else Penalty.model_validate({"kind": kind, "strength": strength})
            student, coded = trained(network(), PRUNED, (60,), settings=settings(penalty=penalty))
            weights = sum(float(one.decode().abs().sum()) for one in coded.values())
            return float(student.model.get_parameter("1.weight").detach().abs().sum()), weights

        on = 0 if kind == "batchnorm_l1" else 1
        assert size(0.3)[on] < 0.9 * size(None)[on]
        assert size(1e-9)[on] == pytest.approx(size(None)[on], rel=0.02)
