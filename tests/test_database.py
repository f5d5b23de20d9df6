"""The layer database: exact bytes, keys that say all that shapes a layer, its bound on memory, what is only read."""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.database import LayerDatabase
from compress.family import Member
from compress.layer import CompressedLayer
from compress.quantization.activations import fake_quantize
from compress.restriction import Excerpt
from compress.shelf import Shelf
from compress.sites import Site, find_sites
from compress.statistics import SiteStatistics, collect
from spaces.policy import (
    Choice,
    Codebook,
    DynamicActivations,
    Float16,
    Float32,
    NoPruning,
    Prune,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Weights,
)
from spaces.target import CodingName
from tests.contracts import database_of, fitting
from tests.models import MODELS, digest, random_loss, random_tensor, subject

WEIGHTS: list[Weights] = [
    Float32(),
    Float16(),
    Uniform(bits=2),
    Uniform(bits=5, symmetric=False),
    Uniform(bits=3, rounding="gptq"),
    Uniform(bits=8, scale_per="tensor"),
    Codebook(bits=3),
    Codebook(bits=2, rounding="gptq"),
]
PRUNES: list[Prune] = [
    NoPruning(),
    Unstructured(ratio=0.3),
    Unstructured(ratio=0.8, criterion="hessian"),
    Threshold(value=0.1),
]
CHOICES = [Choice(prune=prune, weights=weights) for prune, weights in itertools.product(PRUNES, WEIGHTS)]
HALVES = Choice(weights=Float16())
ROUNDED = StaticActivations(bits=8)


def chain(layers: int = 4, width: int = 10) -> nn.Sequential:
    """Linear layers whose weights depend on nothing else."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.copy_(random_tensor(*weight.shape, seed=i))
    return model.eval()


class Counted:
    """Statistics of a model, and how often they were asked for."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor) -> None:
        self.model, self.inputs, self.asked = model, inputs, 0

    def __call__(self) -> Mapping[str, SiteStatistics]:
        self.asked += 1
        return collect(self.model, find_sites(self.model), self.inputs, 32, "cpu", random_loss)


def plain(model: nn.Module, **more: Any) -> tuple[dict[str, Site], LayerDatabase]:
    """A database of a model that nothing is known about."""
    sites = find_sites(model)
    nothing = {site.name: SiteStatistics(samples=0) for site in sites}
    return {site.name: site for site in sites}, LayerDatabase(model, sites, lambda: nothing, **more)


def same(left: CompressedLayer, right: CompressedLayer) -> bool:
    """Whether two layers are the same to the bit."""
    pairs = ((left.kept, right.kept), (left.shift, right.shift))
    return (
        left.cost == right.cost
        and left.coded.write("entropy") == right.coded.write("entropy")
        and left.coded.values.dtype == right.coded.values.dtype
        and all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs if b is not None)
    )


class TestCosts:
    @pytest.mark.parametrize("coding", ["packed", "entropy"])
    @pytest.mark.parametrize("name", ["convolutions", "tied", "bfloat16"])
    def test_they_are_the_bytes_of_the_coding(self, name: str, coding: CodingName) -> None:
        one = subject(name)
        member = Member(None, one.model, one.inputs, "a:b", coding)
        database = database_of(member, one)
        choices = CHOICES if coding == "packed" else CHOICES[4:12]
        for site, wished in itertools.product(member.sites, choices):
            choice = fitting(member, database, site, wished)
            layer, cost = database.layer(site, choice), database.cost(site, choice)
            assert cost == layer.cost
            assert cost.bytes == layer.coded.payload_bytes(coding) == len(layer.coded.write(coding)[1])
            assert 0 <= cost.error < 1.5

    def test_rounded_inputs_cost_their_range(self) -> None:
        model = chain()
        sites = find_sites(model)
        database = LayerDatabase(model, sites, Counted(model, random_tensor(64, 10)))
        for choice, bytes in itertools.product(CHOICES[:4], (8, 0)):
            more = {8: ROUNDED, 0: DynamicActivations(bits=8)}[bytes]
            rounded = database.layer(sites[1], choice.model_copy(update={"activations": more}))
            assert rounded.cost.bytes == database.cost(sites[1], choice).bytes + bytes
            assert rounded.cost.bytes == rounded.coded.payload_bytes("packed")
            assert rounded.cost.error > database.cost(sites[1], choice).error

    def test_weights_that_are_all_zero_lose_nothing(self) -> None:
        model = nn.Linear(4, 3)
        nn.init.zeros_(model.weight)
        sites, database = plain(model)
        choices = [choice for choice in CHOICES if choice.prune != Threshold(value=0.1)]
        assert {database.cost(sites["weight"], choice).error for choice in choices} == {0.0}

    def test_unpruned_float32_loses_nothing_and_costs_four_bytes_a_weight(self) -> None:
        sites, database = plain(subject("attention").model)
        costs = [database.cost(site, Choice()) for site in sites.values()]
        assert [(cost.bytes, cost.error) for cost in costs] == [(4 * site.size, 0.0) for site in sites.values()]


class TestTogether:
    """Many choices of a site are made in one go; each is what it would be alone, so no cache changes a result."""

    @pytest.mark.parametrize("name", sorted(set(MODELS) - {"buffers"}))
    def test_a_batch_is_what_each_is_alone(self, name: str) -> None:
        one = subject(name)
        member = Member(None, one.model, one.inputs, "a:b")
        first, second, third = (database_of(member, one) for _ in range(3))
        for site in member.sites:
            choices = [choice for choice in CHOICES if fitting(member, first, site, choice) == choice]
            alone = [second.layer(site, choice) for choice in choices]
            together = third.layers(site, choices)
            assert [choice.label for choice, a, b in zip(choices, alone, together, strict=True) if not same(a, b)] == []
            backwards = database_of(member, one).layers(site, choices[::-1])
            assert all(same(a, b) for a, b in zip(alone, backwards[::-1], strict=True))

    def test_a_choice_asked_for_twice_is_made_once(self) -> None:
        sites, database = plain(chain())
        first, second = database.layers(sites["0"], [HALVES, HALVES])
        assert first is second
        assert len(database.costs(sites["0"], [HALVES, Choice(), HALVES])) == 3

    def test_activations_share_the_weights(self) -> None:
        model = chain()
        database = LayerDatabase(model, find_sites(model), Counted(model, random_tensor(64, 10)))
        site = find_sites(model)[0]
        wished = [
            Choice(weights=Uniform(bits=3), activations=more) for more in (None, ROUNDED, DynamicActivations(bits=4))
        ]
        layers = database.layers(site, wished)
        assert len({id(layer.coded.values) for layer in layers}) == 1
        grid = layers[1].coded.inputs
        assert grid is not None
        assert grid.low is not None
        assert fake_quantize(torch.zeros(1), grid).item() == 0
        assert [layer.coded.inputs is None for layer in layers] == [True, False, False]


class TestKept:
    """What was made is kept up to a bound, and the least recently used goes first."""

    def test_the_same_object_is_given_again(self) -> None:
        sites, database = plain(subject("attention").model)
        choice = CHOICES[9]
        assert database.layer(sites["head"], choice) is database.layer(sites["head"], choice)
        again = Choice.model_validate(choice.model_dump())
        assert database.layer(sites["head"], again) is database.layer(sites["head"], choice)

    def test_the_least_recently_used_is_dropped_and_made_again_the_same(self) -> None:
        sites, database = plain(chain(), memory_bytes=600)  # three times 200
        first, second, third = (database.layer(sites[name], HALVES) for name in "012")
        assert database.layer(sites["0"], HALVES) is first
        fourth = database.layer(sites["3"], HALVES)  # in place of "1"
        assert [database.layer(sites[name], HALVES) for name in "023"] == [first, third, fourth]
        remade = database.layer(sites["1"], HALVES)
        assert remade is not second
        assert same(remade, second)

    def test_one_that_is_larger_than_the_bound_is_given_all_the_same(self) -> None:
        sites, database = plain(chain(2), memory_bytes=10)
        first = database.layer(sites["0"], HALVES)
        assert database.layer(sites["0"], HALVES) is first
        database.layer(sites["1"], HALVES)
        assert database.layer(sites["0"], HALVES) is not first

    def test_dropping_changes_nothing(self) -> None:
        one = subject("convolutions")
        member = Member(None, one.model, one.inputs, "a:b")
        roomy = database_of(member, one)
        counted = Counted(one.model, one.inputs)  # type: ignore[arg-type]
        tight = LayerDatabase(one.model, member.sites, lambda: roomy._collected or counted(), memory_bytes=1)
        for site, wished in itertools.product(member.sites, CHOICES[:12]):
            choice = fitting(member, roomy, site, wished)
            assert same(tight.layer(site, choice), roomy.layer(site, choice))

    def test_costs_outlive_the_layers(self) -> None:
        model = chain(2)
        counted = Counted(model, random_tensor(64, 10))
        database = LayerDatabase(model, find_sites(model), counted, memory_bytes=1)
        costs = [database.costs(site, CHOICES) for site in find_sites(model) for _ in range(2)]
        assert costs[0] == costs[1]
        assert costs[0] != costs[2]
        assert counted.asked == 1


class TestReadOnly:
    def test_the_model_is_read_and_never_changed(self) -> None:
        one = subject("convolutions")
        member, before = Member(None, one.model, one.inputs, "a:b"), digest(one.model)
        database = database_of(member, one)
        for site in member.sites:
            database.costs(site, [fitting(member, database, site, choice) for choice in CHOICES])
            assert torch.equal(database.weight(site.name), one.model.get_parameter(site.parameter))
            assert not database.weight(site.name).requires_grad
        assert digest(one.model) == before

    def test_a_site_that_does_not_exist_is_never_skipped(self) -> None:
        sites, database = plain(subject("attention").model)
        tail = Site("tail", "tail.weight", (3, 8), 0)
        with pytest.raises(KeyError, match="tail"):
            database.layer(tail, Choice())
        with pytest.raises(KeyError, match="tail"):
            database.costs(tail, [Choice()])
        assert database.cost(sites["head"], Choice()).bytes == 96


KEYS = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from compress.shelf import Shelf
from tests.test_database import HALVES, plain, chain
sites, database = plain(chain(), identity="a model", shelf=Shelf(Path(sys.argv[1]), 10**6))
for name in sites:
    database.layer(sites[name], HALVES)
print(json.dumps(sorted(path.name for path in Path(sys.argv[1]).glob("*/*"))))
"""


class TestKeys:
    """A layer is found again under all that shapes it, and under nothing else."""

    def test_they_are_the_same_in_every_process(self, tmp_path: Path) -> None:
        found = []
        for i in range(2):
            made = subprocess.run(
                [sys.executable, "-c", KEYS, str(tmp_path / str(i))], check=True, capture_output=True, text=True
            )
            found.append(json.loads(made.stdout))
        assert found[0] == found[1]
        assert len(found[0]) == 4
        sites, database = plain(chain(), identity="a model", shelf=Shelf(tmp_path / "0", 10**6))
        names = {f"{database._key(name, HALVES, None)}.safetensors" for name in sites}
        assert names == set(found[0])

    @pytest.mark.parametrize(
        "changed",
        [
            {"identity": "other weights or data"},
            {"coding": "entropy"},
            {"choice": Choice(weights=Float16(), prune=Unstructured(ratio=0.5))},
            {"choice": Choice(weights=Uniform(bits=4, rounding="gptq"))},
            {"name": "1"},
            {"cut": Excerpt(torch.arange(50).reshape(5, 10))},
            {"cut": Excerpt(torch.arange(50).reshape(5, 10), refit=True)},
            {"cut": Excerpt(torch.arange(50).reshape(5, 10), refit=True, shifts=True)},
            {"cut": Excerpt(torch.arange(50, 100).reshape(5, 10))},
        ],
    )
    def test_whatever_shapes_a_layer_changes_its_key(self, changed: dict[str, Any]) -> None:
        about: dict[str, Any] = {
            "identity": "",
            "coding": "packed",
            "name": "0",
            "choice": Choice(weights=Uniform(bits=4)),
            "cut": None,
        }
        keys = set()
        for one in (about, about | changed):
            _, database = plain(chain(), identity=one["identity"], coding=one["coding"])
            keys.add(database._key(one["name"], one["choice"], one["cut"]))
        assert len(keys) == 2

    def test_cuts_of_the_same_indices_in_another_shape_are_others(self) -> None:
        index = torch.arange(12)
        assert Excerpt(index.reshape(3, 4)).digest == Excerpt(index.reshape(3, 4).clone()).digest
        assert Excerpt(index.reshape(3, 4)).digest != Excerpt(index.reshape(4, 3)).digest


class TestShelf:
    def test_what_is_there_is_not_made_again(self, tmp_path: Path) -> None:
        model = chain(2)
        found, asked = [], []
        for _ in range(2):
            counted = Counted(model, random_tensor(64, 10))
            database = LayerDatabase(model, find_sites(model), counted, "me", shelf=Shelf(tmp_path, 10**6))
            found.append([layer for site in find_sites(model) for layer in database.layers(site, CHOICES)])
            asked.append(counted.asked)
        assert asked == [1, 0]
        assert all(same(made, read) for made, read in zip(*found, strict=True))

    def test_half_of_them_are_made_where_the_other_half_is_there(self, tmp_path: Path) -> None:
        model, inputs = chain(1), random_tensor(64, 10)
        (site,) = find_sites(model)
        whole = LayerDatabase(model, [site], Counted(model, inputs)).layers(site, CHOICES)
        LayerDatabase(model, [site], Counted(model, inputs), shelf=Shelf(tmp_path, 10**6)).layers(site, CHOICES[::2])
        mended = LayerDatabase(model, [site], Counted(model, inputs), shelf=Shelf(tmp_path, 10**6)).layers(
            site, CHOICES
        )
        assert all(same(one, other) for one, other in zip(whole, mended, strict=True))

    def test_layers_of_cut_sites_are_kept_too(self, tmp_path: Path) -> None:
        model = chain(1)
        (site,) = find_sites(model)
        left = Site(site.name, site.parameter, (5, 6), 0)
        cut = Excerpt((torch.arange(5)[:, None] * 2) * 10 + torch.tensor([0, 1, 3, 5, 8, 9]), refit=True, shifts=True)
        made = []
        for folder in ("a", "a", "b"):
            database = LayerDatabase(
                model, [site], Counted(model, random_tensor(64, 10)), shelf=Shelf(tmp_path / folder, 10**6)
            )
            made.append(database.layers(left, CHOICES[:8], cut))
        assert all(layer.coded.values.shape == (5, 6) for layer in made[0])
        for other in made[1:]:
            assert all(same(one, two) for one, two in zip(made[0], other, strict=True))
