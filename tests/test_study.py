"""A search as an Optuna study: axes as distributions, and trials that are asked, told, repeated and found again."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Connection, event

from objectives.racing import Outcomes
from objectives.score import RungScore, Score
from search.storage import End, Storage, no_guard, open_storage
from search.study import DIRECTIONS, MOST_ERROR, Proposal, Trials, distribution, distributions, open_study
from spaces.errors import StudyError
from spaces.policy import Distillation, Policy
from spaces.space import Axis, Grid, Options, Range, SiteSpace, Space
from tests.stores import fresh_url

MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
SPACE = Space(
    (
        SiteSpace("even", ("uniform",), (0.0, 0.16, 0.32, 0.48), (2, 3, 4)),
        SiteSpace("uneven", ("uniform", "float16", "float32"), (0.0, 0.5, 0.9), (2, 4, 8)),
        SiteSpace("fixed", ("float32",), (0.0,), ()),
    ),
    temperature=(1.0, 8.0),
    alpha=(0.5, 1.0),
    distillation=Distillation(temperature=1, alpha=0.5, learning_rate=1e-3, batch_size=64),
)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Grid("a", (2, 3, 4, 5)), IntDistribution(2, 5)),
        (Grid("a", (2, 4, 6, 8)), IntDistribution(2, 8, step=2)),
        (Grid("a", (2, 4, 8)), CategoricalDistribution((2, 4, 8))),
        (Grid("a", (3, 8)), IntDistribution(3, 8, step=5)),
        (Grid("a", (0.0, 0.16, 0.32, 0.48)), FloatDistribution(0.0, 0.48, step=0.16)),
        (Grid("a", (0.1, 0.2, 0.3)), FloatDistribution(0.1, 0.3, step=0.1)),
        (Grid("a", (0.0, 0.5, 0.9)), CategoricalDistribution((0.0, 0.5, 0.9))),
        (Range("a", 1.0, 8.0, log=True), FloatDistribution(1.0, 8.0, log=True)),
        (Range("a", 0.5, 1.0), FloatDistribution(0.5, 1.0)),
        (Options("a", ("uniform", "float16")), CategoricalDistribution(("uniform", "float16"))),
    ],
)
def test_an_axis_is_the_plainest_distribution_that_holds_it(axis: Axis, expected: BaseDistribution) -> None:
    assert distribution(axis) == expected


def test_whatever_a_sampler_draws_is_a_policy() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = distributions(SPACE)
    assert list(kinds) == [axis.name for axis in SPACE.axes()]
    seen = set()
    for _ in range(300):
        params = study.ask(kinds).params
        policy = SPACE.policy(params)
        assert SPACE.params(policy).keys() == params.keys()
        assert SPACE.policy(SPACE.params(policy)) == policy
        seen |= {(name, choice) for name, choice in policy.sites.items()}
    assert len(seen) == sum(len(site.choices()) for site in SPACE.sites)  # every choice can be drawn


def test_whatever_a_policy_has_chosen_survives_the_store() -> None:
    kinds = distributions(SPACE)
    for site in SPACE.sites:
        for choice in site.choices():
            sites = {other.name: other.choices()[0] for other in SPACE.sites} | {site.name: choice}
            policy = SPACE.make(sites, 2.5, 0.75)
            stored = {name: kinds[name].to_internal_repr(value) for name, value in SPACE.params(policy).items()}
            assert all(kinds[name]._contains(value) for name, value in stored.items())
            found = {name: kinds[name].to_external_repr(value) for name, value in stored.items()}
            assert SPACE.policy(found) == policy


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    opened = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    yield opened
    opened.close()


class TestOpening:
    def test_a_study_is_made_once(self, storage: Storage) -> None:
        study_id, made = open_study(storage, "mine")
        assert (made, open_study(storage, "mine")) == (True, (study_id, False))
        study = optuna.load_study(study_name="mine", storage=storage)
        assert study.metric_names == ["accuracy", "bytes"]
        assert study.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]

    def test_a_study_that_was_only_just_made_gets_its_metric_names(self, storage: Storage) -> None:
        study_id = storage.create_new_study(DIRECTIONS, "killed")
        assert open_study(storage, "killed") == (study_id, False)
        assert optuna.load_study(study_name="killed", storage=storage).metric_names == ["accuracy", "bytes"]

    @pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
    def test_of_launches_at_once_one_makes_it_and_all_open_it(self, tmp_path: Path, kind: str) -> None:
        url = fresh_url(kind, tmp_path)
        open_storage(url, create=True).close()
        together = threading.Barrier(4)

        def launch(_: int) -> tuple[int, bool]:
            with contextlib.closing(open_storage(url, create=False)) as one:
                together.wait()
                return open_study(one, "mine")

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(launch, range(4)))
        assert sorted(made for _, made in found) == [False, False, False, True]
        assert len({study_id for study_id, _ in found}) == 1

    def test_a_launch_that_was_overtaken_opens_what_the_other_made(self, storage: Storage) -> None:
        overtaken: list[int] = []

        def overtake(_c: object, _cursor: object, statement: str, *_: object) -> None:
            if "FROM studies" in statement and not overtaken:
                overtaken.append(0)
                with contextlib.closing(open_storage(storage.url, create=False)) as other:
                    overtaken[0] = other.create_new_study(DIRECTIONS, "mine")

        event.listen(storage.engine, "after_cursor_execute", overtake)
        assert open_study(storage, "mine") == (overtaken[0], False)

    @pytest.mark.parametrize("directions", [[MAXIMIZE], [MINIMIZE, MAXIMIZE], [MAXIMIZE] * 3])
    def test_a_study_of_other_objectives_is_refused(self, storage: Storage, directions: list[StudyDirection]) -> None:
        optuna.create_study(study_name="theirs", storage=storage, directions=directions)
        with pytest.raises(StudyError, match=r"study 'theirs' exists .* give yours another name \(key study\)"):
            open_study(storage, "theirs")

    def test_a_study_with_trials_of_another_program_is_refused_and_left_alone(self, storage: Storage) -> None:
        theirs = optuna.create_study(study_name="theirs", storage=storage, directions=["maximize", "minimize"])
        theirs.tell(theirs.ask({"x": FloatDistribution(0, 1)}), [0.5, 10.0])
        with pytest.raises(StudyError, match="is not a Slimfront search"):
            open_study(storage, "theirs")
        again = optuna.load_study(study_name="theirs", storage=storage)
        assert (again.user_attrs, again.metric_names, len(again.trials)) == ({}, None, 1)


def policy(bits: int) -> Policy:
    sites = {site.name: site.nearest("uniform", 0.0, bits) for site in SPACE.sites}
    return SPACE.make(sites, 2.0, 0.75)


def proposal(bits: int, **more: Any) -> Proposal:
    made = policy(bits)
    return Proposal(
        made, SPACE.params(made), more.pop("origin", "sampler"), {"generation": bits}, {f"parents {bits}": [1, bits]}
    )


def score(accuracy: float, size: int, **more: Any) -> Score:
    rungs = tuple(
        RungScore(
            rung, accuracy - 0.1 + rung / 10, size + 1 - rung, 5.0, 0.25, 0.5, 0.125 / (1 + rung), 50, 70, 9 * rung
        )
        for rung in range(2)
    )
    outcomes = tuple(
        Outcomes(np.array([rung, 1, 0], np.float32), np.array([0.5, 1 / 3, rung], np.float32)) for rung in range(2)
    )
    interval = (accuracy - 0.1, accuracy + 0.1)
    return Score(accuracy, interval, size, 5.0, rungs, "ab" * 32, outcomes=outcomes, **more)


class TestTrials:
    @pytest.fixture
    def study_id(self, storage: Storage) -> int:
        return open_study(storage, "mine")[0]

    def start(self, trials: Trials, *bits: int) -> None:
        for one in bits:
            trials.start(proposal(one), distributions(SPACE), "sampler:")
        trials.commit(no_guard)

    def test_what_was_asked_and_told_is_found_again(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4, 3, 2)
        for number in range(4):
            trials.first_with(number)
        trials.complete(score(0.9, 700), {"host": "here"})
        trials.fail("the metric is nan", {"host": "there"})
        trials.commit(no_guard)
        again = Trials(storage, study_id)

        assert (again.count, again.told, len(list(again.finished()))) == (4, 2, 2)
        assert [again[i].params for i in range(4)] == [SPACE.params(policy(bits)) for bits in (2, 4, 3, 2)]
        assert [again[i].told for i in range(4)] == [True, True, False, False]
        assert (again[0].values, again[0].rungs) == ((0.9, 700.0), score(0.9, 700).rungs)
        assert (again[1].values, again[1].rungs, again[1].attrs["error"]) == (None, (), "the metric is nan")
        assert [again[i].origin for i in range(4)] == ["sampler"] * 4
        assert again[2].system_attrs == {"generation": 3}
        assert again[0].attrs["host"] == "here"
        assert [again.first_with(i) for i in range(4)] == [0, 1, 2, 0]
        attrs = storage.get_study_user_attrs(study_id)
        assert attrs == {"sampler:parents 2": [1, 2], "sampler:parents 3": [1, 3], "sampler:parents 4": [1, 4]}

    def test_what_is_in_memory_is_what_is_stored(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4, 2, 3)
        trials.complete(score(0.9, 700), {})
        trials.fail("no", {})
        trials.repeat(0)
        trials.commit(no_guard)
        again = Trials(storage, study_id)
        for number in range(4):
            ours, stored = trials[number], again[number]
            for field in ("number", "params", "system_attrs", "told", "values", "rungs"):
                assert getattr(ours, field) == getattr(stored, field)
            assert ours.attrs.keys() == stored.attrs.keys()

    def test_nothing_is_stored_before_it_is_committed_nor_where_the_guard_refuses(
        self, storage: Storage, study_id: int
    ) -> None:
        def refuse(connection: Connection) -> None:
            raise StudyError("not ours any more")

        trials = Trials(storage, study_id)
        self.start(trials, 2)
        trials.start(proposal(4), distributions(SPACE), "sampler:")
        trials.complete(score(0.9, 700), {})
        with pytest.raises(StudyError, match="not ours any more"):
            trials.commit(refuse)
        assert [trial.state.name for trial in storage.load_trials(study_id)] == ["RUNNING"]
        trials.commit(no_guard)
        trials.commit(no_guard)
        assert [trial.state.name for trial in storage.load_trials(study_id)] == ["COMPLETE", "RUNNING"]

    def test_outcomes_are_not_forgotten_where_the_guard_refuses(self, storage: Storage, study_id: int) -> None:
        def refuse(connection: Connection) -> None:
            raise StudyError("not ours any more")

        with pytest.raises(StudyError, match="not ours any more"):
            Trials(storage, study_id, refuse)

    def test_a_long_error_is_cut(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4)
        trials.fail("x" * MOST_ERROR, {})
        trials.fail("y" * 1_000_000, {})
        trials.commit(no_guard)
        whole, cut = (trial.user_attrs["error"] for trial in storage.load_trials(study_id))
        assert whole == "x" * MOST_ERROR
        assert len(cut) == MOST_ERROR
        assert cut.endswith("y ... (cut: 1000000 characters)")

    def test_a_repeat_has_the_score_of_the_first(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4, 2, 4)
        trials.complete(score(0.9, 700), {"host": "here"})
        trials.fail("no luck", {})
        trials.repeat(0)
        trials.repeat(1)
        trials.commit(no_guard)
        found = storage.load_trials(study_id)
        assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
        assert found[2].values == found[0].values == [0.9, 700.0]
        assert found[2].user_attrs == {**found[0].user_attrs, "repeat_of": 0}
        assert found[3].user_attrs == {**found[1].user_attrs, "repeat_of": 1}

    def test_optuna_sees_a_plain_study(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4, 3)
        trials.complete(score(0.9, 700), {})
        trials.complete(score(0.8, 800), {})
        trials.commit(no_guard)
        study = optuna.load_study(study_name="mine", storage=storage)
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
        assert [trial.number for trial in study.best_trials] == [0]
        assert study.trials[0].distributions == distributions(SPACE)
        assert study.trials[0].params == SPACE.params(policy(2))
        assert study.trials[0].user_attrs["ci95"] == [0.8, 1.0]

    def test_what_a_trial_took_and_showed_is_among_its_attributes(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4)
        trials.complete(score(0.9, 700), {})
        trials.complete(score(0.8, 800, stopped=True), {})
        trials.commit(no_guard)
        told = [trial.user_attrs for trial in storage.load_trials(study_id)]
        shown = [{key: attrs[key] for key in ("samples", "validation_loss", "forwards", "backwards")} for attrs in told]
        assert shown == [{"samples": 50, "validation_loss": 0.0625, "forwards": 140, "backwards": 9}] * 2
        assert ["stopped" in attrs for attrs in told] == [False, True]
        assert [trials[i].stopped for i in range(2)] == [False, True]

    def test_outcomes_are_kept_where_it_is_said_and_are_what_is_loaded(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4, 3, 2)
        trials.complete(score(0.9, 700), {}, kept={1})
        trials.complete(score(0.8, 800), {})
        trials.fail("no", {})
        trials.repeat(0)
        trials.commit(no_guard)
        for found in (trials, Trials(storage, study_id)):
            nothing, kept = found.outcomes(0)
            assert nothing is None
            assert kept is not None
            assert kept.values.tolist() == [1, 1, 0]
            assert kept.losses.tolist() == [0.5, float(np.float16(1 / 3)), 1]
            assert [found.outcomes(number) for number in (1, 2, 3)] == [(), (), ()]
            found.forget_outcomes(0)
            assert found.outcomes(0) == ()

    def test_trials_of_an_earlier_version_are_refused(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2)
        rungs = [{"rung": 0, "accuracy": 0.5, "bytes": 10, "macs": 1.0, "loss": 0.1, "seconds": 0.1}]
        storage.write_trials(study_id, (), [End(0, TrialState.COMPLETE, [0.5, 10.0], {"rungs": rungs})])
        with pytest.raises(StudyError, match="trial 0 was told by an earlier version of Slimfront"):
            Trials(storage, study_id)

    def test_trials_that_were_told_out_of_order_are_refused(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2, 4, 3)
        storage.write_trials(study_id, (), [End(1, TrialState.COMPLETE, [0.5, 10.0], {})])
        with pytest.raises(StudyError, match=r"trials \[1\] were told before trial 0"):
            Trials(storage, study_id)

    def test_a_trial_that_we_did_not_ask_is_refused(self, storage: Storage, study_id: int) -> None:
        self.start(Trials(storage, study_id), 2)
        optuna.load_study(study_name="mine", storage=storage).enqueue_trial({"x": 1})
        with pytest.raises(StudyError, match=r"trial 1 \(WAITING\) was not asked by a Slimfront search"):
            Trials(storage, study_id)

    def test_a_trial_is_told_only_once(self, storage: Storage, study_id: int) -> None:
        trials = Trials(storage, study_id)
        self.start(trials, 2)
        other = Trials(storage, study_id)
        trials.complete(score(0.9, 700), {})
        trials.commit(no_guard)
        other.complete(score(0.8, 700), {})
        with pytest.raises(StudyError, match="trial 0 is COMPLETE"):
            other.commit(no_guard)
        assert storage.load_trials(study_id)[0].values == [0.9, 700.0]
