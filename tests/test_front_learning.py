"""What our sampler is worth: it learns from few trials, recovers from wrong predictions, and handles many sites."""

import numpy as np
import optuna
import pytest
from optuna.study import Study

from search.samplers.front_sampler import FrontSampler
from search.samplers.start import start_points
from tests.worlds import BEST, World, points, searched, volume, world

SEEDS = range(3)
SITES, TRIALS = 10, 60
UNIFORM, PREDICTED = 7, 20


def knowing(given: World, seed: int = 0, uniform: int = UNIFORM, predicted: int = PREDICTED) -> FrontSampler:
    return FrontSampler([given.table], seed=seed, uniform=uniform, predicted=predicted, boxes=(given.box,), best=BEST)


@pytest.fixture(scope="module")
def ours() -> list[Study]:
    """One of each seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return [searched(world(seed, SITES), knowing(world(seed, SITES), seed), TRIALS) for seed in SEEDS]


class TestLearning:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_it_beats_evolution_that_starts_from_the_same(self, ours: list[Study], seed: int) -> None:
        given = world(seed, SITES)
        first = start_points([given.table], UNIFORM, PREDICTED)
        nsga2 = optuna.samplers.NSGAIISampler(population_size=20, seed=seed)
        assert volume(given, ours[seed]) > 1.02 * volume(given, searched(given, nsga2, TRIALS, first))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_it_beats_chance(self, ours: list[Study], seed: int) -> None:
        given = world(seed, SITES)
        chance = optuna.samplers.RandomSampler(seed=seed)
        assert volume(given, ours[seed]) > 1.3 * volume(given, searched(given, chance, TRIALS))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_it_beats_the_prediction_alone(self, ours: list[Study], seed: int) -> None:
        given = world(seed, SITES)
        first = start_points([given.table], UNIFORM, TRIALS)
        only = searched(given, optuna.samplers.RandomSampler(seed=seed), TRIALS, first[:TRIALS])
        assert volume(given, ours[seed]) > 1.003 * volume(given, only)


class TestRecovery:
    def test_a_wrong_prediction_is_corrected(self, ours: list[Study]) -> None:
        found = []
        for seed in SEEDS:
            given = world(seed, SITES, shuffled=True)
            study = searched(given, knowing(given, seed), TRIALS)
            found.append(volume(given, study))
            assert volume(given, study, UNIFORM + PREDICTED) < 0.95 * found[-1]
        assert np.mean(found) > 0.88 * np.mean([volume(world(seed, SITES), ours[seed]) for seed in SEEDS])

    @pytest.mark.slow
    def test_after_300_trials_little_is_lost_by_it(self) -> None:
        found: dict[bool, list[float]] = {False: [], True: []}
        for seed in SEEDS:
            for shuffled, volumes in found.items():
                given = world(seed, SITES, shuffled=shuffled)
                volumes.append(volume(given, searched(given, knowing(given, seed), 300)))
        assert np.mean(found[True]) > 0.95 * np.mean(found[False])


class TestSizes:
    def test_500_sites(self) -> None:
        given = world(0, 500, bits=(2, 5, 8), ratios=(0.0, 0.5))
        study = searched(given, knowing(given, uniform=2, predicted=2), 8)
        assert len({tuple(one.params.values()) for one in study.trials}) == 8
        assert volume(given, study) > 1.02 * volume(given, study, 4)

    def test_one_site(self) -> None:
        given = world(0, 1)
        assert volume(given, searched(given, knowing(given), 20)) > 0.3

    def test_a_focus_is_kept_while_it_lasts(self) -> None:
        low, high = 25_000, 40_000
        given = world(1, 6)
        sampler = FrontSampler(
            [given.table],
            seed=0,
            uniform=3,
            predicted=4,
            boxes=(given.box,),
            focus=lambda number: (low, high) if 20 <= number < 40 else None,
        )
        inside = [low <= one.bytes <= high for one in points(searched(given, sampler, 60).trials)]
        assert sum(inside[20:40]) >= 18
        assert sum(inside[40:]) <= 12

    @pytest.mark.parametrize("focus", [(0, 20_000), (1, 2), (10**9, 10**10)])
    def test_a_focus_that_reaches_too_far_is_no_error(self, focus: tuple[int, int]) -> None:
        given = world(3, 2)
        sampler = FrontSampler([given.table], seed=0, uniform=2, predicted=2, focus=lambda _: focus)
        assert len(searched(given, sampler, 10).trials) == 10
