"""Which channels go together, how much they matter, and how many stay."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.pruning.channel_scores import kept_channels, scores
from compress.pruning.channels import find_groups
from compress.pruning.reconstruction import refit
from compress.sites import find_sites
from compress.statistics import SiteStatistics, collect
from compress.structure import Structure, masked, restructure
from spaces.choice import ChannelCriterion
from spaces.errors import CandidateError
from tests.models import digest, output, random_tensor, subject
from tests.shapes import groups_of, shape

OUTPUT = "they are the model's output"


def test_residual_sums_couple_and_inner_channels_do_not() -> None:
    one = shape("resnet")
    before = digest(one.model)
    groups, skipped = find_groups(one.model, one.inputs)
    assert digest(one.model) == before
    assert {group.name: group.members for group in groups} == {
        "group-stem.conv": ("stem.conv", "layers.0.conv2", "layers.1.conv2"),
        "group-layers.0.conv1": ("layers.0.conv1",),
        "group-layers.1.conv1": ("layers.1.conv1",),
        "group-layers.2.conv1": ("layers.2.conv1",),
        "group-layers.2.conv2": ("layers.2.conv2", "layers.2.shortcut.conv", "layers.3.conv2"),
        "group-layers.3.conv1": ("layers.3.conv1",),
        "group-layers.4.conv1": ("layers.4.conv1",),
        "group-layers.4.conv2": ("layers.4.conv2", "layers.4.shortcut.conv", "layers.5.conv2"),
        "group-layers.5.conv1": ("layers.5.conv1",),
    }
    assert [group.channels for group in groups] == [4, 4, 4, 8, 8, 8, 16, 16, 16]
    assert skipped == {"group-head": OUTPUT}


@pytest.mark.parametrize(
    ("name", "units", "left_out"),
    [
        ("dense", {"group-stem": (6, 1), "group-layers.0": (4, 1), "group-layers.1": (4, 1)}, set()),
        (
            "mobile",
            {
                "group-0": (8, 1),
                "group-1.expand.0": (12, 1),
                "group-1.gate.1": (4, 1),
                "group-2.expand.0": (12, 1),
                "group-2.gate.1": (4, 1),
            },
            set(),
        ),
        (
            "grouped",
            {"group-0": (2, 4), "group-3": (3, 4), "group-5": (4, 4), "group-8": (4, 2), "group-10": (3, 2)},
            set(),
        ),
        ("lenet", {"group-0": (6, 1), "group-4": (10, 1)}, set()),
        (
            "transformer",
            {
                "group-blocks.0.attention": (4, 3),
                "group-blocks.0.mlp.0": (20, 1),
                "group-blocks.1.self_attn": (3, 4),
                "group-blocks.1.linear1": (16, 1),
            },
            {"group-embedding"},
        ),
        ("plain", {"group-embedding": (8, 1), "group-attention": (2, 4)}, set()),
        ("bert", {"group-q": (4, 3)}, {"group-embedding"}),
        ("fused", {"group-qkv": (3, 12), "group-gated": (10, 2)}, {"group-embedding"}),
        ("recurrent", {"group-embedding": (5, 1), "group-inner": (6, 1)}, set()),
        ("shuffled", {"group-second": (4, 2)}, {"group-first"}),
    ],
)
def test_units_of_each_kind_of_model(name: str, units: dict[str, tuple[int, int]], left_out: set[str]) -> None:
    one = shape(name)
    groups, skipped = find_groups(one.model, one.inputs)
    assert {group.name: (group.channels, group.unit) for group in groups} == units
    outputs = {key for key, why in skipped.items() if why == OUTPUT}
    assert len(outputs) == 1
    assert set(skipped) - outputs == left_out


def test_the_reason_says_what_stands_in_the_way() -> None:
    one = shape("bert")
    assert "norm normalises over them" in find_groups(one.model, one.inputs)[1]["group-embedding"]
    one = shape("shuffled")
    assert "computes something else" in find_groups(one.model, one.inputs)[1]["group-first"]


@pytest.mark.parametrize("name", ["convolutions", "recurrent", "attention", "tied", "buffers", "bfloat16"])
def test_awkward_models_are_answered_for(name: str) -> None:
    one = subject(name)
    before = digest(one.model)
    groups, skipped = find_groups(one.model, one.inputs)
    assert digest(one.model) == before
    assert skipped
    for group in groups:
        smaller = restructure(one.model, groups, Structure({group.name: (0,)}))
        wanted = output(masked(one.model, smaller.index), one.inputs)
        torch.testing.assert_close(output(smaller.model, one.inputs), wanted, rtol=1e-4, atol=1e-5)


def test_a_model_that_writes_its_width_down_is_left_as_it_is() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.conv(x).view(-1, 4 * 4))
            return logits

    groups, skipped = find_groups(Written(), torch.zeros(3, 1, 4, 4))
    assert groups == ()
    assert "does not run with fewer" in skipped["group-conv"]


def test_a_model_that_cannot_be_traced_has_no_groups_and_one_reason() -> None:
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(self.layers(x).numpy())

    groups, skipped = find_groups(Numpy(), torch.zeros(3, 3))
    assert groups == ()
    assert list(skipped) == [""]
    assert "cannot trace" in skipped[""]


def test_groups_are_the_same_each_time_and_draw_no_random_numbers() -> None:
    one = shape("mobile")
    torch.manual_seed(5)
    first = find_groups(one.model, one.inputs)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    assert find_groups(one.model, one.inputs) == first


def chain() -> tuple[nn.Module, Tensor]:
    """Conv, norm, ReLU, conv, head, with whole numbers that are easy to sum."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2)
    ).eval()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1, 1))
        model.get_parameter("1.weight").copy_(torch.tensor([-1.0, 0.5, 2.0]))
        model.get_parameter("3.weight").copy_(torch.tensor([[4.0, 0.0, 1.0], [0.0, -3.0, 1.0]]).view(2, 3, 1, 1))
    return model, random_tensor(40, 1, 1, 1)


def test_norms_are_over_all_coupled_weights() -> None:
    model, x = chain()
    group = find_groups(model, x)[0][0]
    assert group.name == "group-0"
    assert scores(model, group, "l1").tolist() == [1 + 1 + 4, 2 + 0.5 + 3, 3 + 2 + 2]
    wanted = [math.sqrt(1 + 1 + 16), math.sqrt(4 + 0.25 + 9), math.sqrt(9 + 4 + 2)]
    assert scores(model, group, "l2").tolist() == pytest.approx(wanted)
    assert scores(model, group, "batchnorm").tolist() == [1, 0.5, 2]


def test_hessian_is_the_change_of_what_the_next_layer_puts_out() -> None:
    one = shape("lenet")
    x = random_tensor(20, 3, 8, 8)
    sites = find_sites(one.model)
    known = collect(one.model, sites, x, chunk=10)
    group = groups_of("lenet")[0]  # its channels are nine columns each of the linear layer behind
    got = scores(one.model, group, "hessian", known)
    with torch.no_grad():
        inner = nn.Sequential(*list(one.model.children())[:4])
        features, weight = inner(x), one.model.get_parameter("4.weight")
        for unit in range(6):
            part = slice(9 * unit, 9 * unit + 9)
            change = features[:, part] @ weight[:, part].T
            assert got[unit].item() == pytest.approx(change.square().sum(dim=1).mean().item(), rel=1e-4)
        norms = features.square().mean(dim=0).sqrt()
        wanted = (weight.abs() * norms).sum(dim=0).view(6, 9).sum(dim=1)
    torch.testing.assert_close(scores(one.model, group, "wanda", known), wanted.double(), rtol=1e-4, atol=1e-6)


def test_taylor_sums_the_squared_first_order_changes() -> None:
    model, x = chain()
    group = find_groups(model, x)[0][0]
    fisher = torch.tensor([[2.0], [1.0], [0.5]])
    known = {"0": SiteStatistics(1, fisher=fisher)}
    assert scores(model, group, "taylor", known).tolist() == [2 * 1, 1 * 4, 0.5 * 9]


def test_apoz_is_the_mean_share_of_outputs_that_are_not_zero() -> None:
    one, group = shape("resnet"), groups_of("resnet")[0]
    zeros = {name: SiteStatistics(1, zeros=torch.rand(4, generator=torch.Generator().manual_seed(i)))
             for i, name in enumerate(group.members)}  # fmt: skip
    wanted = torch.stack([1 - known.zeros.double() for known in zeros.values() if known.zeros is not None]).mean(dim=0)
    torch.testing.assert_close(scores(one.model, group, "apoz", zeros), wanted)


@pytest.mark.parametrize("name", ["resnet", "dense", "mobile", "transformer", "fused", "plain"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "taylor", "wanda", "hessian"])
def test_every_group_can_be_scored(name: str, criterion: ChannelCriterion) -> None:
    one, groups = shape(name), groups_of(name)

    def loss(outputs: Tensor, part: slice) -> Tensor:
        return F.cross_entropy(outputs, torch.zeros(len(outputs), dtype=torch.long), reduction="sum")

    known = collect(one.model, find_sites(one.model), one.inputs, chunk=2, loss=loss)
    for group in groups:
        found = scores(one.model, group, criterion, known)
        assert found.shape == (group.channels,)
        assert found.dtype == torch.float64
        assert torch.isfinite(found).all()
        assert (found >= 0).all()
        assert len(found.unique()) > 1  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("criterion", ["taylor", "apoz", "wanda", "hessian"])
def test_a_criterion_without_its_statistics_is_refused(criterion: ChannelCriterion) -> None:
    model, x = chain()
    group = find_groups(model, x)[0][0]
    with pytest.raises(CandidateError, match="group-0"):
        scores(model, group, criterion)


def test_batchnorm_scales_where_there_are_none_are_refused() -> None:
    one, group = shape("lenet"), groups_of("lenet")[0]
    with pytest.raises(CandidateError, match="batchnorm"):
        scores(one.model, group, "batchnorm")


def test_the_best_stay_and_of_equal_ones_the_first() -> None:
    assert kept_channels(torch.tensor([0.1, 0.9, 0.5, 0.5]), 0.5) == (1, 2)
    assert kept_channels(torch.tensor([0.1, 0.9, 0.5, 0.5]), 0.25) == (1, 2, 3)


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "stay"),
    [
        (16, 0.5, 1, 8), (16, 0.5, 8, 8), (16, 0.7, 8, 8), (16, 0.95, 8, 8), (16, 0.9, 1, 2), (16, 0.99, 1, 1),
        (64, 0.3, 8, 48), (64, 0.32, 8, 40), (12, 0.1, 8, 8), (11, 0.0, 8, 11), (12, 0.0, 8, 12), (6, 0.5, 8, 6),
        (1, 0.9, 1, 1), (20, 0.1, 8, 16), (20, 0.01, 8, 16),
    ],
)  # fmt: skip
def test_how_many_stay(channels: int, ratio: float, multiple: int, stay: int) -> None:
    kept = kept_channels(torch.arange(channels), ratio, multiple)
    assert kept == tuple(range(channels - stay, channels))


@pytest.mark.parametrize("multiple", [1, 3, 8])
def test_larger_ratios_keep_less_of_the_same(multiple: int) -> None:
    one = random_tensor(37)
    kept = [set(kept_channels(one, step / 40, multiple)) for step in range(40)]
    assert all(after <= before for before, after in itertools.pairwise(kept))


@pytest.mark.parametrize(("ratio", "multiple"), [(1.0, 1), (-0.1, 1), (0.5, 0), (math.nan, 1)])
def test_impossible_numbers_are_refused(ratio: float, multiple: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        kept_channels(torch.ones(4), ratio, multiple)
    with pytest.raises(ValueError, match="not a number"):
        kept_channels(torch.tensor([1.0, math.nan]), 0.5)


def test_refitted_weights_are_the_least_squares_solution() -> None:
    x = random_tensor(500, 8) + 0.5
    x[:, 7] = x[:, 0] - 2 * x[:, 3] + 1  # what the last input says the others know, up to a constant
    weight, bias = random_tensor(3, 8, seed=1), random_tensor(3, seed=2)
    left = torch.arange(7)
    moments, mean = (x.T @ x / 500)[None], x.mean(dim=0)[None]
    new, shift = refit(weight, moments, mean, left)
    wanted = x @ weight.T + bias
    refitted = (x[:, left] @ new.T + bias + shift - wanted).square().mean()
    assert refitted < 1e-3 * (x[:, left] @ weight[:, left].T + bias - wanted).square().mean()  # the dampening is left
    plain, none = refit(weight, moments, None, left)
    assert none.tolist() == [0, 0, 0]
    solved = torch.linalg.lstsq(x[:, left], x @ weight.T).solution.T
    torch.testing.assert_close(plain, solved, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("least", [-0.05, -0.5])
def test_moments_that_are_not_quite_positive_definite_are_dampened_more(least: float) -> None:
    """Float32 sums of many correlated inputs can have an eigenvalue below zero."""
    moments = torch.eye(6)[None].clone()
    moments[0, 0, 0] = least
    new, shift = refit(random_tensor(3, 6), moments, None, torch.arange(5))
    assert bool(new.isfinite().all())
    torch.testing.assert_close(new, random_tensor(3, 6)[:, :5], rtol=1e-4, atol=1e-4)
    assert shift.tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_moments_that_cannot_be_inverted_leave_the_weights_as_they_are(value: float) -> None:
    weight, moments = random_tensor(4, 6), torch.stack([torch.eye(6), torch.eye(6)])
    moments[1, 2, 2] = value * 100
    new, shift = refit(weight, moments, torch.zeros(2, 6) + 0.1, torch.arange(5))
    assert torch.equal(new[2:], weight[2:, :5])
    assert shift[2:].tolist() == [0, 0]
    assert bool(new.isfinite().all())
    assert bool(shift[:2].all())


def test_nothing_removed_is_nothing_refitted() -> None:
    x = random_tensor(50, 6)
    weight = random_tensor(4, 6, seed=1)
    blocks = torch.stack([part.T @ part / 50 for part in (x, x + 1)])
    new, shift = refit(weight, blocks, torch.stack([x.mean(dim=0), (x + 1).mean(dim=0)]), torch.arange(6))
    torch.testing.assert_close(new, weight)
    torch.testing.assert_close(shift, torch.zeros(4), rtol=0, atol=1e-6)
