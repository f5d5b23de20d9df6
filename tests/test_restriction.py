"""A site after channels were removed: its statistics against those collected anew, and weights that are refitted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.compressing import OutputError
from compress.database import LayerDatabase
from compress.restriction import Excerpt, excerpted, restricted
from compress.sites import Site, find_sites
from compress.statistics import SiteStatistics, collect
from spaces.policy import Choice, Uniform
from tests.models import random_loss, random_tensor

MIXED = random_tensor(12, 12, seed=8)


def loss(out: Tensor, samples: slice) -> Tensor:
    return random_loss(out, samples)


def filled(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, weight in enumerate(layer.parameters()):
            weight.copy_(random_tensor(*weight.shape, seed=i + 3))
    return layer.eval()


def site_of(layer: nn.Module) -> Site:
    return find_sites(layer)[0]


def cut_of(whole: nn.Module, outputs: list[int], inputs: list[int]) -> Tensor:
    """The flat index of what stays of a layer's weight when only these output and input channels do."""
    weight = whole.get_parameter("weight")
    at = torch.arange(weight.numel()).reshape(weight.shape)
    return at[outputs][:, inputs]


OUT, IN = [0, 2, 3, 5], [1, 2, 6, 7]
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Tensor, list[int], list[int]]] = {
    "linear": (lambda: nn.Linear(8, 6), lambda: nn.Linear(4, 4), random_tensor(40, 8), OUT, IN),
    "sequence": (lambda: nn.Linear(8, 6), lambda: nn.Linear(4, 4), random_tensor(10, 5, 8), OUT, IN),
    "convolution": (
        lambda: nn.Conv2d(8, 6, 3, padding=1, stride=2),
        lambda: nn.Conv2d(4, 4, 3, padding=1, stride=2),
        random_tensor(12, 8, 5, 5),
        OUT,
        IN,
    ),
    "outputs only": (lambda: nn.Conv1d(8, 6, 3), lambda: nn.Conv1d(8, 4, 3), random_tensor(12, 8, 9), OUT, [*range(8)]),
    "inputs only": (lambda: nn.Linear(8, 6), lambda: nn.Linear(4, 6), random_tensor(40, 8), [*range(6)], IN),
}


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.allclose(one, other, rtol=1e-5, atol=1e-6)


class TestStatistics:
    @pytest.mark.parametrize("name", CASES)
    def test_they_are_those_of_the_channels_that_are_left(self, name: str) -> None:
        make, smaller, inputs, outs, ins = CASES[name]
        whole, left = filled(make()), filled(smaller())
        known = collect(whole, [site_of(whole)], inputs, 7, "cpu", loss)["weight"]
        axis = inputs.ndim - 1 if isinstance(whole, nn.Linear) else 1
        fewer = inputs.index_select(axis, torch.tensor(ins))
        expected = collect(left, [site_of(left)], fewer, 7, "cpu", loss)["weight"]
        found = restricted(known, site_of(whole), site_of(left), cut_of(whole, outs, ins))
        assert same(found.mean, expected.mean)
        assert same(found.hessian, expected.hessian)
        assert found.reason is None
        rows = cut_of(whole, outs, ins).flatten()
        for mine, all_of_it in ((found.gradient, known.gradient), (found.fisher, known.fisher)):
            assert mine is not None
            assert all_of_it is not None
            assert torch.equal(mine.flatten(), all_of_it.flatten()[rows])
            assert mine.shape == (
                len(outs),
                len(ins) * inputs.new_ones(whole.get_parameter("weight").shape[2:]).numel(),
            )
        assert found.zeros is not None
        assert known.zeros is not None
        assert torch.equal(found.zeros, known.zeros[outs])

    @pytest.mark.parametrize("kept", [[0, 1, 4, 5, 6, 7], [2, 3], [*range(8)]])
    def test_of_a_depthwise_convolution_whole_channels_go(self, kept: list[int]) -> None:
        whole = filled(nn.Conv2d(8, 8, 3, groups=8))
        left = filled(nn.Conv2d(len(kept), len(kept), 3, groups=len(kept)))
        inputs = random_tensor(12, 8, 6, 6)
        known = collect(whole, [site_of(whole)], inputs, 7)["weight"]
        expected = collect(left, [site_of(left)], inputs[:, kept], 7)["weight"]
        found = restricted(known, site_of(whole), site_of(left), cut_of(whole, kept, [0]))
        assert same(found.mean, expected.mean)
        assert same(found.hessian, expected.hessian)

    def test_of_a_grouped_convolution_each_group_has_its_own(self) -> None:
        whole, left = filled(nn.Conv2d(8, 6, 3, groups=2)), filled(nn.Conv2d(4, 4, 3, groups=2))
        inputs = random_tensor(12, 8, 6, 6)
        known = collect(whole, [site_of(whole)], inputs, 7)["weight"]
        expected = collect(left, [site_of(left)], inputs[:, [0, 2, 5, 7]], 7)["weight"]
        at = torch.arange(6 * 4 * 9).reshape(6, 4, 3, 3)
        cut = torch.cat([at[[0, 2]][:, [0, 2]], at[[3, 4]][:, [1, 3]]])  # other inputs in the second group
        found = restricted(known, site_of(whole), site_of(left), cut)
        assert same(found.mean, expected.mean)
        assert same(found.hessian, expected.hessian)

    def test_channels_that_share_no_inputs_have_no_hessian_and_say_why(self) -> None:
        whole = filled(nn.Linear(8, 6))
        known = collect(whole, [site_of(whole)], random_tensor(20, 8), 7)["weight"]
        cut = torch.stack([torch.arange(3), 8 + torch.arange(3) * 2])  # another three of the second row
        found = restricted(known, site_of(whole), Site("weight", "weight", (2, 3), 0), cut)
        assert (found.mean, found.hessian) == (None, None)
        assert found.reason is not None
        assert "not the same" in found.reason

    def test_what_was_not_known_is_not_known(self) -> None:
        whole, left = filled(nn.Linear(8, 6)), filled(nn.Linear(4, 4))
        nothing = SiteStatistics(samples=3, reason="nobody looked")
        found = restricted(nothing, site_of(whole), site_of(left), cut_of(whole, OUT, IN))
        assert found == nothing

    def test_all_of_it_is_itself(self) -> None:
        whole = filled(nn.Conv2d(8, 6, 3))
        known = collect(whole, [site_of(whole)], random_tensor(9, 8, 5, 5), 7, "cpu", loss)["weight"]
        found = restricted(known, site_of(whole), site_of(whole), torch.arange(6 * 8 * 9))
        assert same(found.hessian, known.hessian)
        assert same(found.gradient, known.gradient)


def answers(layer: nn.Module, weight: Tensor, inputs: Tensor, bias: Tensor | float) -> Tensor:
    """A layer's outputs with another weight, positions x channels."""
    if isinstance(layer, nn.Linear):
        out = nn.functional.linear(inputs, weight).flatten(0, -2)
    else:
        out = nn.functional.conv2d(inputs, weight, stride=2, padding=1).movedim(1, -1).flatten(0, -2)
    return out + bias


class TestRefit:
    """With refit a layer's output on calibration data is at least as close to the whole one's as without."""

    @pytest.mark.parametrize("shifts", [False, True])
    @pytest.mark.parametrize("name", ["linear", "convolution", "inputs only"])
    def test_the_output_is_closer(self, name: str, shifts: bool) -> None:
        make, smaller, inputs, outs, ins = CASES[name]
        whole, left = filled(make()), filled(smaller())
        axis = inputs.ndim - 1 if isinstance(whole, nn.Linear) else 1
        inputs = (inputs.movedim(axis, -1) @ MIXED[:8, :8]).movedim(-1, axis) + 0.7  # channels that hang together
        known = collect(whole, [site_of(whole)], inputs, 100)["weight"]
        fewer, index = inputs.index_select(axis, torch.tensor(ins)), cut_of(whole, outs, ins)
        target = answers(whole, whole.get_parameter("weight").detach(), inputs, 0.0)[:, outs]
        errors = []
        for refit in (False, True):
            weight, _, lost = excerpted(
                whole.get_parameter("weight").detach(),
                known,
                site_of(whole),
                site_of(left),
                Excerpt(index, refit, shifts),
            )
            assert (lost is None) == (not refit or not shifts)
            bias = 0.0 if lost is None else lost
            errors.append(float((answers(left, weight, fewer, bias) - target).square().sum()))
            if not refit:
                assert torch.equal(weight.flatten(), whole.get_parameter("weight").detach().flatten()[index.flatten()])
        assert errors[1] < 0.6 * errors[0]

    def test_where_no_input_goes_nothing_is_refitted(self) -> None:
        make, smaller, inputs, outs, ins = CASES["outputs only"]
        whole, left = filled(make()), filled(smaller())
        known = collect(whole, [site_of(whole)], inputs, 100)["weight"]
        index, given = cut_of(whole, outs, ins), whole.get_parameter("weight").detach()
        weight, _, lost = excerpted(given, known, site_of(whole), site_of(left), Excerpt(index, True, True))
        assert lost is None
        assert torch.equal(weight, given[outs])

    def test_nor_without_a_hessian_or_between_groups(self) -> None:
        linear, smaller = filled(nn.Linear(8, 6)), filled(nn.Linear(4, 4))
        index, given = cut_of(linear, OUT, IN), linear.get_parameter("weight").detach()
        nothing = SiteStatistics(samples=0)
        weight, _, lost = excerpted(given, nothing, site_of(linear), site_of(smaller), Excerpt(index, True, True))
        assert lost is None
        assert torch.equal(weight, given[OUT][:, IN])
        grouped, half = filled(nn.Conv2d(8, 8, 3, groups=8)), filled(nn.Conv2d(4, 4, 3, groups=4))
        known = collect(grouped, [site_of(grouped)], random_tensor(5, 8, 6, 6), 7)["weight"]
        index, given = cut_of(grouped, IN, [0]), grouped.get_parameter("weight").detach()
        weight, _, lost = excerpted(given, known, site_of(grouped), site_of(half), Excerpt(index, True, True))
        assert lost is None
        assert torch.equal(weight, given[IN])

    def test_a_half_precision_weight_stays_one(self) -> None:
        linear, smaller = filled(nn.Linear(8, 6)), filled(nn.Linear(4, 4))
        known = collect(linear, [site_of(linear)], random_tensor(30, 8), 30)["weight"]
        given, index = linear.get_parameter("weight").detach().bfloat16(), cut_of(linear, OUT, IN)
        weight, _, _ = excerpted(given, known, site_of(linear), site_of(smaller), Excerpt(index, True, True))
        assert (weight.dtype, weight.shape) == (torch.bfloat16, (4, 4))

    def test_the_database_gives_the_refitted_weights_their_error_and_shift(self) -> None:
        linear, smaller = filled(nn.Linear(8, 6)), filled(nn.Linear(4, 4))
        inputs = random_tensor(60, 8) @ MIXED[:8, :8] + 0.7
        site, left = site_of(linear), site_of(smaller)
        database = LayerDatabase(linear, [site], lambda: collect(linear, [site], inputs, 60))
        cut = Excerpt(cut_of(linear, OUT, IN), refit=True, shifts=True)
        known = collect(linear, [site], inputs, 60)["weight"]
        given, fewer, lost = excerpted(database.weight("weight"), known, site, left, cut)
        floats, rounded = database.layers(left, [Choice(), Choice(weights=Uniform(bits=2))], cut)
        assert lost is not None
        assert torch.equal(floats.coded.decode(), left.rows(given))
        assert floats.shift is not None
        assert torch.allclose(floats.shift, lost, atol=1e-6)
        target = answers(linear, linear.get_parameter("weight").detach(), inputs, 0.0)[:, OUT]
        assert rounded.shift is not None
        for layer in (floats, rounded):
            assert layer.shift is not None
            out = answers(linear, left.weight(layer.coded.decode()), inputs[:, IN], layer.shift)
            assert torch.allclose(out.mean(dim=0), target.mean(dim=0), atol=1e-3)
        error = OutputError(left.rows(given), fewer.hessian)
        assert rounded.cost.error == pytest.approx(error.of(rounded.coded.decode()))
