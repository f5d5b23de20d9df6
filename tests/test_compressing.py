"""How one site is compressed: masks, codes, errors and shifts against their definitions, alone and in company."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from compress.coding import Kind
from compress.compressing import OutputError, compress_layer
from compress.nearest import fit_grid
from compress.pruning.importance import kept_mask
from compress.quantization import codebook, uniform
from compress.sites import Site, find_sites
from compress.statistics import SiteStatistics, collect
from spaces.errors import CandidateError
from spaces.policy import (
    Choice,
    Codebook,
    Float16,
    Float32,
    NoPruning,
    Prune,
    SemiStructured,
    Threshold,
    Uniform,
    Unstructured,
    Weights,
)
from tests.models import random_tensor

NOTHING = SiteStatistics(samples=0)
SITE = Site("a", "a.weight", (6, 5, 2, 2), 1)
WEIGHT = random_tensor(*SITE.shape)
PRUNES: list[Prune] = [
    NoPruning(),
    Unstructured(ratio=0.4),
    Unstructured(ratio=0.4, criterion="random"),
    SemiStructured(n=1, m=4),
    Threshold(value=0.5),
]
MIXED = torch.randn(12, 12, generator=torch.Generator().manual_seed(8))


def layer() -> nn.Linear:
    """A layer whose inputs hang together, which is what error compensation lives on."""
    layer = nn.Linear(12, 16)
    with torch.no_grad():
        layer.weight.copy_(random_tensor(16, 12, seed=3))
        layer.bias.zero_()
    return layer


def known() -> tuple[Site, nn.Linear, torch.Tensor, SiteStatistics]:
    """A layer, its inputs, and what calibration says about them."""
    one, inputs = layer(), random_tensor(400, 12, seed=4) @ MIXED + 0.5
    (site,) = find_sites(one)
    return site, one, inputs, collect(one, [site], inputs, 100)["weight"]


class TestWithoutStatistics:
    @pytest.mark.parametrize("prune", PRUNES, ids=lambda prune: prune.label)
    def test_it_prunes_first_and_rounds_what_stays(self, prune: Prune) -> None:
        rows = SITE.rows(WEIGHT)
        mask = kept_mask(prune, rows, NOTHING, "a")
        wished: list[Weights] = [
            Float32(),
            Float16(),
            Uniform(bits=3),
            Uniform(bits=4, symmetric=False),
            Codebook(bits=2),
        ]
        choices = [Choice(prune=prune, weights=weights) for weights in wished]
        layers = compress_layer(SITE, WEIGHT, choices, NOTHING, "packed")
        for choice, one in zip(choices, layers, strict=True):
            decoded = one.coded.decode()
            assert (one.shift, one.cost.note) == (None, None)
            assert not decoded[~mask].any()
            assert (one.kept is None) == bool(mask.all())
            assert one.kept is None or torch.equal(one.kept, mask)
            lost = (decoded.double() - rows.double()).square().sum() / rows.double().square().sum()
            assert one.cost.error == pytest.approx(float(lost))
            match choice.weights:
                case Float32():
                    assert torch.equal(decoded, torch.where(mask, rows, 0.0))
                case Float16():
                    assert torch.equal(decoded, torch.where(mask, rows, 0.0).half().float())
                case Uniform(bits=bits, symmetric=symmetric):
                    grid = uniform.fit(rows, mask, bits, scale_per="channel", group_size=None, symmetric=symmetric)
                    codes = torch.where(mask, uniform.encode(rows, grid, bits), 0)
                    assert torch.equal(decoded, uniform.dequantize(codes, grid))
                case _:
                    assert one.coded.kind is Kind.CODEBOOK
                    assert len(set(decoded[decoded != 0].tolist())) <= 3

    def test_a_weight_comes_in_its_own_shape_and_type(self) -> None:
        choice = Choice(weights=Uniform(bits=4))
        (plain,) = compress_layer(SITE, WEIGHT.bfloat16().float(), [choice], NOTHING, "packed")
        (brain,) = compress_layer(SITE, WEIGHT.bfloat16(), [choice], NOTHING, "packed")
        assert torch.equal(plain.coded.decode(), brain.coded.decode())
        assert plain.coded.values.shape == (5, 24)

    @pytest.mark.parametrize("largest", [65504.0, -65504.0])
    def test_float16_holds_its_largest_number(self, largest: float) -> None:
        weight = torch.tensor([[1.0, largest]])
        choices = [Choice(weights=Float16())]
        (one,) = compress_layer(Site("a", "a", (1, 2), 0), weight, choices, NOTHING, "packed")
        assert one.coded.decode().tolist() == weight.tolist()

    @pytest.mark.parametrize("largest", [65520.0, -1e6, 1e38])
    def test_a_weight_too_large_for_float16_is_an_error_that_names_site_and_number(self, largest: float) -> None:
        weight, site = torch.tensor([[1.0, largest]]), Site("a", "a", (1, 2), 0)
        for prune in (NoPruning(), Unstructured(ratio=0.5)):
            with pytest.raises(CandidateError, match=r"site a: float16 holds up to 65504.*space\.rules"):
                compress_layer(site, weight, [Choice(prune=prune, weights=Float16())], NOTHING, "packed")
        (one,) = compress_layer(site, weight, [Choice(weights=Uniform(bits=4))], NOTHING, "packed")
        assert one.coded.decode().isfinite().all()

    def test_a_choice_that_keeps_more_errs_less(self) -> None:
        ratios = [Choice(prune=Unstructured(ratio=ratio / 10)) for ratio in range(1, 10)]
        bits = [Choice(weights=Uniform(bits=bits)) for bits in range(8, 1, -1)]
        for choices in (ratios, bits):
            errors = [one.cost.error for one in compress_layer(SITE, WEIGHT, choices, NOTHING, "packed")]
            assert errors == sorted(errors)

    @pytest.mark.parametrize("rounding", ["gptq", "adaround"])
    def test_what_needs_a_hessian_and_has_none_is_rounded_to_nearest_and_says_so(self, rounding: str) -> None:
        reason = "the inputs of a transposed convolution are not laid out as columns"
        nothing = SiteStatistics(samples=9, reason=reason)
        wished = [Uniform(bits=3, rounding=rounding), Uniform(bits=3)]  # type: ignore[arg-type]
        first, second = compress_layer(SITE, WEIGHT, [Choice(weights=one) for one in wished], nothing, "packed")
        assert torch.equal(first.coded.decode(), second.coded.decode())
        assert first.cost.note is not None
        assert reason in first.cost.note
        assert second.cost.note is None


class TestWithStatistics:
    def test_the_error_is_that_of_the_output(self) -> None:
        site, one, inputs, statistics = known()
        out = inputs.double() @ one.weight.detach().double().T
        for made in compress_layer(
            site, one.weight, [Choice(weights=Uniform(bits=b)) for b in (2, 4)], statistics, "packed"
        ):
            lost = inputs.double() @ made.coded.decode().double().T - out
            assert made.cost.error == pytest.approx(float(lost.square().sum() / out.square().sum()), rel=1e-4)

    def test_the_shift_is_what_the_output_loses_on_average(self) -> None:
        site, one, inputs, statistics = known()
        lost = random_tensor(16, seed=5)
        choices = [Choice(weights=Uniform(bits=2)), Choice(prune=Unstructured(ratio=0.7))]
        for before in (None, lost):
            for made in compress_layer(site, one.weight, choices, statistics, "packed", before):
                difference = inputs @ one.weight.detach().T - inputs @ made.coded.decode().T
                expected = difference.mean(dim=0) + (0 if before is None else before)
                assert made.shift is not None
                assert torch.allclose(made.shift, expected, atol=1e-4)

    @pytest.mark.parametrize("rounding", ["gptq", "adaround"])
    @pytest.mark.parametrize("prune", [NoPruning(), Unstructured(ratio=0.5)], ids=["dense", "pruned"])
    def test_roundings_that_look_at_the_output_err_less(self, rounding: str, prune: Prune) -> None:
        site, one, _, statistics = known()
        wished = [Uniform(bits=3), Uniform(bits=3, rounding=rounding)]  # type: ignore[arg-type]
        choices = [Choice(prune=prune, weights=weights) for weights in wished]
        nearest, better = compress_layer(site, one.weight, choices, statistics, "packed")
        assert better.cost.error < 0.9 * nearest.cost.error
        assert better.cost.note is None
        if nearest.kept is not None:
            assert better.kept is not None
            assert torch.equal(better.kept, nearest.kept)
            assert not better.coded.decode()[~better.kept].any()

    def test_pruning_by_the_hessian_errs_less_than_by_magnitude(self) -> None:
        site, one, _, statistics = known()
        prunes: list[Prune] = [Unstructured(ratio=0.5), Unstructured(ratio=0.5, criterion="hessian")]
        choices = [Choice(prune=prune, weights=Uniform(bits=4)) for prune in prunes]
        magnitude, hessian = compress_layer(site, one.weight, choices, statistics, "packed")
        assert hessian.cost.error < 0.7 * magnitude.cost.error
        assert hessian.kept is not None
        assert int((~hessian.kept).sum()) == round(0.5 * site.size)

    @pytest.mark.parametrize("how", [{}, {"symmetric": False}, {"scale_per": "group", "group_size": 4}], ids=str)
    @pytest.mark.parametrize(
        "prune", [Unstructured(ratio=0.5, criterion="hessian"), SemiStructured(n=2, m=4, criterion="hessian")], ids=str
    )
    def test_what_the_hessian_pruned_is_rounded_as_chosen(self, prune: Prune, how: dict[str, Any]) -> None:
        site, one, _, statistics = known()
        wished = [Uniform(bits=4, rounding=rounding, **how) for rounding in ("nearest", "adaround", "gptq")]
        by_magnitude = Choice(prune=prune.model_copy(update={"criterion": "magnitude"}), weights=Uniform(bits=4, **how))
        by_hessian = [Choice(prune=prune, weights=weights) for weights in wished]
        choices = [by_magnitude, *by_hessian, Choice(prune=prune)]
        plain, *made, refilled = compress_layer(site, one.weight, choices, statistics, "packed")
        nearest, adaround, gptq = made
        for layer in made:
            assert layer.cost.error <= plain.cost.error
            assert layer.cost.note is None
            assert layer.kept is not None
            assert refilled.kept is not None
            assert torch.equal(layer.kept, refilled.kept)
            assert int(layer.kept.sum()) == site.size // 2
            assert not layer.coded.decode()[~layer.kept].any()
        rows, kept = refilled.coded.decode(), refilled.kept
        assert kept is not None
        grid = fit_grid(rows, kept, wished[0])
        assert torch.equal(nearest.coded.values, torch.where(kept, uniform.encode(rows, grid, 4), 0))
        assert adaround.cost.error < nearest.cost.error
        for first, second in itertools.combinations(made, 2):
            assert not torch.equal(first.coded.values, second.coded.values)
        assert gptq.cost.error < nearest.cost.error

    def test_a_codebook_of_what_the_hessian_pruned_is_rounded_as_chosen(self) -> None:
        site, one, _, statistics = known()
        prune = Unstructured(ratio=0.5, criterion="hessian")
        wished: list[Weights] = [Codebook(bits=3), Codebook(bits=3, rounding="gptq"), Float32()]
        choices = [Choice(prune=prune, weights=weights) for weights in wished]
        nearest, gptq, refilled = compress_layer(site, one.weight, choices, statistics, "packed")
        entries = nearest.coded.entries
        assert entries is not None
        rows, kept = refilled.coded.decode(), refilled.kept
        assert kept is not None
        assert torch.equal(nearest.coded.values, codebook.encode(rows, kept, entries))
        assert not torch.equal(nearest.coded.values, gptq.coded.values)

    @pytest.mark.parametrize(
        ("rounding", "words"),
        [
            ("nearest", "pruned by magnitude: "),
            ("adaround", "rounded to nearest, pruned by magnitude: "),
            ("gptq", "rounded to nearest, pruned by magnitude: "),
        ],
    )
    def test_without_a_hessian_the_note_says_what_was_done_otherwise(self, rounding: str, words: str) -> None:
        nothing = SiteStatistics(samples=9, reason="a reason")
        weights = Uniform(bits=3, rounding=rounding)  # type: ignore[arg-type]
        choice = Choice(prune=Unstructured(ratio=0.5, criterion="hessian"), weights=weights)
        plain = Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=3))
        made, expected = compress_layer(SITE, WEIGHT, [choice, plain], nothing, "packed")
        assert made.cost.note == f"{words}a reason"
        assert torch.equal(made.coded.values, expected.coded.values)
        assert torch.equal(made.coded.decode(), expected.coded.decode())

    def test_a_hessian_that_cannot_be_used_is_said(self) -> None:
        site, one, _, statistics = known()
        hessian = torch.full_like(statistics.hessian, torch.nan)  # type: ignore[arg-type]
        broken = SiteStatistics(samples=9, hessian=hessian, mean=statistics.mean)
        choice = Choice(prune=Unstructured(ratio=0.5, criterion="hessian"), weights=Uniform(bits=4, rounding="gptq"))
        plain = Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4))
        (made,) = compress_layer(site, one.weight, [choice], broken, "packed")
        (expected,) = compress_layer(site, one.weight, [plain], NOTHING, "packed")
        assert made.cost.note is not None
        assert torch.equal(made.coded.decode(), expected.coded.decode())

    def test_company_changes_nothing(self) -> None:
        site, one, _, statistics = known()
        weights: list[Weights] = [
            Uniform(bits=2, rounding="gptq"),
            Codebook(bits=2, rounding="gptq"),
            Float16(),
            Uniform(bits=4),
            Uniform(bits=3, rounding="adaround"),
        ]
        prunes: list[Prune] = [NoPruning(), Unstructured(ratio=0.5), Unstructured(ratio=0.5, criterion="hessian")]
        choices = [Choice(prune=p, weights=w) for p, w in itertools.product(prunes, weights)]
        together = compress_layer(site, one.weight, choices, statistics, "packed")
        for choice, made in zip(choices, together, strict=True):
            (alone,) = compress_layer(site, one.weight, [choice], statistics, "packed")
            assert torch.equal(alone.coded.decode(), made.coded.decode()), choice
            assert alone.cost == made.cost

    def test_a_layer_holds_no_more_memory_than_it_says(self) -> None:
        """Results of a batch are no views into it: dropping one frees it."""
        site, one, _, statistics = known()
        choices = [Choice(weights=Uniform(bits=bits, rounding="gptq", symmetric=False)) for bits in range(2, 9)]
        choices += [
            Choice(prune=Unstructured(ratio=r / 10, criterion="hessian"), weights=Codebook(bits=3)) for r in range(2, 8)
        ]
        for made in compress_layer(site, one.weight, choices, statistics, "packed"):
            grid = made.coded.grid
            tensors = [
                made.coded.values,
                made.coded.entries,
                made.kept,
                made.shift,
                *((grid.step, grid.low) if grid else ()),
            ]
            for tensor in tensors:
                assert tensor is None or tensor.untyped_storage().nbytes() == tensor.nbytes


class TestOutputError:
    @pytest.mark.parametrize("blocks", [1, 2, 4])
    def test_it_is_the_share_of_the_output_that_is_lost(self, blocks: int) -> None:
        rows, other = random_tensor(8, 3, seed=1), random_tensor(8, 3, seed=2)
        inputs = random_tensor(blocks, 50, 3, seed=3).double()
        hessian = inputs.transpose(1, 2) @ inputs / 50
        each = 8 // blocks
        out = torch.cat([inputs[b] @ rows[b * each :][:each].double().T for b in range(blocks)], dim=1)
        mine = torch.cat([inputs[b] @ other[b * each :][:each].double().T for b in range(blocks)], dim=1)
        expected = float((out - mine).square().sum() / out.square().sum())
        assert OutputError(rows, hessian.float()).of(other) == pytest.approx(expected, rel=1e-5)

    def test_nothing_is_lost_of_nothing(self) -> None:
        assert OutputError(torch.zeros(2, 3), None).of(torch.zeros(2, 3)) == 0.0
        assert OutputError(torch.ones(2, 3), torch.zeros(1, 3, 3)).of(torch.zeros(2, 3)) == 0.0
