"""Learned steps and codebooks: gradients against the papers' equations, and that descent finds the best ones."""

import pytest
import torch
from torch import Tensor

from compress.coding import CodedWeight, Kind
from compress.quantization import codebook
from compress.quantization.uniform import Grid, encode, fit, spread
from compress.training.codebook_training import TrainedCodebook
from compress.training.lsq import TrainedSteps
from compress.training.straight_through import TrainedCodes, TrainedWeight, ends
from spaces.choice import ScalePer
from tests.models import random_tensor

ROWS = random_tensor(6, 16) * torch.linspace(0.3, 2, 6)[:, None]
KEPT = random_tensor(6, 16, seed=1) > -0.5
GRIDS: dict[str, tuple[ScalePer, int | None, bool]] = {
    "tensor": ("tensor", None, True),
    "channel": ("channel", None, True),
    "groups": ("group", 4, True),
    "asymmetric": ("channel", None, False),
}


def uniform(name: str, bits: int = 3, kept: Tensor = KEPT) -> CodedWeight:
    scale_per, group_size, symmetric = GRIDS[name]
    rows = ROWS + (0 if symmetric else 0.4)
    grid = fit(rows, kept, bits, scale_per=scale_per, group_size=group_size, symmetric=symmetric)
    return CodedWeight(Kind.UNIFORM, torch.where(kept, encode(rows, grid, bits), 0), bits, grid)


def clusters(bits: int = 2) -> CodedWeight:
    entries, exponent = codebook.fit(ROWS, KEPT, bits)
    return CodedWeight(Kind.CODEBOOK, codebook.encode(ROWS, KEPT, entries), bits, entries=entries, exponent=exponent)


def gradients(one: TrainedWeight, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Of the latent weights and of what else is learned, where the loss has this slope."""
    (learned,) = one.learned()
    found = torch.autograd.grad(one.stored(), [one.latent, *learned.tensors], slope)
    return found[0], found[1]


class TestSteps:
    @pytest.mark.parametrize("name", GRIDS)
    def test_its_gradients_are_those_of_the_paper_for_each_weight(self, name: str) -> None:
        coded, slope = uniform(name), random_tensor(6, 16, seed=2)
        latent = ROWS * 1.3
        one = TrainedSteps(coded, latent, KEPT, free=False)
        to_latent, to_step = gradients(one, slope)
        assert coded.grid is not None
        low, high = (spread(end, 16).expand(6, 16) for end in ends(coded.grid, 3))
        step = spread(coded.grid.step, 16).expand(6, 16)
        sums, counts = torch.zeros(6, 16), torch.zeros(6, 16)
        for i in range(6):
            for j in range(16):
                v, s, least, most = (float(x[i, j]) for x in (latent, step, low, high))
                if s == 0:  # all of the group is pruned
                    assert float(to_latent[i, j]) == 0
                    continue
                inside = least < v / s < most
                assert float(to_latent[i, j]) == (float(slope[i, j]) if KEPT[i, j] and inside else 0)  # eq. 5
                if KEPT[i, j]:
                    of_step = round(v / s) - v / s if inside else least if v / s <= least else most  # eq. 3
                    sums[i, j], counts[i, j] = float(slope[i, j]) * of_step, 1
        rows, groups = coded.grid.step.shape

        def per_step(numbers: Tensor) -> Tensor:
            return numbers.reshape(rows, 6 // rows, groups, 16 // groups).sum(dim=(1, 3))

        top = ends(coded.grid, 3)[1].clamp_min(1)
        scale = (per_step(counts).clamp_min(1) * top).rsqrt()  # g of section 2.2
        assert torch.allclose(to_step, per_step(sums) * scale, atol=1e-5)

    @pytest.mark.parametrize("name", GRIDS)
    def test_it_is_what_is_stored_and_exact_in_float16(self, name: str) -> None:
        coded = uniform(name)
        one = TrainedSteps(coded, ROWS + (0.4 if name == "asymmetric" else 0), KEPT, free=False)
        assert torch.equal(one.stored(), coded.decode())
        with torch.no_grad():
            one.step.mul_(1.2345678)
        grid = one.coded().grid
        assert grid is not None
        assert torch.equal((grid.step * 2.0**-grid.exponent).half().float() * 2.0**grid.exponent, grid.step)
        assert torch.equal(one.stored(), one.coded().decode())

    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_descent_on_the_squared_error_finds_a_step_about_as_good_as_the_best(self, bits: int) -> None:
        """From one three times too large and one three times too small, by smaller and smaller shares of it."""
        best = uniform("channel", bits)
        error = (best.decode() - ROWS)[KEPT].square().sum()
        for factor in (0.33, 3.0):
            assert best.grid is not None
            off = Grid((best.grid.step * factor).half().float(), best.grid.exponent)
            coded = CodedWeight(Kind.UNIFORM, encode(ROWS, off, bits), bits, off)
            one = TrainedSteps(coded, ROWS, KEPT, free=False)
            (learned,) = one.learned()
            for step in range(150):
                loss = (one.stored() - ROWS)[KEPT].square().sum()
                (slope,) = torch.autograd.grad(loss, learned.tensors)
                with torch.no_grad():
                    one.step *= torch.exp(-0.1 / (1 + step / 10) * slope.sign())
            found = (one.coded().decode() - ROWS)[KEPT].square().sum()
            assert found < 1.2 * error

    def test_a_step_stays_positive(self) -> None:
        one = TrainedSteps(uniform("channel"), ROWS, KEPT, free=False)
        with torch.no_grad():
            one.step[2] = -1.0
        assert bool(torch.isfinite(one.stored()).all())
        assert float(one.step.detach()[2]) > 0
        grid = one.coded().grid
        assert grid is not None
        assert float(grid.step[2]) > 0

    def test_the_pace_of_a_step_is_its_size_beside_the_weights(self) -> None:
        """Under Adam a step then changes by the same share of its size as a weight: section 2.2, eq. 4."""
        for bits in (3, 8):
            coded = uniform("tensor", bits)
            (learned,) = TrainedSteps(coded, ROWS, KEPT, free=False).learned()
            assert coded.grid is not None
            assert learned.pace == pytest.approx(float(coded.grid.step) / float(ROWS[KEPT].square().mean().sqrt()))


class TestCodebook:
    def test_the_gradient_of_an_entry_is_the_sum_over_its_weights(self) -> None:
        coded, slope = clusters(), random_tensor(6, 16, seed=2)
        one = TrainedCodebook(coded, ROWS, KEPT, free=False, learned=True)
        to_latent, to_entries = gradients(one, slope)
        assert torch.equal(to_latent, slope * KEPT)
        for k in range(3):
            assert float(to_entries[k]) == pytest.approx(float(slope[coded.values == k + 1].sum()), abs=1e-5)  # eq. 3

    def test_descent_on_the_squared_error_leads_to_the_means_of_the_clusters(self) -> None:
        """From three poor entries to where k-means ends, too: each is the mean of the weights nearest to it."""
        poor = CodedWeight(Kind.CODEBOOK, clusters().values, 2, entries=torch.tensor([-0.25, 0.25, 0.5]))
        one = TrainedCodebook(poor, ROWS, KEPT, free=False, learned=True)
        for _ in range(300):
            loss = (one.stored() - ROWS).square()[KEPT].sum() / 2
            (slope,) = torch.autograd.grad(loss, [one.entries])
            with torch.no_grad():
                one.entries -= 0.01 * slope
        found = one.coded()
        assert found.entries is not None
        for k in range(3):
            mean = float(ROWS[found.values == k + 1].mean())
            assert float(found.entries[k]) == pytest.approx(mean, abs=1e-3)

    def test_entries_that_cross_are_stored_in_order(self) -> None:
        one = TrainedCodebook(clusters(), ROWS, KEPT, free=False, learned=True)
        before = one.stored().detach()
        with torch.no_grad():
            one.entries.copy_(torch.flip(one.entries, [0]))
        found = one.coded()
        assert found.entries is not None
        assert bool((found.entries.diff() > 0).all())
        assert torch.equal(found.decode(), before)
        slope = random_tensor(6, 16, seed=2)
        expected = [float(slope[found.values == k].sum()) for k in (3, 2, 1)]
        assert gradients(one, slope)[1].tolist() == pytest.approx(expected, abs=1e-5)

    def test_with_free_masks_small_weights_are_zero(self) -> None:
        one = TrainedCodebook(clusters(), ROWS, KEPT, free=True, learned=False)
        with torch.no_grad():
            one.latent[0] = 1e-4
        assert not one.coded().values[0].any()
        assert torch.equal(one.stored(), one.coded().decode())

    def test_all_255_entries_can_be_told_apart(self) -> None:
        entries = torch.arange(-127.0, 128.0) + 0.5
        values = torch.arange(256).to(torch.uint8).reshape(1, 256)
        coded = CodedWeight(Kind.CODEBOOK, values, 8, entries=entries)
        one = TrainedCodebook(coded, coded.decode(), values > 0, free=False, learned=True)
        assert torch.equal(one.coded().values, values)
        _, to_entries = gradients(one, torch.arange(256.0).reshape(1, 256))
        assert torch.equal(to_entries, torch.arange(1.0, 256.0))


@pytest.mark.parametrize("name", GRIDS)
def test_on_fixed_grids_gradients_pass_inside_and_stop_outside(name: str) -> None:
    coded, slope = uniform(name), random_tensor(6, 16, seed=2)
    latent = ROWS * 1.3
    one = TrainedCodes(coded, latent, KEPT, free=False)
    (found,) = torch.autograd.grad(one.stored(), one.latent, slope)
    assert coded.grid is not None
    low, high = (spread(end * coded.grid.step, 16) for end in ends(coded.grid, 3))
    assert torch.equal(found, slope * (KEPT & (latent >= low) & (latent <= high)))
