"""Smaller models: they compute what the model with zeros computes, and say where each value came from."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from compress.pruning.channels import find_groups
from compress.sites import find_sites
from compress.structure import ChannelGroup, Structure, kept_rows, masked, restructure
from spaces.errors import CandidateError
from tests.models import digest, output, random_tensor
from tests.shapes import SHAPES, groups_of, shape


def draw(groups: tuple[ChannelGroup, ...], seed: int) -> Structure:
    """A structure in which any number of units of each group is left, at least one."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        stay = int(torch.randint(1, group.channels + 1, (), generator=generator))
        units = torch.randperm(group.channels, generator=generator)[:stay]
        kept[group.name] = tuple(sorted(units.tolist()))
    return Structure(kept)


@pytest.mark.parametrize("name", SHAPES)
def test_the_outputs_are_those_of_the_masked_model(name: str) -> None:
    one, groups = shape(name), groups_of(name)
    for seed in range(3):
        smaller = restructure(one.model, groups, draw(groups, seed))
        wanted = output(masked(one.model, smaller.index), one.inputs)
        torch.testing.assert_close(output(smaller.model, one.inputs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "dense", "mobile", "grouped", "fused"])
def test_random_structures_take_their_values_from_the_original(name: str) -> None:
    one, groups = shape(name), groups_of(name)
    before = digest(one.model)
    old = one.model.state_dict()
    for seed in range(30):
        smaller = restructure(one.model, groups, draw(groups, seed))
        assert output(smaller.model, one.inputs).shape == output(one.model, one.inputs).shape
        state = smaller.model.state_dict()
        assert set(state) == set(old) == set(smaller.index)
        for key, tensor in state.items():
            assert smaller.index[key].dtype == torch.int64
            assert tensor.shape == smaller.index[key].shape
            assert torch.equal(tensor, old[key].flatten()[smaller.index[key]])
    assert digest(one.model) == before


def test_the_sites_of_a_smaller_model_have_the_sizes_that_its_modules_state() -> None:
    one, groups = shape("grouped"), groups_of("grouped")
    kept = {group.name: tuple(range(1, group.channels)) for group in groups}
    smaller = restructure(one.model, groups, Structure(kept)).model
    assert [site.name for site in find_sites(smaller)] == [site.name for site in find_sites(one.model)]
    first, grouped, transposed = (smaller.get_submodule(at) for at in ("0", "3", "10"))
    assert isinstance(first, nn.Conv2d)
    assert isinstance(grouped, nn.Conv2d)
    assert isinstance(transposed, nn.ConvTranspose2d)
    assert (first.in_channels, first.out_channels) == (3, 4)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (4, 8, 4)
    assert (transposed.in_channels, transposed.out_channels, transposed.groups) == (6, 4, 2)
    norm = smaller.get_submodule("6")
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (3, 12)


def test_depthwise_convolutions_stay_depthwise() -> None:
    one, groups = shape("mobile"), groups_of("mobile")
    smaller = restructure(one.model, groups, Structure({"group-1.expand.0": (0, 3, 7)})).model
    convolution = smaller.get_submodule("1.depthwise.0")
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.in_channels, convolution.out_channels, convolution.groups) == (3, 3, 3)
    assert convolution.weight.shape == (3, 1, 3, 3)


def test_flattened_positions_follow_their_channel() -> None:
    one, groups = shape("lenet"), groups_of("lenet")
    smaller = restructure(one.model, groups, Structure({"group-0": (1, 4)}))
    columns = smaller.index["4.weight"][0].tolist()
    assert columns == [*range(9, 18), *range(36, 45)]


@pytest.mark.parametrize("name", ["resnet", "grouped", "plain", "fused"])
def test_the_rows_of_a_smaller_site_are_rows_and_columns_of_the_whole_one(name: str) -> None:
    one, groups = shape(name), groups_of(name)
    smaller = restructure(one.model, groups, draw(groups, seed=4))
    for site, less in zip(find_sites(one.model), find_sites(smaller.model), strict=True):
        whole = site.rows(one.model.get_parameter(site.parameter))
        rows, columns = kept_rows(site, smaller.index[site.parameter])
        assert torch.equal(whole[rows[:, None], columns], less.rows(smaller.model.get_parameter(site.parameter)))


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.first = nn.Linear(4, 4)
            self.second = self.first
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.second(torch.relu(self.first(self.embedding(words).mean(dim=1)))))
            return logits

    model, words = Tied().eval(), torch.tensor([[0, 1, 4]])
    groups, _ = find_groups(model, words)
    smaller = restructure(model, groups, Structure({"group-embedding": (0, 2, 3)}))
    new = smaller.model
    assert isinstance(new, Tied)
    assert new.head.weight is new.embedding.weight
    assert new.first is new.second
    assert (new.head.in_features, new.embedding.embedding_dim, new.first.in_features) == (3, 3, 3)
    assert torch.equal(smaller.index["head.weight"], smaller.index["embedding.weight"])
    torch.testing.assert_close(output(new, words), output(masked(model, smaller.index), words))


def test_dropping_a_block_is_adding_nothing() -> None:
    one = shape("mobile")
    smaller = restructure(one.model, groups_of("mobile"), Structure(dropped=("2",)))
    assert not any(site.name.startswith("2.") for site in find_sites(smaller.model))
    assert not any(name.startswith("2.") for name in smaller.index)
    x = one.model.get_submodule("1")(one.model.get_submodule("0")(one.inputs))
    rest = nn.Sequential(*[one.model.get_submodule(at) for at in ("3", "4", "5")])
    torch.testing.assert_close(output(smaller.model, one.inputs), output(rest, x))


def test_channels_and_blocks_go_together() -> None:
    one, groups = shape("resnet"), groups_of("resnet")
    kept = {group.name: tuple(range(0, group.channels, 2)) for group in groups}
    smaller = restructure(one.model, groups, Structure(kept, dropped=("layers.1", "layers.3")))
    only_dropped = restructure(one.model, groups, Structure(dropped=("layers.1", "layers.3"))).model
    wanted = output(masked(only_dropped, smaller.index), one.inputs)
    torch.testing.assert_close(output(smaller.model, one.inputs), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_removed_is_an_equal_model_that_shares_nothing() -> None:
    one, groups = shape("transformer"), groups_of("transformer")
    same = restructure(one.model, groups, Structure({group.name: tuple(range(group.channels)) for group in groups}))
    assert torch.equal(output(same.model, one.inputs), output(one.model, one.inputs))
    for name, parameter in same.model.named_parameters():
        assert parameter.data_ptr() != one.model.get_parameter(name).data_ptr()


def test_padded_batches_pass_a_torch_encoder_in_which_one_attention_has_fewer_heads() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 4, dim_feedforward=6, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])
            return logits

    inputs = (random_tensor(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")  # torch says so of its own encoder
        model = Padded().eval()
        groups, _ = find_groups(model, inputs)
        assert [group.name for group in groups][::2] == [f"group-encoder.layers.{at}.self_attn" for at in (0, 1)]
        smaller = restructure(model, groups, Structure({"group-encoder.layers.1.self_attn": (1, 2)}))
        wanted = output(masked(model, smaller.index), inputs)
    torch.testing.assert_close(output(smaller.model, inputs), wanted, rtol=1e-4, atol=1e-5)


def test_trainable_parameters_stay_trainable_and_frozen_ones_frozen() -> None:
    one, groups = shape("lenet"), groups_of("lenet")
    one.model.get_parameter("4.weight").requires_grad_(False)
    new = restructure(one.model, groups, draw(groups, seed=1)).model
    assert {name for name, p in new.named_parameters() if not p.requires_grad} == {"4.weight"}
    output(new, one.inputs)
    new(one.inputs).sum().backward()
    assert new.get_parameter("0.weight").grad is not None


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Structure({"group-9": (0,)}), "group-9"),
        (Structure({"group-0": ()}), "at least one"),
        (Structure({"group-0": (2, 1)}), "increasing"),
        (Structure({"group-0": (0, 6)}), "below 6"),
        (Structure(dropped=("8",)), "'8'"),
        (Structure(dropped=("",)), "''"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(structure: Structure, message: str) -> None:
    one, groups = shape("lenet"), groups_of("lenet")
    with pytest.raises(CandidateError, match=message):
        restructure(one.model, groups, structure)


def test_structures_and_groups_are_values() -> None:
    one = Structure({"b": (0,), "a": (1, 2)}, dropped=("x",))
    other = Structure({"a": (1, 2), "b": (0,)}, dropped=("x",))
    assert one == other
    assert len({one, other, Structure()}) == 2
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    with pytest.raises(TypeError):
        one.kept["a"] = (0,)  # type: ignore[index]
    groups = groups_of("bert")
    assert pickle.loads(pickle.dumps(groups)) == groups
    assert len({*groups, *groups}) == len(groups)


def test_a_group_knows_how_many_units_make_a_multiple() -> None:
    plain, heads = groups_of("lenet")[0], groups_of("bert")[0]
    assert (plain.unit, plain.step(8)) == (1, 8)
    assert (heads.unit, heads.step(6), heads.step(4)) == (3, 2, 4)
