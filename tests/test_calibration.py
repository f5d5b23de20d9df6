"""BatchNorm statistics: against the averages by hand, and kept only where they help."""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.calibration import batchnorms, reestimate_batchnorm, reestimate_if_better
from compress.inputs import call, chunks, outputs
from tests.models import digest, random_tensor, subject

SHAPES = {nn.BatchNorm1d: (20, 3), nn.BatchNorm2d: (20, 3, 4, 5), nn.BatchNorm3d: (20, 3, 2, 2, 3)}


def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel."""
    rows = values.movedim(1, 0).flatten(1).double()
    return rows.mean(dim=1), rows.var(dim=1)


def close(left: Tensor | None, right: Tensor) -> bool:
    return left is not None and torch.allclose(left.double(), right, rtol=1e-5, atol=1e-6)


class TestStatistics:
    @pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("chunk", [5, 10, 20, 100])
    def test_they_are_the_average_over_the_chunks(self, kind: Callable[[int], nn.Module], chunk: int) -> None:
        values = random_tensor(*SHAPES[kind]) * 3 + 2  # type: ignore[index]
        norm = kind(3)
        reestimate_batchnorm(norm, values, chunk)
        means, variances = zip(*(statistics(part) for part in torch.split(values, chunk)), strict=True)
        assert close(norm.get_buffer("running_mean"), torch.stack(means).mean(dim=0))
        assert close(norm.get_buffer("running_var"), torch.stack(variances).mean(dim=0))

    def test_a_later_layer_sees_what_the_earlier_one_gives_with_the_new_statistics(self) -> None:
        convolution = nn.Conv2d(2, 3, 1)
        first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(3)
        model = nn.Sequential(first, convolution, second)
        values = random_tensor(30, 2, 4, 4) * 5 - 1
        reestimate_batchnorm(model, values, 30)
        mean, variance = statistics(values)
        biased = variance * (30 * 16 - 1) / (30 * 16)
        normed = (values - mean.view(1, 2, 1, 1)) / (biased.view(1, 2, 1, 1) + first.eps).sqrt()
        with torch.no_grad():
            expected_mean, expected_variance = statistics(convolution(normed.float()))
        assert close(first.running_mean, mean)
        assert close(second.running_mean, expected_mean)
        assert close(second.running_var, expected_variance)

    def test_what_was_there_before_plays_no_part(self) -> None:
        values = random_tensor(20, 3)
        first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=0.5)
        second.running_mean, second.running_var = torch.full((3,), 1e6), torch.full((3,), 1e6)
        for norm in (first, second):
            reestimate_batchnorm(norm, values, 10)
        assert torch.equal(first.get_buffer("running_mean"), second.get_buffer("running_mean"))
        assert torch.equal(first.get_buffer("running_var"), second.get_buffer("running_var"))

    def test_dropout_is_off_and_nothing_else_changes(self) -> None:
        model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.9)).eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = torch.get_rng_state()
        values = random_tensor(20, 3)
        reestimate_batchnorm(model, values, 10)
        assert torch.equal(torch.get_rng_state(), state)
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
        with torch.no_grad():
            assert close(model.get_buffer("2.running_mean"), statistics(model[1](values))[0])

    def test_a_last_chunk_of_one_sample_is_no_obstacle(self) -> None:
        values = random_tensor(21, 3)
        norm = nn.BatchNorm1d(3)
        reestimate_batchnorm(norm, values, 10)  # the variance of one value is not known
        means, variances = zip(*(statistics(part) for part in torch.split(values[:20], 10)), strict=True)
        assert close(norm.running_mean, torch.stack(means).mean(dim=0))
        assert close(norm.running_var, torch.stack(variances).mean(dim=0))

    @pytest.mark.parametrize(
        "wrap", [lambda x: x, lambda x: (x,), lambda x: {"input": x}], ids=["one", "tuple", "dict"]
    )
    def test_inputs_come_in_every_form(self, wrap: Callable[[Tensor], Any]) -> None:
        norm = nn.BatchNorm1d(3)
        reestimate_batchnorm(norm, wrap(random_tensor(20, 3)), 10)
        assert close(
            norm.running_mean,
            torch.stack([p.double().mean(dim=0) for p in torch.split(random_tensor(20, 3), 10)]).mean(0),
        )

    def test_only_layers_that_keep_statistics_count(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3), nn.BatchNorm2d(3))
        assert batchnorms(model) == [model[2]]


class TestModes:
    def test_momenta_and_modes_are_as_before_even_if_the_model_fails(self) -> None:
        class Fragile(nn.Module):
            def __init__(self, calls: int) -> None:
                super().__init__()
                self.left = calls

            def forward(self, values: Tensor) -> Tensor:
                self.left -= 1
                if self.left < 0:
                    raise RuntimeError("no more")
                return values

        for calls in (1, 3):
            model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.03), Fragile(calls), nn.BatchNorm1d(3, momentum=None))
            with pytest.raises(RuntimeError, match="no more") if calls == 1 else nullcontext():
                reestimate_batchnorm(model.eval(), random_tensor(30, 3), 10)
            assert [layer.momentum for layer in batchnorms(model)] == [0.03, None]
            assert not any(module.training for module in model.modules())


class TestIfBetter:
    """Calibration as the search does it: the loss is the distance to the float model's outputs."""

    INPUTS = random_tensor(24, 2, 8, 8, seed=7) + 1

    def distance(self, reference: nn.Module) -> Callable[[nn.Module], float]:
        target = outputs(reference, self.INPUTS, 8)

        def loss(model: nn.Module) -> float:
            return float((outputs(model, self.INPUTS, 8) - target).square().mean())

        return loss

    def test_a_model_that_needs_it_is_changed(self) -> None:
        model = subject("convolutions").model
        reestimate_batchnorm(model, self.INPUTS, 8)
        loss = self.distance(model)
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(0.3)  # as if most of it was pruned
        before, old = loss(model), model.get_buffer("1.running_var").clone()
        remaining = reestimate_if_better(model, self.INPUTS, 8, loss)
        assert remaining == loss(model)
        assert remaining < before
        again = subject("convolutions").model
        again.load_state_dict(model.state_dict())
        reestimate_batchnorm(again, self.INPUTS, 8)
        assert torch.equal(again.get_buffer("1.running_var"), model.get_buffer("1.running_var"))
        assert not torch.equal(model.get_buffer("1.running_var"), old)

    def test_a_model_that_does_not_stays_to_the_bit(self) -> None:
        model, loss = subject("convolutions").model, self.distance(subject("convolutions").model)
        before = digest(model)
        assert reestimate_if_better(model, self.INPUTS, 8, loss) == 0.0
        assert digest(model) == before

    def test_an_equal_loss_or_none_at_all_changes_nothing(self) -> None:
        for answers in ([1.0, 1.0], [1.0, float("nan")], [1.0, float("inf")]):
            model, left = subject("convolutions").model, iter(answers)
            before = digest(model)
            assert reestimate_if_better(model, self.INPUTS, 8, lambda _, left=left: next(left)) == 1.0  # type: ignore[misc]
            assert digest(model) == before

    def test_without_batchnorm_the_loss_is_taken_once(self) -> None:
        calls = count(1)
        model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        assert reestimate_if_better(model, random_tensor(4, 3), 2, lambda _: float(next(calls))) == 1.0
        assert next(calls) == 2

    def test_it_is_the_same_every_time(self) -> None:
        found = []
        for _ in range(2):
            model, loss = subject("convolutions").model, self.distance(subject("convolutions").model)
            with torch.no_grad():
                model.get_parameter("5.weight").mul_(0.5)
                model.get_parameter("0.weight").mul_(0.5)
            found.append((reestimate_if_better(model, self.INPUTS, 8, loss), outputs(model, self.INPUTS, 8)))
        assert found[0][0] == found[1][0]
        assert torch.equal(found[0][1], found[1][1])


def test_chunks_are_always_cut_the_same_way() -> None:
    values = random_tensor(10, 3)
    assert [part.shape[0] for part in chunks(values, 4) if isinstance(part, Tensor)] == [4, 4, 2]
    together = torch.cat([call(nn.Identity(), part) for part in chunks(values, 4)])
    assert torch.equal(together, values)
