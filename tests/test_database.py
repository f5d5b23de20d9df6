"""The layer database: costs against computing them, its bound on memory, and what a choice cannot hold."""

import itertools
import tracemalloc

import pytest
import torch
from torch import nn

from compress.coding import Kind
from compress.database import LayerDatabase, compress, kept_mask
from compress.pruning.magnitude import magnitude_mask
from compress.quantization.uniform import dequantize, quantize
from compress.sites import Site, find_sites
from spaces.errors import CandidateError
from spaces.policy import Choice, Float16, Float32, NoPruning, Prune, Uniform, Unstructured, Weights
from tests.models import MODELS, digest, random_tensor, subject

WEIGHTS: list[Weights] = [Float32(), Float16(), Uniform(bits=2), Uniform(bits=5), Uniform(bits=8)]
PRUNES: list[Prune] = [NoPruning(), Unstructured(ratio=0.25), Unstructured(ratio=0.8)]
CHOICES = [Choice(prune=prune, weights=weights) for prune, weights in itertools.product(PRUNES, WEIGHTS)]
every_choice = pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.label)
HALVES = Choice(weights=Float16())


def database_of(model: nn.Module, max_bytes: int = 2**20) -> tuple[tuple[Site, ...], LayerDatabase]:
    sites = find_sites(model)
    return sites, LayerDatabase(model, sites, max_bytes)


class TestCosts:
    @every_choice
    @pytest.mark.parametrize("name", MODELS)
    def test_they_are_the_bytes_written_and_the_error_computed(self, name: str, choice: Choice) -> None:
        model = subject(name).model
        sites, database = database_of(model)
        for site in sites:
            cost, coded = database.cost(site.name, choice), database.coded(site.name, choice)
            weight = model.get_parameter(site.parameter).detach().double()
            lost = (site.weight(coded.decode()).double() - weight).square().sum() / weight.square().sum()
            assert cost.bytes == len(coded.write()[1])
            assert cost.error == pytest.approx(float(lost), rel=1e-5, abs=1e-12)
            assert 0 <= cost.error < 1
            assert database.cost(site.name, choice) is cost

    def test_a_choice_that_keeps_more_errs_less(self) -> None:
        sites, database = database_of(subject("recurrent").model)
        for site in sites:
            for prune in PRUNES:
                errors = [database.cost(site.name, Choice(prune=prune, weights=weights)).error for weights in WEIGHTS]
                assert errors == [errors[0], errors[1], *sorted(errors[2:], reverse=True)]
                assert errors[0] <= errors[1] < errors[4]
            for weights in WEIGHTS[:2]:
                errors = [database.cost(site.name, Choice(prune=prune, weights=weights)).error for prune in PRUNES]
                assert errors == sorted(errors)

    def test_weights_that_are_all_zero_lose_nothing(self) -> None:
        model = nn.Linear(4, 3)
        nn.init.zeros_(model.weight)
        _, database = database_of(model)
        assert [database.cost("weight", choice).error for choice in CHOICES] == [0.0] * len(CHOICES)

    def test_unpruned_float32_loses_nothing_and_costs_four_bytes_a_weight(self) -> None:
        sites, database = database_of(subject("attention").model)
        costs = [database.cost(site.name, Choice()) for site in sites]
        assert [(cost.bytes, cost.error) for cost in costs] == [(4 * site.size, 0.0) for site in sites]


class TestCompress:
    @every_choice
    def test_it_prunes_first_and_quantizes_what_is_kept(self, choice: Choice) -> None:
        weight = random_tensor(6, 5, 3, 3)
        site = Site("a", "a.weight", (6, 5, 3, 3), 1)
        mask = magnitude_mask(weight, choice.ratio)
        assert torch.equal(kept_mask(weight, choice), mask)
        coded = compress(site, weight, choice)
        expected = torch.where(mask, weight, 0.0)
        if isinstance(choice.weights, Uniform):
            codes, scales, exponent = quantize(site.rows(weight), site.rows(mask), choice.weights.bits)
            assert (coded.kind, coded.bits, coded.exponent) == (Kind.UNIFORM, choice.weights.bits, exponent)
            assert torch.equal(coded.values, codes)
            expected = site.weight(dequantize(codes, scales))
        elif isinstance(choice.weights, Float16):
            expected = expected.half().float()
        assert torch.equal(site.weight(coded.decode()), expected)
        assert not site.weight(coded.decode())[~mask].any()

    @pytest.mark.parametrize("largest", [65504.0, -65504.0])
    def test_float16_holds_its_largest_number(self, largest: float) -> None:
        weight = torch.tensor([[1.0, largest]])
        assert compress(Site("a", "a", (1, 2), 0), weight, HALVES).decode().tolist() == weight.tolist()

    @pytest.mark.parametrize("largest", [65520.0, -1e6, 1e38])
    def test_a_weight_too_large_for_float16_is_an_error_that_names_site_and_number(self, largest: float) -> None:
        model = nn.Sequential(nn.Linear(3, 2))
        with torch.no_grad():
            model.get_parameter("0.weight")[0, 1] = largest
        _, database = database_of(model)
        for choice in (HALVES, Choice(prune=Unstructured(ratio=0.5), weights=Float16())):
            with pytest.raises(CandidateError, match=r"site 0: float16 holds up to 65504.*space\.rules"):
                database.coded("0", choice)
            with pytest.raises(CandidateError, match=r"site 0"):
                database.cost("0", choice)
        assert database.coded("0", Choice(weights=Uniform(bits=4))).decode().isfinite().all()


class TestKept:
    """What was made is kept up to a bound, and the least recently used goes first."""

    def test_the_same_object_is_given_again(self) -> None:
        _, database = database_of(subject("attention").model)
        assert database.coded("head", CHOICES[3]) is database.coded("head", CHOICES[3])
        again = Choice.model_validate(CHOICES[3].model_dump())
        assert database.coded("head", again) is database.coded("head", CHOICES[3])

    def test_the_least_recently_used_is_dropped_and_made_again_the_same(self) -> None:
        model = nn.Sequential(*(nn.Linear(10, 10) for _ in range(4)))
        _, database = database_of(model, max_bytes=600)  # three times 200
        first, second, third = (database.coded(name, HALVES) for name in "012")
        assert database.coded("0", HALVES) is first
        fourth = database.coded("3", HALVES)  # in place of "1"
        assert [database.coded("0", HALVES), database.coded("2", HALVES), database.coded("3", HALVES)] == [
            first,
            third,
            fourth,
        ]
        remade = database.coded("1", HALVES)
        assert remade is not second
        assert torch.equal(remade.values, second.values)
        assert remade.write() == second.write()

    def test_one_that_is_larger_than_the_bound_is_given_all_the_same(self) -> None:
        model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
        _, database = database_of(model, max_bytes=10)
        first = database.coded("0", HALVES)
        assert database.coded("0", HALVES) is first
        database.coded("1", HALVES)
        assert database.coded("0", HALVES) is not first

    def test_dropping_changes_no_cost_and_no_policy(self) -> None:
        model = subject("recurrent").model
        sites, roomy = database_of(model)
        _, tight = database_of(model, max_bytes=1)
        for choice in CHOICES:
            assert [tight.cost(site.name, choice) for site in sites] == [
                roomy.cost(site.name, choice) for site in sites
            ]
        policy = {site.name: CHOICES[i % len(CHOICES)] for i, site in enumerate(sites)}
        left, right = tight.policy(policy), roomy.policy(policy)
        assert list(left) == list(right) == [site.name for site in sites]
        assert all(left[name].write() == right[name].write() for name in policy)

    def test_costs_keep_no_memory_beside_the_bound(self) -> None:
        model = nn.Linear(400, 200)
        _, database = database_of(model, max_bytes=10**9)
        tracemalloc.start()  # it sees NumPy's arrays, not the weights that torch keeps
        try:
            for choice in CHOICES:
                database.cost("weight", choice)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 80_000

    def test_the_model_is_read_and_never_changed(self) -> None:
        model = subject("convolutions").model
        before = digest(model)
        sites, database = database_of(model)
        for site, choice in itertools.product(sites, CHOICES):
            database.cost(site.name, choice)
            assert torch.equal(database.weight(site.name), model.get_parameter(site.parameter))
            assert not database.weight(site.name).requires_grad
        assert digest(model) == before

    def test_a_site_that_does_not_exist_is_never_skipped(self) -> None:
        _, database = database_of(subject("attention").model)
        for ask in (database.coded, database.cost):
            with pytest.raises(KeyError, match="tail"):
                ask("tail", Choice())
        with pytest.raises(KeyError, match="tail"):
            database.policy({"head": Choice(), "tail": Choice()})
