"""Corrections on calibration data: against what they are by hand, and each kept only where it helps."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.calibration import (
    BatchNormStatistics,
    BiasCorrection,
    Correction,
    DistanceToTeacher,
    batchnorms,
    correct,
    reestimate_batchnorm,
)
from compress.distillation import OutputKind, soft_loss
from compress.inputs import call, chunks, metered, outputs
from compress.sites import find_sites
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


INPUTS = random_tensor(24, 2, 8, 8, seed=7) + 1
ANEW = BatchNormStatistics(INPUTS, 8)


def distance(reference: nn.Module) -> DistanceToTeacher:
    """The loss as the search takes it: the distance to the float model's outputs."""
    return DistanceToTeacher(INPUTS, outputs(reference, INPUTS, 8), "values", 8)


class Order(nn.Sequential):
    """A convolution whose BatchNorm stands before or behind the activation."""

    def __init__(self, norm_first: bool) -> None:
        norm, act = nn.BatchNorm2d(6), nn.ReLU()
        pair = (norm, act) if norm_first else (act, norm)
        super().__init__(nn.Conv2d(2, 6, 3), *pair, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        with torch.no_grad():
            for i, weight in enumerate(self.parameters()):
                if weight.ndim > 1:
                    weight.copy_(random_tensor(*weight.shape, seed=i))
        reestimate_batchnorm(self, INPUTS, 8)


class TestBatchNorm:
    """Kept only where the loss is lower with it."""

    def test_a_model_that_needs_it_is_changed(self) -> None:
        model = subject("convolutions").model
        reestimate_batchnorm(model, INPUTS, 8)
        loss = distance(model)
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(0.3)  # as if most of it was pruned
        before, old = loss(model), model.get_buffer("1.running_var").clone()
        remaining = correct(model, [ANEW], loss)
        assert remaining == loss(model)
        assert remaining < before
        again = subject("convolutions").model
        again.load_state_dict(model.state_dict())
        reestimate_batchnorm(again, INPUTS, 8)
        assert torch.equal(again.get_buffer("1.running_var"), model.get_buffer("1.running_var"))
        assert not torch.equal(model.get_buffer("1.running_var"), old)

    @pytest.mark.parametrize("norm_first", [True, False])
    def test_before_and_behind_the_activation_it_takes_in_what_changed(self, norm_first: bool) -> None:
        model = Order(norm_first)
        loss = distance(model)
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(0.4)
            model.get_parameter("0.bias").mul_(0.4)  # all of the output: the norm can make up for it
        before = loss(model)
        assert correct(model, [ANEW], loss) < 0.05 * before
        assert not model.training

    def test_a_model_that_does_not_stays_to_the_bit(self) -> None:
        model, loss = subject("convolutions").model, distance(subject("convolutions").model)
        before = digest(model)
        assert correct(model, [ANEW], loss) == 0.0
        assert digest(model) == before

    @pytest.mark.parametrize("now", [1.0, float("nan"), float("inf")])
    def test_an_equal_loss_or_none_at_all_changes_nothing(self, now: float) -> None:
        model, answers = subject("convolutions").model, iter([now, 1.0])  # with new statistics, and without
        before = digest(model)
        assert correct(model, [ANEW], lambda *_: next(answers)) == 1.0
        assert digest(model) == before

    def test_without_batchnorm_the_loss_is_taken_once(self) -> None:
        calls = count(1)
        model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        nothing = BiasCorrection(find_sites(model), {})
        assert (
            correct(model, [nothing, BatchNormStatistics(random_tensor(4, 3), 2)], lambda *_: float(next(calls))) == 1.0
        )
        assert next(calls) == 2

    def test_it_is_the_same_every_time(self) -> None:
        found = []
        for _ in range(2):
            model, loss = subject("convolutions").model, distance(subject("convolutions").model)
            with torch.no_grad():
                model.get_parameter("5.weight").mul_(0.5)
                model.get_parameter("0.weight").mul_(0.5)
            found.append((correct(model, [ANEW], loss), outputs(model, INPUTS, 8)))
        assert found[0][0] == found[1][0]
        assert torch.equal(found[0][1], found[1][1])


class TestBias:
    """What each output channel lost on average is added to its bias."""

    def test_the_mean_output_is_what_it_was(self) -> None:
        first = nn.Linear(6, 4)
        model = nn.Sequential(first, nn.Linear(4, 3, bias=False)).eval()
        inputs = random_tensor(30, 6) + 2
        sites = find_sites(model)
        with torch.no_grad():
            before, plain = first(inputs).mean(dim=0), first.bias.clone()
            first.weight.mul_(0.7)
            lost = before - first(inputs).mean(dim=0)
        bias = BiasCorrection(sites, {"0": lost, "1": torch.ones(3)})
        touched = bias.touched(model)
        assert [tensor is first.bias for tensor in touched] == [True]  # the other one has none
        bias(model)
        with torch.no_grad():
            assert torch.allclose(first(inputs).mean(dim=0), before, atol=1e-5)
            assert torch.allclose(first.bias, plain + lost)

    def test_tied_layers_and_sites_without_a_shift_stay(self) -> None:
        model = subject("tied").model
        sites = find_sites(model)
        shifts = {site.name: torch.ones(site.channels) for site in sites}
        assert BiasCorrection(sites, shifts).touched(model) == []
        plain = nn.Sequential(nn.Linear(3, 3))
        assert BiasCorrection(find_sites(plain), {}).touched(plain) == []

    @pytest.mark.parametrize("name", ["recurrent", "attention", "bfloat16"])
    def test_only_biases_of_the_layer_itself_change(self, name: str) -> None:
        model = subject(name).model
        sites = find_sites(model)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        BiasCorrection(sites, {site.name: torch.ones(site.channels) for site in sites})(model)
        changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
        owned = {f"{site.parameter.removesuffix('weight')}bias" for site in sites if site.parameter.endswith(".weight")}
        assert changed == owned & before.keys()
        assert changed
        for key in changed:
            assert model.state_dict()[key].dtype == before[key].dtype


class Turn:
    """Adds to a bias, or makes it worse."""

    def __init__(self, by: float) -> None:
        self.by, self.seen = by, 0

    def touched(self, model: nn.Module) -> list[Tensor]:
        return [model.get_parameter("9.bias")]

    def __call__(self, model: nn.Module) -> None:
        self.seen += 1
        with torch.no_grad():
            model.get_parameter("9.bias").add_(self.by)


class TestEach:
    """Of several corrections each is kept for itself."""

    def test_one_that_helps_is_kept_and_one_that_does_not_is_undone(self) -> None:
        model = subject("convolutions").model
        loss = distance(model)
        wanted = model.get_parameter("9.bias").detach().clone()
        with torch.no_grad():
            model.get_parameter("9.bias").add_(3)
        off = model.get_parameter("9.bias").detach().clone()
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        turns = [Turn(5.0), Turn(-2.0), Turn(4.0), Turn(-1.0), Turn(-0.5)]
        assert correct(model, turns, loss) == loss(model)
        assert [turn.seen for turn in turns] == [1] * 5
        now = model.get_parameter("9.bias").detach()
        assert torch.equal(now, (off - 2.0) - 1.0)
        assert torch.allclose(now, wanted, atol=1e-6)
        changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
        assert changed == {"9.bias"}

    @pytest.mark.parametrize("helps", [True, False])
    def test_statistics_come_after_the_bias_and_know_of_it(self, helps: bool) -> None:
        model = subject("convolutions").model
        reestimate_batchnorm(model, INPUTS, 8)
        loss = distance(model)
        lost = torch.full((3,), 0.7)
        with torch.no_grad():
            model.get_parameter("9.bias").sub_(lost if helps else -lost)
            model.get_parameter("0.weight").mul_(0.5)
        start = loss(model)
        old = model.get_parameter("9.bias").detach().clone()
        assert correct(model, [BiasCorrection(find_sites(model), {"9": lost}), ANEW], loss) < start
        assert torch.equal(model.get_parameter("9.bias").detach() == old, torch.full((3,), not helps))

    def test_what_is_undone_is_restored_to_the_bit(self) -> None:
        for name in ("convolutions", "tied"):
            model = subject(name).model
            before, losses = digest(model), iter([2.0, 1.0, 2.0] if name == "convolutions" else [1.0])
            sites = find_sites(model)
            shifts = {site.name: torch.full((site.channels,), 1e-3) for site in sites}
            assert correct(model, [BiasCorrection(sites, shifts), ANEW], lambda *_, left=losses: next(left)) == 1.0
            assert digest(model) == before


class TestDistance:
    """The loss on calibration data, of all samples or of as many as are enough to know."""

    @pytest.mark.parametrize("kind", ["logits", "values"])
    def test_it_is_the_soft_loss_unless_that_is_more_than_enough(self, kind: OutputKind) -> None:
        model = subject("convolutions").model
        teacher = random_tensor(24, 3, seed=9)
        loss = DistanceToTeacher(INPUTS, teacher, kind, 8)
        whole = loss(model)
        assert whole == float(soft_loss(outputs(model, INPUTS, 8), teacher, 1.0, kind))
        for enough, expected, samples in ((whole, whole, 24), (2 * whole, whole, 24), (0.0, math.inf, 8)):
            with metered(model) as meter:
                assert loss(model, enough) == expected
            assert meter.samples == samples

    def test_one_that_is_no_number_is_looked_at_to_the_end(self) -> None:
        layer = nn.Linear(128, 3)
        model = nn.Sequential(nn.Flatten(), layer)
        with torch.no_grad():
            layer.weight.fill_(math.nan)
        assert math.isnan(DistanceToTeacher(INPUTS, random_tensor(24, 3), "logits", 8)(model, 0.0))

    @pytest.mark.parametrize("seed", range(12))
    def test_corrections_are_those_that_full_losses_would_make(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        one, other = subject("convolutions").model, subject("convolutions").model
        loss = distance(one)
        with torch.no_grad():
            for a, b in zip(one.parameters(), other.parameters(), strict=True):
                a.mul_(1 - torch.rand((), generator=draw))
                b.copy_(a)
            first, *others = [Turn(float(torch.randn((), generator=draw))) for _ in range(3)]
            turns: list[Correction] = [first, ANEW, *others]
            best = loss(other)
            for turn in turns:
                before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
                turn(other)
                if (now := loss(other)) < best:
                    best = now
                else:
                    other.load_state_dict(before)
        with metered(one) as meter:
            assert correct(one, turns, loss) == best
        assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in one.state_dict().items())
        assert meter.samples < 6 * 24  # five losses and one pass for statistics


def test_samples_that_go_through_a_model_are_counted() -> None:
    model = subject("convolutions").model
    with metered(model) as outer:
        outputs(model, INPUTS, 7)
        with metered(model) as inner:
            call(model, INPUTS[:3])
    call(model, INPUTS)
    assert (outer.samples, inner.samples) == (27, 3)

    class Named(nn.Module):
        def forward(self, *, mask: Tensor) -> Tensor:
            return mask

    named = Named()
    with metered(named) as meter:
        call(named, {"mask": torch.zeros(5, 2)})
    assert meter.samples == 5


def test_chunks_are_always_cut_the_same_way() -> None:
    values = random_tensor(10, 3)
    assert [part.shape[0] for part in chunks(values, 4) if isinstance(part, Tensor)] == [4, 4, 2]
    together = torch.cat([call(nn.Identity(), part) for part in chunks(values, 4)])
    assert torch.equal(together, values)
