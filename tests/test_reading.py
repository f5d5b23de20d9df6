"""Narrow reads give what whole trials say, in a fixed number of statements, of one snapshot, while a search writes."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, event

from benchmarks.reading import SPACE, STUDY, fill
from search.export import policy_files
from search.front import front, read_front
from search.goals import SHARES
from search.status import status
from search.storage import End, Start, open_storage
from search.storage.reading import Candidate, OnRung, best_within, read_attrs, read_candidates, read_params
from search.stored import pick_study
from search.study import open_study
from tests import mariadb, postgres
from tests.studies import every_point

TRIALS = 400


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    fresh = {"postgres": postgres.fresh_database, "mariadb": mariadb.fresh_database}
    return fresh[request.param]() if request.param in fresh else f"sqlite:///{tmp_path}/large.db"


def trials_of(url: str) -> list[FrozenTrial]:
    with closing(open_storage(url, create=False)) as storage:
        return storage.load_trials(pick_study(storage, STUDY).id)


def add(url: str, values: Sequence[tuple[float, int]]) -> None:
    """Tell further trials with these accuracies and bytes, which copy the rest from finished ones."""
    trials = trials_of(url)
    models = [one for one in trials if one.state is TrialState.COMPLETE]
    with closing(open_storage(url, create=False)) as storage:
        starts, ends = [], []
        for number, (accuracy, size) in enumerate(values, len(trials)):
            model = models[number % len(models)]
            attrs = dict(model.user_attrs)
            asked = {key: attrs.pop(key) for key in ("origin", "digest")}
            starts.append(Start(number, model.params, model.distributions, asked, {}))
            ends.append(End(number, TrialState.COMPLETE, [accuracy, float(size)], attrs))
        storage.write_trials(pick_study(storage, STUDY).id, starts, ends)


def ties(url: str, seed: int) -> list[tuple[float, int]]:
    """Scores that are equal to those of members of the front, or to one of theirs in one objective."""
    draw = random.Random(seed)
    found = []
    for point in front(STUDY, url).points:
        accuracy, size = point.accuracy, point.bytes
        found += [(accuracy, size), (accuracy - 0.001, size), (accuracy, size + 1)]
    draw.shuffle(found)
    return found


def candidate(trial: FrozenTrial) -> Candidate:
    attrs = trial.user_attrs
    stopped = bool(attrs.get("stopped"))
    last = attrs["rung"]
    rungs = [OnRung(one["rung"], one["bytes"], one["accuracy"]) for one in attrs["rungs"]]
    if last == 0:  # where the score says it
        rungs = [OnRung(0, int(trial.values[1]), trial.values[0])]
    full = tuple(one for one in rungs if not (stopped and one.rung == last))
    return Candidate(trial.number, int(trial.values[1]), trial.values[0], attrs["origin"], last, stopped, full)


def dominated(one: FrozenTrial, by: FrozenTrial) -> bool:
    """Whether the other is at least as good in both, and better in one, or is equal and was first."""
    no_worse = by.values[0] >= one.values[0] and by.values[1] <= one.values[1]
    return no_worse and (by.values != one.values or by.number < one.number)


def by_hand(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What the front's document must say of these trials, by definition."""
    complete = [one for one in trials if one.state is TrialState.COMPLETE]
    complete.sort(key=lambda one: (one.values[1], one.number))
    best = [one for one in complete if not any(dominated(one, other) for other in complete)]
    uniform = [one for one in complete if one.user_attrs["origin"] == "uniform"]
    fresh = [one for one in trials if "repeat_of" not in one.user_attrs]
    return {
        "points": [point(one) for one in best],
        "uniform": [point(one) for one in uniform],
        "states": dict(Counter(one.state.name for one in trials)),
        "stopped": sum("stopped" in one.user_attrs for one in complete),
        "passes": {kind: sum(one.user_attrs.get(kind, 0) for one in fresh) for kind in ("forwards", "backwards")},
        "unbeaten_uniform": [
            one.number for one in uniform if near(one) and not any(beats(other, one) for other in complete)
        ],
    }


def near(uniform: FrozenTrial) -> bool:
    return bool(uniform.values[0] >= 0.95 - 0.03 - 1e-9)


def beats(other: FrozenTrial, uniform: FrozenTrial) -> bool:
    if other.user_attrs["origin"] == "uniform":
        return False
    rungs = [one for one in candidate(other).full if one.rung <= uniform.user_attrs["rung"]]
    return bool(rungs) and rungs[-1].bytes < uniform.values[1] and rungs[-1].accuracy >= uniform.values[0]


def point(trial: FrozenTrial) -> dict[str, Any]:
    named = {"trial": trial.number, "bytes": int(trial.values[1]), "accuracy": trial.values[0]}
    attrs = trial.user_attrs
    kept = {key: attrs[key] for key in ("macs", "rung", "rungs", "origin", "artifact", "samples")}
    return {**named, **kept, "accuracy_ci95": attrs["ci95"], "stopped": bool(attrs.get("stopped"))}


def only(shown: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in shown.items()}
    return {key: plain[key] for key in wanted}


class TestAnswers:
    def test_the_front_is_that_of_whole_trials(self, url: str) -> None:
        fill(url, TRIALS)
        add(url, ties(url, 0))
        trials, found = trials_of(url), front(STUDY, url)
        shown, wanted = found.document(), by_hand(trials)
        assert len(trials) > TRIALS + 10
        assert {*wanted["states"]} == {"COMPLETE", "FAIL", "RUNNING"}
        assert any("repeat_of" in one.user_attrs for one in trials)
        assert 0 < wanted["stopped"] < TRIALS / 2
        for kind in ("points", "uniform"):
            assert [only(*pair) for pair in zip(shown[kind], wanted[kind], strict=True)] == wanted[kind]
        for key in ("states", "stopped", "passes", "unbeaten_uniform"):
            assert shown[key] == wanted[key], key
        assert len(found.duels) > len(shown["unbeaten_uniform"]) > 0
        complete = [candidate(one) for one in trials if one.state is TrialState.COMPLETE]
        assert list(found.complete) == sorted(complete, key=lambda one: (one.bytes, one.trial))

    def test_the_status_is_that_of_whole_trials(self, url: str) -> None:
        fill(url, TRIALS)
        trials, found = trials_of(url), status(STUDY, url)
        assert found.states == dict(Counter(one.state.name for one in trials))
        full = [one for one in trials if one.state is TrialState.COMPLETE and "stopped" not in one.user_attrs]
        for share, best in zip(SHARES, found.best, strict=True):
            fitting = [one for one in full if one.values[1] <= best.limit]
            wanted = max(fitting, key=lambda one: (one.values[0], -one.values[1], -one.number))
            assert (best.share, best.trial, best.accuracy, best.bytes) == (share, wanted.number, *wanted.values)

    def test_policies_are_those_of_the_trials_that_are_asked_for(self, url: str) -> None:
        fill(url, 60)
        points = every_point(url)[-3:]
        trials = trials_of(url)
        for one, policy in zip(points, policy_files(points, STUDY, url), strict=True):
            assert policy.policy == SPACE.policy(trials[one.trial].params)
            assert policy.provenance.trial == one.trial

    def test_other_studies_of_the_store_are_left_out(self, url: str) -> None:
        fill(url, 60)
        alone = front(STUDY, url)
        fill(url, 90, 1, study="other")
        assert front(STUDY, url) == alone
        assert len(front("other", url).complete) > len(alone.complete)

    def test_trials_that_are_not_there_are_left_out(self, url: str) -> None:
        fill(url, 60)
        with closing(open_storage(url, create=False)) as storage:
            study_id = pick_study(storage, STUDY).id
            asked = storage.run("reading", lambda connection: read_params(connection, study_id, [3, 99]), write=False)
            attrs = storage.run("reading", lambda connection: read_attrs(connection, study_id, [99]), write=False)
            best = storage.run("reading", lambda connection: best_within(connection, study_id, 1), write=False)
        assert asked == {3: trials_of(url)[3].params}
        assert (attrs, best) == ({99: {}}, None)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that all engines are sent meanwhile."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class TestCost:
    def test_statements_do_not_grow_with_the_trials(self, url: str) -> None:
        spent = []
        for study, trials in (("small", 40), ("large", 400)):
            fill(url, trials, study=study)
            with counted() as sent:
                found = front(study, url, also=[30])
                found.document()
            with counted() as more:
                status(study, url)
            with counted() as exported:
                policy_files([*found.points, *found.uniform], study, url)
            spent.append((len(sent), len(more), len(exported)))
        assert spent[0] == spent[1]

    def test_the_front_of_more_trials_than_a_database_takes_parameters(self, tmp_path: Path) -> None:
        """Every trial is a member of this front."""
        url, many = f"sqlite:///{tmp_path}/long.db", 40_000
        with closing(open_storage(url, create=True)) as storage:
            study_id, _ = open_study(storage, "long")
            assert storage.run("reading", lambda connection: read_attrs(connection, study_id, range(many)), write=False)


class TestWhileASearchWrites:
    def test_what_is_not_committed_is_not_seen(self, url: str) -> None:
        fill(url, 60)
        before = front(STUDY, url)
        with closing(open_storage(url, create=False)) as writer:
            study_id = pick_study(writer, STUDY).id

            def work(connection: Any) -> None:
                connection.exec_driver_sql("update trials set state = 'FAIL' where number < 30")
                assert front(STUDY, url) == before
                assert status(STUDY, url).states == before.states
                connection.exec_driver_sql("update trials set state = 'COMPLETE' where number < 30")

            writer.run("changing trials", work, write=True)
            assert len(writer.load_trials(study_id)) == 60

    def test_one_answer_is_one_snapshot(self, url: str) -> None:
        """A trial that is told between two reads of one answer is in neither."""
        fill(url, 60)
        with closing(open_storage(url, create=False)) as storage:
            study = pick_study(storage, STUDY)

            def work(connection: Any) -> None:
                first = read_candidates(connection, study.id)
                add(url, [(0.99, 1000)])
                assert read_candidates(connection, study.id) == first

            storage.run("reading twice", work, write=False)
            assert len(read_front(storage, study).complete) == len(front(STUDY, url).complete)
        assert front(STUDY, url).points[0].bytes == 1000
