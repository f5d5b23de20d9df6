"""Compensated weights: less output error than nearest ones, on their levels and masks, safe where that cannot be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.coding import CodedWeight
from compress.compensation import Job, compensate
from compress.hessian import output_error
from compress.nearest import nearest
from compress.pruning import semistructured, unstructured
from compress.sites import find_sites
from compress.statistics import collect
from spaces.choice import Codebook, Float16, Float32, SemiStructured, Uniform, Unstructured, Weights
from spaces.errors import CandidateError
from tests.models import random_tensor

WAYS: dict[str, Weights] = {
    "float32": Float32(),
    "float16": Float16(),
    "2 bits": Uniform(bits=2),
    "3 bits": Uniform(bits=3),
    "8 bits": Uniform(bits=8),
    "asymmetric": Uniform(bits=3, symmetric=False),
    "tensor": Uniform(bits=4, scale_per="tensor"),
    "group": Uniform(bits=3, scale_per="group", group_size=6),
    "asymmetric group": Uniform(bits=2, scale_per="group", group_size=4, symmetric=False),
    "asymmetric tensor": Uniform(bits=3, scale_per="tensor", symmetric=False),
    "codebook": Codebook(bits=2),
    "large codebook": Codebook(bits=5),
}
every_way = pytest.mark.parametrize("way", WAYS)


def mixed(*shape: int, seed: int = 0) -> Tensor:
    """Correlated inputs: each is a mixture of all, and none is negative, as behind a ReLU."""
    values = random_tensor(*shape, seed=seed)
    return torch.relu(
        values
        + values.roll(1, dims=-1)
        + 0.7 * values.roll(1, dims=1)
        + random_tensor(shape[0]).view(-1, *[1] * (len(shape) - 1))
    )


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 10), (300, 24)),
    "convolution": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), (20, 4, 9, 8)),
    "grouped": (lambda: nn.Conv2d(8, 6, (2, 3), groups=2), (20, 8, 7, 8)),
}


def layer_of(name: str) -> tuple[Tensor, Tensor]:
    """Rows and Hessian of a layer with correlated inputs."""
    make, shape = LAYERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = make().eval()
    (site,) = find_sites(layer)
    hessian = collect(layer, (site,), mixed(*shape), 50)[site.name].hessian
    assert hessian is not None
    return site.rows(layer.get_parameter("weight").detach()), hessian


def error(rows: Tensor, coded: CodedWeight, hessian: Tensor) -> Tensor:
    return output_error(coded.decode() - rows, hessian)


def on_its_levels(coded: CodedWeight) -> bool:
    """Whether codes are in range, and steps and entries are such as a file holds."""
    codes = coded.values
    if coded.entries is not None:
        held = (coded.entries * 2.0**-coded.exponent).half().float() * 2.0**coded.exponent
        distinct = bool((coded.entries.diff() > 0).all())
        return distinct and torch.equal(held, coded.entries) and int(codes.max()) < 2**coded.bits
    if coded.grid is None:
        return codes.dtype == (torch.float16 if coded.bits == 16 else torch.float32)
    held = (coded.grid.step * 2.0**-coded.grid.exponent).half().float() * 2.0**coded.grid.exponent
    if coded.grid.low is None:
        inside = int(codes.abs().max()) <= 2 ** (coded.bits - 1) - 1
    else:
        low = coded.grid.low.repeat_interleave(codes.shape[1] // coded.grid.low.shape[1], dim=1)
        inside = bool(((codes >= low) & (codes <= low + 2**coded.bits - 1)).all())
    return inside and torch.equal(held, coded.grid.step) and bool((coded.grid.step >= 0).all())


class TestError:
    @pytest.mark.parametrize("name", LAYERS)
    @every_way
    def test_it_is_less_than_that_of_the_nearest_weights(self, name: str, way: str) -> None:
        rows, hessian = layer_of(name)
        (found,) = compensate(rows, hessian, [Job(WAYS[way])])
        plain = nearest(rows, found.kept, WAYS[way])
        ours, theirs = (float(error(rows, coded, hessian).sum()) for coded in (found.coded, plain))
        assert ours <= theirs
        if way not in ("float32", "float16"):
            assert ours < 0.8 * theirs
        assert found.note is None
        assert on_its_levels(found.coded)
        assert found.coded.payload_bytes() <= 1.1 * plain.payload_bytes()

    @pytest.mark.parametrize("name", LAYERS)
    @every_way
    def test_pruned_it_is_too_and_no_pruned_weight_comes_back(self, name: str, way: str) -> None:
        rows, hessian = layer_of(name)
        kept = unstructured.mask(rows.abs(), 0.6)
        (found,) = compensate(rows, hessian, [Job(WAYS[way], kept=kept)])
        plain = nearest(rows, kept, WAYS[way])
        assert float(error(rows, found.coded, hessian).sum()) < 0.85 * float(error(rows, plain, hessian).sum())
        assert torch.equal(found.kept, kept)
        assert bool((found.coded.values[~kept] == 0).all())
        assert on_its_levels(found.coded)

    @pytest.mark.parametrize("name", LAYERS)
    def test_a_mask_chosen_for_it_is_better_than_one_by_magnitude(self, name: str) -> None:
        rows, hessian = layer_of(name)
        by_magnitude = unstructured.mask(rows.abs(), 0.6)
        joint, masked = compensate(
            rows,
            hessian,
            [Job(Uniform(bits=4), prune=Unstructured(ratio=0.6)), Job(Uniform(bits=4), kept=by_magnitude)],
        )
        plain = nearest(rows, by_magnitude, Uniform(bits=4))
        ours, between, theirs = (
            float(error(rows, coded, hessian).sum()) for coded in (joint.coded, masked.coded, plain)
        )
        assert ours < between < theirs
        assert ours < 0.6 * theirs
        assert int((~joint.kept).sum()) == round(0.6 * rows.numel())
        assert bool((joint.coded.values[~joint.kept] == 0).all())

    @pytest.mark.parametrize("way", ["float32", "4 bits"])
    def test_a_pattern_is_kept_exactly(self, way: str) -> None:
        rows, hessian = layer_of("linear")
        weights = WAYS.get(way, Uniform(bits=4))
        (found,) = compensate(rows, hessian, [Job(weights, prune=SemiStructured(n=2, m=4))])
        assert bool((found.kept.reshape(10, -1, 4).sum(dim=2) == 2).all())
        plain = nearest(rows, semistructured.mask(rows.abs(), 2, 4), weights)
        assert float(error(rows, found.coded, hessian).sum()) < 0.7 * float(error(rows, plain, hessian).sum())
        assert bool((found.coded.values[~found.kept] == 0).all())

    @every_way
    @pytest.mark.parametrize("seed", range(3))
    def test_no_channel_is_ever_worse(self, way: str, seed: int) -> None:
        rows = random_tensor(9, 12, seed=seed) ** 3
        inputs = random_tensor(14, 12, seed=seed + 50)
        inputs[:, :4] = 0.0  # few samples, and inputs that are always zero
        hessian = (inputs.T @ inputs / 14)[None]
        kept = unstructured.mask(random_tensor(9, 12, seed=seed + 100), 0.3)
        (found,) = compensate(rows, hessian, [Job(WAYS[way], kept=kept)])
        ours, theirs = error(rows, found.coded, hessian), error(rows, nearest(rows, kept, WAYS[way]), hessian)
        slack = 1e-5 * output_error(rows, hessian)
        if found.coded.entries is not None or WAYS[way].model_dump().get("scale_per") == "tensor":
            assert float(ours.sum()) <= float((theirs + slack).sum())
        else:
            assert bool((ours <= theirs + slack).all())


class TestJobs:
    def test_each_is_the_same_among_others(self) -> None:
        rows, hessian = layer_of("grouped")
        kept = unstructured.mask(rows.abs(), 0.5)
        jobs = [Job(weights, kept=mask) for weights in WAYS.values() for mask in (None, kept)]
        jobs += [Job(Uniform(bits=bits), prune=Unstructured(ratio=0.4)) for bits in (2, 3)]
        for job, together in zip(jobs, compensate(rows, hessian, jobs), strict=True):
            (alone,) = compensate(rows, hessian, [job])
            assert torch.equal(together.kept, alone.kept)
            assert torch.equal(together.coded.values, alone.coded.values)
            assert torch.equal(together.coded.decode(), alone.coded.decode())

    def test_twice_is_the_same(self) -> None:
        rows, hessian = layer_of("convolution")
        jobs = [Job(weights, prune=Unstructured(ratio=0.5)) for weights in WAYS.values() if "group" not in str(weights)]
        for first, second in zip(compensate(rows, hessian, jobs), compensate(rows, hessian, jobs), strict=True):
            assert torch.equal(first.coded.values, second.coded.values)
            assert torch.equal(first.coded.decode(), second.coded.decode())

    def test_what_comes_in_is_left_as_it_was(self) -> None:
        rows, hessian = layer_of("linear")
        before = rows.clone(), hessian.clone()
        compensate(rows, hessian, [Job(weights, prune=Unstructured(ratio=0.5)) for weights in WAYS.values()])
        assert torch.equal(rows, before[0])
        assert torch.equal(hessian, before[1])

    def test_there_may_be_none(self) -> None:
        assert compensate(*layer_of("linear"), []) == []

    @pytest.mark.parametrize("hessian", [True, False])
    def test_a_choice_that_does_not_fit_is_refused(self, hessian: bool) -> None:
        rows, found = layer_of("linear")
        given = found if hessian else None
        with pytest.raises(CandidateError, match="5 does not divide 24"):
            compensate(rows, given, [Job(Uniform(bits=3, scale_per="group", group_size=5))])
        with pytest.raises(CandidateError, match="24 weights, which 5 does not divide"):
            compensate(rows, given, [Job(Uniform(bits=3), prune=SemiStructured(n=1, m=5))], name="some")


class TestFallback:
    @every_way
    @pytest.mark.parametrize(
        ("hessian", "words"),
        [
            (None, "there is no Hessian"),
            (torch.zeros(1, 24, 24), "all zero"),
            (torch.full((1, 24, 24), torch.nan), "not finite"),
            (torch.ones(1, 24, 24) - 0.5 * torch.eye(24), "not positive definite"),
        ],
    )
    def test_without_a_usable_hessian_weights_are_the_nearest_and_a_note_says_why(
        self, way: str, hessian: Tensor | None, words: str
    ) -> None:
        rows, _ = layer_of("linear")
        kept = unstructured.mask(rows.abs(), 0.4)
        found = compensate(rows, hessian, [Job(WAYS[way]), Job(WAYS[way], prune=Unstructured(ratio=0.4))])
        for one, mask in zip(found, (torch.ones_like(kept), kept), strict=True):
            assert words in (one.note or "")
            assert torch.equal(one.kept, mask)
            assert torch.equal(one.coded.decode(), nearest(rows, mask, WAYS[way]).decode())

    def test_a_pattern_is_then_chosen_by_magnitude(self) -> None:
        rows, _ = layer_of("linear")
        (found,) = compensate(rows, None, [Job(Float32(), prune=SemiStructured(n=2, m=4))])
        assert torch.equal(found.kept, semistructured.mask(rows.abs(), 2, 4))

    @every_way
    def test_weights_that_are_zero_or_tiny_or_large_are_no_trouble(self, way: str) -> None:
        rows, hessian = layer_of("linear")
        for scale in (0.0, 1e-30, 1e-3) if way == "float16" else (0.0, 1e-30, 1e15):
            scaled = rows * scale
            scaled[3] = 0.0
            (found,) = compensate(scaled, hessian, [Job(WAYS[way])])
            decoded = found.coded.decode()
            assert bool(decoded.isfinite().all())
            assert float(error(scaled, found.coded, hessian).sum()) <= 1.001 * float(
                output_error(scaled, hessian).sum()
            )
