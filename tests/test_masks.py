"""When masks are chosen anew and which weights stay, and rewinding."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from compress.coding import Kind
from compress.training.masks import EVERY, EXCHANGED, choices, choose, cubic
from spaces.policy import Choice, NoPruning, Prune, SemiStructured, Threshold, Unstructured
from tests.models import random_tensor
from tests.students import CHOICES, PRUNED, compressed, network, settings, trained

LATENT = random_tensor(6, 16)
BY_RATIO = Unstructured(ratio=0.7, criterion="wanda")


class TestSchedule:
    @pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 37 / 64), (0.5, 7 / 8), (1.0, 1.0)])
    def test_it_is_the_paper_s_cubic(self, progress: float, share: float) -> None:
        """s_t = s_f + (s_i - s_f)(1 - (t - t_0) / (n dt))^3 with s_i = 0, in units of s_f."""
        assert cubic(progress) == pytest.approx(share)

    def test_it_prunes_most_when_most_is_left(self) -> None:
        shares = [cubic(i / 20) for i in range(21)]
        gains = [b - a for a, b in pairwise(shares)]
        assert gains == sorted(gains, reverse=True)
        assert gains[-1] > 0

    @pytest.mark.parametrize("steps", [1, 2, 5, 9, 60, 200, 1001])
    def test_gradual_masks_are_done_after_two_thirds_of_the_first_rung(self, steps: int) -> None:
        found = choices("gradual", steps, first=True)
        assert max(found) == 2 * steps // 3
        assert found[max(found)] == 1
        assert [found[step] for step in sorted(found)] == sorted(found.values())
        assert steps < 2 or found[0] == 0
        assert choices("gradual", steps, first=False) == {}

    @pytest.mark.parametrize("first", [True, False])
    def test_dynamic_masks_always_have_the_final_sparsity_and_end_with_training(self, first: bool) -> None:
        found = choices("dynamic", 60, first=first)
        assert sorted(found) == list(range(EVERY, 60 - EVERY + 1, EVERY))
        assert set(found.values()) == {1.0}
        assert choices("dynamic", EVERY, first=first) == {}

    def test_static_masks_are_never_chosen_anew(self) -> None:
        assert choices("static", 60, first=True) == {}


def largest(share: float, prune: Prune = BY_RATIO) -> Tensor:
    return choose(LATENT, torch.ones(6, 16, dtype=torch.bool), prune, 0.7, share)


class TestChoice:
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("prune", [BY_RATIO, Threshold(value=0.1)])
    def test_weights_of_largest_magnitude_stay_and_their_number_is_exact(self, prune: Prune, share: float) -> None:
        kept = largest(share, prune)
        pruned = round(0.7 * share * 96)
        assert int((~kept).sum()) == pruned
        order = LATENT.abs().flatten().sort().values
        assert bool((LATENT.abs()[~kept] <= order[max(0, pruned - 1)]).all())

    @pytest.mark.parametrize(("share", "stay"), [(0.0, 4), (0.3, 3), (0.8, 2), (1.0, 1)])
    def test_of_each_m_weights_fewer_and_fewer_stay(self, share: float, stay: int) -> None:
        groups = largest(share, SemiStructured(n=1, m=4)).reshape(6, 4, 4)
        assert bool((groups.sum(dim=2) == stay).all())
        weights = LATENT.abs().reshape(6, 4, 4)
        for row in range(6):
            for group in range(4):
                best = set(weights[row, group].topk(stay).indices.tolist())
                assert set(groups[row, group].nonzero().flatten().tolist()) == best

    def test_what_is_not_pruned_stays(self) -> None:
        assert bool(largest(1.0, NoPruning()).all())

    @pytest.mark.parametrize("prune", [BY_RATIO, SemiStructured(n=1, m=4)], ids=["ratio", "n:m"])
    def test_the_exchanges_that_gain_most_come_first_and_they_are_few(self, prune: Prune) -> None:
        latent = random_tensor(40, 80, seed=3)
        kept = random_tensor(40, 20, 4, seed=4).argmax(dim=2, keepdim=True) == torch.arange(4)
        kept = kept.reshape(40, 80)  # one of each four, whatever its size
        most, gained = round(EXCHANGED * 800), []
        for _ in range(3):
            new = choose(latent, kept, prune, 0.75)
            came, left = latent.abs()[new & ~kept], latent.abs()[kept & ~new]
            assert len(came) == len(left) == most
            gained.append(float(came.sum() - left.sum()))
            if isinstance(prune, SemiStructured):
                assert bool((new.reshape(40, 20, 4).sum(dim=2) == 1).all())
            else:
                assert float(came.min()) >= float(latent.abs()[~new].max())
                assert float(left.max()) <= float(latent.abs()[new].min())
            kept = new
        assert gained == sorted(gained, reverse=True)

    @pytest.mark.parametrize("prune", [BY_RATIO, SemiStructured(n=1, m=4)], ids=["ratio", "n:m"])
    def test_the_largest_weights_are_reached_and_then_stay(self, prune: Prune) -> None:
        kept, ratio = torch.arange(16).expand(6, 16) % 4 == 0, 0.75
        for _ in range(80):
            kept = choose(LATENT, kept, prune, ratio)
        best = choose(LATENT, torch.ones_like(kept), prune, ratio)
        assert torch.equal(kept, best)
        assert torch.equal(choose(LATENT, kept, prune, ratio), kept)

    def test_every_number_of_pruned_weights_can_be_kept_to(self) -> None:
        """The ratio that a mask has, pruned / size, gives the same number again."""
        for pruned in range(96):
            assert int((~choose(LATENT, largest(0.0), BY_RATIO, 1 - (96 - pruned) / 96)).sum()) == pruned


class TestStudents:
    def kept_after(self, way: str, choice: Choice, steps: tuple[int, ...]) -> dict[str, Tensor]:
        student, _ = trained(network(), choice, steps, settings=settings(masks=way))
        return {name: one.kept.clone() for name, one in student._trained.items()}

    @pytest.mark.parametrize("way", ["dynamic", "gradual"])
    @pytest.mark.parametrize(
        "choice",
        [CHOICES["pruned float32"], CHOICES["one step"], Choice(prune=Threshold(value=0.1))],
        ids=["ratio", "n:m", "threshold"],
    )
    def test_at_the_end_of_every_rung_the_mask_has_the_choice_s_sparsity(self, way: str, choice: Choice) -> None:
        start = compressed(network(), choice)
        for steps in ((1,), (40,), (40, 30)):
            for site in start.sites:
                kept = self.kept_after(way, choice, steps)[site.name]
                before = site.rows(start.kept[site.name])
                assert int(kept.sum()) == int(before.sum())
                if choice is CHOICES["one step"]:
                    assert bool((kept.reshape(site.channels, -1, 4).sum(dim=2) == 1).all())

    @pytest.mark.parametrize("way", ["dynamic", "gradual"])
    def test_pruned_weights_come_back(self, way: str) -> None:
        choice = CHOICES["pruned float32"]
        start, kept = compressed(network(), choice), self.kept_after(way, choice, (60,))
        assert any(bool((kept[site.name] & ~site.rows(start.kept[site.name])).any()) for site in start.sites)

    def test_pruned_weights_are_not_seen_but_get_the_gradient_of_the_pruned_model(self) -> None:
        """Lin et al. 2020, eq. (DPF): the gradient is that at the pruned weights, applied to the dense ones."""
        student = compressed(network(), CHOICES["pruned float32"]).student(settings(masks="dynamic"))
        one = student._trained["0"]
        stored = one.stored()
        assert not stored[~one.kept].any()
        assert bool(one.latent[~one.kept].any())
        slope = random_tensor(*stored.shape)
        (found,) = torch.autograd.grad(stored, one.latent, slope)
        assert torch.equal(found, slope)

    def test_gradual_masks_begin_with_everything(self) -> None:
        student = compressed(network(), CHOICES["pruned float32"]).student(settings(masks="gradual"))
        student._choose(0.0)
        assert all(bool(one.kept.all()) for one in student._trained.values())

    def test_a_new_mask_may_bring_back_a_channel_that_had_no_step(self) -> None:
        for grids in ("fixed", "learned"):
            student = compressed(network(), PRUNED).student(settings(masks="dynamic", grids=grids))
            one = student._trained["0"]
            one.choose(one.kept & (torch.arange(32) != 4)[:, None])
            assert not one.coded().values[4].any()
            one.choose(torch.ones_like(one.kept))
            assert one.coded().values[4].any()

    def test_masks_that_move_need_to_know_the_pruning(self) -> None:
        start = compressed(network(), PRUNED)
        with pytest.raises(ValueError, match="dynamic masks need to know"):
            type(start.student())(
                start.student().model, start.sites, start.originals, start.kept, start.coded, settings(masks="dynamic")
            )


class TestRewinding:
    @pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
    def test_surviving_weights_start_from_the_early_ones_and_masks_are_those_of_the_trained(
        self, choice: Choice
    ) -> None:
        start = compressed(network(), choice)
        early = {name: random_tensor(*weight.shape, seed=9) for name, weight in start.originals.items()}
        coded = start.student(early=early).finish()
        for site in start.sites:
            kept, rows = site.rows(start.kept[site.name]), site.rows(early[site.name])
            decoded = coded[site.name].decode()
            assert not decoded[~kept].any()
            expected = torch.where(kept, rows, 0.0)
            if coded[site.name].kind is Kind.FLOAT32:
                assert torch.equal(decoded, expected)
            assert (decoded - expected).square().sum() < 0.3 * expected.square().sum()
