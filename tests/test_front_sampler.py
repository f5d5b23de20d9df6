"""Our sampler as an ordinary Optuna sampler: it keeps their contract, is pure, knows, learns and recovers."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import Trial, TrialState

from search.pareto import Box
from search.samplers import front_sampler
from search.samplers.front_sampler import FrontSampler
from search.samplers.start import start_points
from search.samplers.table import Table
from tests.worlds import BEST, DIRECTIONS, Score, World, searched, tell, tell_values, volume, world

SMALL = world(3, 4)
UNIFORM, PREDICTED = 3, 4
START = start_points([SMALL.table], UNIFORM, PREDICTED)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def knowing(given: World, seed: int | None = 0, **changed: Any) -> FrontSampler:
    options = {"seed": seed, "uniform": UNIFORM, "predicted": PREDICTED, "boxes": (given.box,), "best": BEST}
    return FrontSampler([given.table], **{**options, **changed})


class TestContractWithoutTables(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: FrontSampler(seed=0)


class TestContractWithTables(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: knowing(SMALL)


class TestPlainStudy:
    def suggest(self, trial: Trial) -> tuple[float, float]:
        for name, axis in SMALL.axes.items():
            if isinstance(axis, IntDistribution):
                trial.suggest_int(name, axis.low, axis.high, step=axis.step)
            elif isinstance(axis, FloatDistribution):
                trial.suggest_float(name, axis.low, axis.high, step=axis.step)
        return SMALL.score(trial.params)[:2]

    def test_optimize_and_ask_and_tell_go_the_same_way(self) -> None:
        study = optuna.create_study(directions=DIRECTIONS, sampler=knowing(SMALL))
        study.optimize(self.suggest, n_trials=25)
        told = searched(SMALL, knowing(SMALL), 25, tell=tell_values)
        # the first trial is sampled axis by axis, before Optuna knows what the axes are
        assert [one.params for one in study.trials] == [one.params for one in told.trials]

    def test_threads_may_share_it(self) -> None:
        study = optuna.create_study(directions=DIRECTIONS, sampler=knowing(SMALL))
        study.optimize(self.suggest, n_trials=40, n_jobs=4)
        assert [one.state for one in study.trials] == [TrialState.COMPLETE] * 40
        again = knowing(SMALL)
        assert proposal(study, study.sampler) == proposal(study, again)

    def test_a_store_on_disk_gives_the_same(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        url = f"sqlite:///{tmp_path_factory.mktemp('store')}/plain.db"
        study = searched(SMALL, knowing(SMALL), 12)
        kept = optuna.create_study(directions=DIRECTIONS, storage=url, study_name="plain")
        kept.add_trials(study.trials)
        loaded = optuna.load_study(study_name="plain", storage=url)
        assert proposal(loaded, knowing(SMALL)) == proposal(study, knowing(SMALL))

    def test_without_a_seed_one_is_drawn(self) -> None:
        assert searched(SMALL, knowing(SMALL, seed=None), 10).trials[0].params.keys() == SMALL.axes.keys()


def proposal(study: Study, sampler: BaseSampler) -> dict[str, Any]:
    """What a sampler would propose next, without keeping the trial."""
    copy = optuna.create_study(directions=study.directions)
    copy.add_trials(study.get_trials(deepcopy=False))
    trial = copy._storage.get_trial(copy._storage.create_new_trial(copy._study_id))
    return sampler.sample_relative(copy, trial, sampler.infer_relative_search_space(copy, trial))


def straggling(sampler: BaseSampler, given: World, trials: int, each: Callable[[Study, Trial], None]) -> Study:
    """Trials that run beside each other, end in another order, fail, are given up, and never end."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    running: list[Trial] = []
    for number in range(trials):
        if number == 17:
            study.enqueue_trial({"s0/bits": 8})
        trial = study.ask(dict(given.axes))
        each(study, trial)
        running.append(trial)
        while len(running) > 4:
            ended = running.pop(number % 3)
            match ended.number % 9:
                case 4:
                    study.tell(ended, state=TrialState.FAIL)
                case 5:
                    study.tell(ended, state=TrialState.PRUNED)
                case 6 if ended.number > 20:
                    continue  # runs on for ever
                case _:
                    tell(study, ended, given.score(ended.params))
    return study


class TestPurity:
    def test_a_fresh_sampler_proposes_what_one_that_lived_through_all_does(self) -> None:
        compared = []

        def compare(study: Study, trial: Trial) -> None:
            random.seed(trial.number)
            np.random.seed(trial.number)
            fresh = knowing(SMALL)
            frozen = study._storage.get_trial(trial._trial_id)
            axes = fresh.infer_relative_search_space(study, frozen)
            wished = fresh.sample_relative(study, frozen, axes)
            if trial.number != 17:  # a value of this one was given
                assert {name: trial.params[name] for name in wished} == wished
                compared.append(bool(wished))

        straggling(knowing(SMALL), SMALL, 45, compare)
        assert sum(compared) > 35

    def test_the_same_seed_is_the_same_study(self) -> None:
        one, other = (straggling(knowing(SMALL), SMALL, 40, lambda *_: None) for _ in range(2))
        assert [trial.params for trial in one.trials] == [trial.params for trial in other.trials]

    def test_another_seed_proposes_others(self) -> None:
        one, other = (searched(SMALL, knowing(SMALL, seed), 30).trials for seed in (0, 1))
        same = [a.params == b.params for a, b in zip(one, other, strict=True)]
        assert all(same[1 : len(START)])
        assert not all(same[len(START) :])

    def test_what_runs_matters(self) -> None:
        study = searched(SMALL, knowing(SMALL), 20)
        before = proposal(study, knowing(SMALL))
        running = study.ask(dict(SMALL.axes))
        assert running.params == before
        assert study.ask(dict(SMALL.axes)).params != before

    def test_what_was_told_matters(self) -> None:
        other = replace(SMALL, true=SMALL.true[::-1])  # what was thought of the first site is true of the last one
        asked = [searched(one, knowing(SMALL), 20).trials for one in (SMALL, other)]
        assert asked[0][len(START) - 1].params == asked[1][len(START) - 1].params
        assert asked[0][19].params != asked[1][19].params

    def test_smooth_losses_matter_where_they_are_told(self) -> None:
        asked = [searched(SMALL, knowing(SMALL), 20, tell=one).trials for one in (tell, tell_values)]
        assert asked[0][len(START) - 1].params == asked[1][len(START) - 1].params
        assert asked[0][19].params != asked[1][19].params

    def test_nothing_is_asked_twice_while_there_is_anything_else(self) -> None:
        tiny = world(0, 2, bits=(2, 5, 8), ratios=(0.0, 0.5))
        study = searched(tiny, knowing(tiny), 30)
        assert len({tuple(one.params.values()) for one in study.trials}) == 30

    def test_a_space_that_is_used_up_is_asked_again(self) -> None:
        tiny = world(0, 1, bits=(2, 4, 6), ratios=(0.0, 0.5))
        study = searched(tiny, knowing(tiny), 30)
        assert len({tuple(one.params.values()) for one in study.trials}) >= 5


class TestStart:
    def test_it_starts_with_uniform_and_predicted_policies(self) -> None:
        study = searched(SMALL, knowing(SMALL), len(START))
        for trial, point in zip(study.trials[1:], START[1:], strict=True):  # Optuna knows no axes before the first
            assert trial.params == pytest.approx(point)

    def test_then_it_proposes_what_the_front_lacks(self) -> None:
        study = searched(SMALL, knowing(SMALL), 40)
        grown = [volume(SMALL, study, number) for number in (len(START), 20, 40)]
        assert grown[0] < grown[1] < grown[2]

    def test_plans_are_made_seldom(self) -> None:
        """What costs is to learn and to solve again: a hundred times in the first 5,000 trials."""
        plans = [front_sampler._rounded(told, 0) for told in range(5001)]
        assert all(told - told // 16 - 3 <= plan <= told for told, plan in enumerate(plans))
        assert len(set(plans)) < 100

    def test_plans_are_made_more_seldom_in_a_wide_window(self) -> None:
        """Else 384 candidates that run would wait for fifty plans while the first results come in."""
        plans = [front_sampler._rounded(told, 384) for told in range(5001)]
        assert all(told - (told + 384) // 16 <= plan <= told for told, plan in enumerate(plans))
        assert len(set(plans[:385])) == 12


SHARES = "a/channels"


def settings() -> tuple[list[Table], dict[str, BaseDistribution]]:
    """The whole model, one with fewer channels, and a student; no table knows what 0.25 of the channels cost."""
    small = world(7, 2).table
    student = tuple(
        replace(s, name=f"t:{s.name}", points=tuple({f"t:{k}": v for k, v in p.items()} for p in s.points))
        for s in small.sites
    )
    whole = SMALL.table
    narrow = tuple(replace(site, bytes=site.bytes // 2) for site in whole.sites)
    axes = {
        **SMALL.axes,
        SHARES: FloatDistribution(0, 0.5, step=0.25),
        "model": CategoricalDistribution(("trained", "small")),
        **{f"t:{name}": axis for name, axis in world(7, 2).axes.items()},
    }
    return [
        Table(whole.sites, {SHARES: 0.0, "model": "trained"}, whole.rest),
        Table(narrow, {SHARES: 0.5, "model": "trained"}, whole.rest, 0.2),
        Table(student, {"model": "small"}, 800, 0.5),
    ], axes


def settings_score(tables: list[Table], params: Mapping[str, Any]) -> Score:
    size, loss = 10_000, 0.9
    for table in tables:
        if (numbers := table.numbers(params)) is not None:
            size = int(table.bytes(np.array([numbers]))[0])
            own = [site.losses[i, 1] for site, i in zip(table.sites, numbers, strict=True)]
            loss = table.loss + 0.1 * float(np.sum(own))
            break
    return 1 / (1 + loss), size, loss


@pytest.fixture(scope="module")
def of_settings() -> Study:
    tables, axes = settings()
    study = optuna.create_study(directions=DIRECTIONS, sampler=FrontSampler(tables, seed=1, uniform=3, predicted=9))
    for _ in range(70):
        trial = study.ask(axes)
        tell(study, trial, settings_score(tables, trial.params))
    return study


class TestSettings:
    def test_each_is_searched_and_what_lies_between_is_tried(self, of_settings: Study) -> None:
        tables, _ = settings()
        asked = [one.params for one in of_settings.trials]
        assert min(sum(table.numbers(one) is not None for one in asked) for table in tables) >= 5
        outside = [one for one in asked if all(table.numbers(one) is None for table in tables)]
        assert outside
        assert all(one[SHARES] == 0.25 and one["model"] == "trained" for one in outside)

    def test_the_front_is_of_several(self, of_settings: Study) -> None:
        on_it = [one.params for one in of_settings.best_trials]
        assert sum(any(table.numbers(one) is not None for one in on_it) for table in settings()[0]) >= 2


class TestAwkward:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
    def test_losses_without_a_logarithm(self, bad: float) -> None:
        def odd(study: Study, trial: Trial, score: Score) -> None:
            tell(study, trial, (*score[:2], bad if trial.number % 5 == 4 else score[2]))

        study = searched(SMALL, knowing(SMALL), 30, tell=odd)
        assert volume(SMALL, study) > volume(SMALL, study, 10)

    @pytest.mark.parametrize(
        "box", [Box(50_000, 40_000, 0.1, 1.0), Box(1, 1e9, 0.9, 0.2)], ids=["no sizes", "no accuracies"]
    )
    def test_boxes_without_an_area_are_as_none(self, box: Box) -> None:
        start, plain = SMALL.table, FrontSampler([SMALL.table], seed=0, uniform=2, predicted=4)
        given = FrontSampler([start], seed=0, uniform=2, predicted=4, boxes=(box,))
        one, other = (searched(SMALL, sampler, 25).trials for sampler in (plain, given))
        assert [trial.params for trial in one] == [trial.params for trial in other]

    @pytest.mark.parametrize("smooth", [tell, tell_values])
    def test_accuracies_that_are_all_equal(self, smooth: Callable[[Study, Trial, Score], object]) -> None:
        study = searched(SMALL, knowing(SMALL), 25, tell=lambda s, t, score: smooth(s, t, (0.5, *score[1:])))
        assert len({tuple(one.params.values()) for one in study.trials}) == 25

    @pytest.mark.parametrize("values", [(float("-inf"), 9e4), (float("inf"), 9e4), (0.5, float("inf")), (0.5, 0.0)])
    def test_values_that_cannot_be_compared(self, values: tuple[float, float]) -> None:
        def odd(study: Study, trial: Trial, score: Score) -> None:
            study.tell(trial, values if trial.number % 6 == 5 else score[:2])

        assert len(searched(SMALL, knowing(SMALL), 25, tell=odd).trials) == 25

    def test_boxes_are_made_where_none_is_given(self) -> None:
        study = searched(SMALL, knowing(SMALL, boxes=None, best=None), 30)
        assert volume(SMALL, study) > volume(SMALL, study, 10)

    def test_only_failures(self) -> None:
        study = searched(SMALL, knowing(SMALL), 15, tell=lambda s, t, _: s.tell(t, state=TrialState.FAIL))
        assert len(study.trials) == 15

    @pytest.mark.parametrize("directions", [DIRECTIONS[::-1], DIRECTIONS[:1], (*DIRECTIONS, StudyDirection.MINIMIZE)])
    def test_other_directions_are_searched_by_evolution(self, directions: tuple[StudyDirection, ...]) -> None:
        study = optuna.create_study(directions=directions, sampler=knowing(SMALL))
        for _ in range(20):
            trial = study.ask(dict(SMALL.axes))
            accuracy, size, loss = SMALL.score(trial.params)
            study.tell(trial, [size, accuracy, loss][: len(directions)])
        assert len({tuple(one.params.values()) for one in study.trials}) > 10

    def test_trials_that_no_table_knows_are_passed_over(self) -> None:
        study = searched(SMALL, knowing(SMALL), 12)
        strange = {"s0/bits": IntDistribution(2, 40), **{k: v for k, v in SMALL.axes.items() if k != "s0/bits"}}
        params = {**study.trials[3].params, "s0/bits": 33}
        study.add_trial(optuna.create_trial(params=params, distributions=strange, values=[0.99, 500.0]))
        for _ in range(5):
            trial = study.ask(dict(SMALL.axes))
            tell(study, trial, SMALL.score(trial.params))
        assert len(study.trials) == 18

    def test_other_axes_are_sampled_with_it(self) -> None:
        axes = {**SMALL.axes, "temperature": FloatDistribution(1, 8, log=True), "optimizer": IntDistribution(0, 3)}
        study = optuna.create_study(directions=DIRECTIONS, sampler=knowing(SMALL))
        for _ in range(20):
            trial = study.ask(axes)
            tell(study, trial, SMALL.score(trial.params))
        temperatures = [one.params["temperature"] for one in study.trials]
        assert len(set(temperatures)) == 20
        assert all(1 <= one <= 8 for one in temperatures)
