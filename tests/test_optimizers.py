"""Steps and their sizes: schedules by their formulas, and SGD and Adam by hand."""

import math

import pytest
import torch

from compress.training.optimizers import Learned, Optimizer, share_of_rate


def walk(kind: str, schedule: str, pace: float = 1.0, steps: int = 4) -> list[float]:
    """Where each step leads on a slope of 3, from 1, at a rate of 0.1."""
    x = torch.tensor([1.0], requires_grad=True)
    optimizer = Optimizer([Learned([x], pace)], kind, schedule, 0.1, steps)  # type: ignore[arg-type]
    found = []
    for step in range(steps):
        optimizer.step(3 * x.sum(), step)
        found.append(float(x.detach()))
    return found


def test_schedules_begin_with_the_whole_rate() -> None:
    assert [share_of_rate("cosine", step, 4) for step in range(5)] == pytest.approx(
        [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    )
    assert [share_of_rate("linear", step, 4) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert [share_of_rate("constant", step, 4) for step in range(5)] == [1] * 5


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_sgd_has_momentum_and_its_pace_is_the_gradient_s(schedule: str) -> None:
    x, velocity, expected = 1.0, 0.0, []
    for step in range(4):
        velocity = 0.9 * velocity + 3
        x -= 0.1 * share_of_rate(schedule, step, 4) * velocity  # type: ignore[arg-type]
        expected.append(x)
    assert walk("sgd", schedule) == walk("sgd", schedule, pace=0.25) == pytest.approx(expected)


def test_adam_s_steps_are_as_large_as_the_rate_times_the_pace() -> None:
    assert walk("adam", "constant") == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert walk("adam", "constant", pace=0.5) == pytest.approx([0.95, 0.9, 0.85, 0.8])
    assert walk("adam", "linear") == pytest.approx([0.9, 0.825, 0.775, 0.75])
