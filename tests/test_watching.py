"""The storage that the dashboard reads: the same as the database at every moment, and little is read to know it."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState
from sqlalchemy import event

from search.storage import End, Start, Storage, open_storage
from search.storage.watching import WatchingStorage
from spaces.errors import StudyError
from tests.postgres import fresh_database

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
DRAWN: dict[str, BaseDistribution] = {
    "body/ratio": FloatDistribution(0.0, 0.9, step=0.1),
    "body/bits": IntDistribution(2, 8),
    "body/kind": CategoricalDistribution(["none", "nm"]),
}


def begun(number: int) -> Start:
    params = {"body/ratio": 0.3, "body/bits": 2 + number % 7, "body/kind": "nm"}
    return Start(number, params, DRAWN, {"origin": "sampler"}, {"nsga:generation": 1})


def done(number: int, state: TrialState = TrialState.COMPLETE) -> End:
    values = [0.5 + number / 100, 1000.0 + number] if state is TrialState.COMPLETE else None
    return End(number, state, values, {"seconds": 0.1, "rungs": [{"rung": 0}]})


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/watched.db" if request.param == "sqlite" else fresh_database()


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    """The search's own."""
    made = open_storage(url, create=True)
    yield made
    made.close()


@pytest.fixture
def watching(url: str, storage: Storage) -> Iterator[WatchingStorage]:
    """The dashboard's: another connection to the same database."""
    opened = open_storage(url, create=False)
    yield WatchingStorage(opened)
    opened.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    made = storage.create_new_study(DIRECTIONS, "watched")
    storage.write_trials(made, [begun(number) for number in range(6)], [done(number) for number in (0, 1, 3)])
    return made


def numbers(trials: Sequence[optuna.trial.FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


class TestOptunaContract(StorageTestCase):
    """What Optuna asks of every storage, by its own tests."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[WatchingStorage]:
        opened = open_storage(f"sqlite:///{tmp_path}/watched.db", create=True)
        yield WatchingStorage(opened)
        opened.close()


def test_it_follows_a_search(storage: Storage, watching: WatchingStorage, study_id: int) -> None:
    first = watching.watch(study_id)
    assert (numbers(first.trials), numbers(first.ended)) == ([0, 1, 2, 3, 4, 5], [0, 1, 3])
    assert watching.get_all_trials(study_id) == storage.get_all_trials(study_id)

    storage.write_trials(study_id, [begun(6), begun(7)], [done(5), done(2, TrialState.FAIL)])
    storage.write_trials(study_id, [], [done(7)])
    second = watching.watch(study_id)

    assert numbers(second.ended) == [0, 1, 3, 2, 5, 7]
    assert second.making == first.making
    assert watching.get_all_trials(study_id) == storage.get_all_trials(study_id)
    assert numbers(watching.get_all_trials(study_id, states=[TrialState.RUNNING])) == [4, 6]
    assert (numbers(first.trials), numbers(first.ended)) == ([0, 1, 2, 3, 4, 5], [0, 1, 3])  # a moment stays as it was


def test_ended_trials_are_read_once(storage: Storage, watching: WatchingStorage, study_id: int) -> None:
    first = watching.watch(study_id)
    storage.write_trials(study_id, [begun(6)], [])
    second = watching.watch(study_id)
    assert all(any(one is other for other in second.trials) for one in first.ended)
    assert second.trials[6].distributions["body/bits"] is first.trials[0].distributions["body/bits"]


@pytest.mark.parametrize("new", [0, 1, 40])
def test_a_look_is_a_fixed_number_of_statements(
    storage: Storage, watching: WatchingStorage, study_id: int, new: int
) -> None:
    watching.watch(study_id)
    run: list[str] = []
    event.listen(watching._storage.engine, "before_cursor_execute", lambda *said: run.append(said[2]))
    storage.write_trials(study_id, [begun(6 + one) for one in range(new)], [])
    watching.watch(study_id)
    selects = [text for text in run if text.startswith("SELECT")]
    assert 3 <= len(selects) <= 9, selects


def test_what_it_gives_may_be_changed(watching: WatchingStorage, study_id: int) -> None:
    mine = watching.get_all_trials(study_id)[0]
    mine.params["body/bits"] = 99
    mine.user_attrs["rungs"][0]["rung"] = 99
    mine.distributions.clear()
    mine.values[0] = 99.0
    assert 99 not in watching.get_all_trials(study_id)[0].params.values()
    assert watching.get_all_trials(study_id)[0].user_attrs["rungs"] == [{"rung": 0}]
    assert watching.get_all_trials(study_id)[0].distributions == DRAWN
    assert watching.get_all_trials(study_id)[0].values == [0.5, 1000.0]


class TestAnotherStudy:
    def test_a_deleted_one(self, storage: Storage, watching: WatchingStorage, study_id: int) -> None:
        watching.watch(study_id)
        storage.delete_study(study_id)
        with pytest.raises(KeyError):
            watching.watch(study_id)
        assert watching.study(study_id) is None
        assert watching.get_all_studies() == []

    @pytest.mark.parametrize("name", ["watched", "other"])
    def test_one_made_anew_under_its_id(
        self, storage: Storage, watching: WatchingStorage, study_id: int, name: str
    ) -> None:
        first = watching.watch(study_id)
        storage.delete_study(study_id)
        if storage.engine.dialect.name == "postgresql":  # SQLite gives ids again by itself
            with storage.engine.begin() as connection:
                connection.exec_driver_sql(f"alter sequence studies_study_id_seq restart with {study_id}")
        assert storage.create_new_study(DIRECTIONS, name) == study_id
        other = [done(0, TrialState.FAIL), done(1), done(3)]
        storage.write_trials(study_id, [begun(number) for number in range(6)], other)

        second = watching.watch(study_id)

        assert second.making > first.making
        assert list(second.trials) == storage.get_all_trials(study_id)
        assert second.trials[0].state is TrialState.FAIL

    def test_one_that_was_emptied_before_anything_ended(self, storage: Storage, watching: WatchingStorage) -> None:
        study_id = storage.create_new_study(DIRECTIONS, "short")
        storage.write_trials(study_id, [begun(0), begun(1)], [])
        watching.watch(study_id)
        storage.delete_study(study_id)
        assert storage.create_new_study(DIRECTIONS, "short") >= study_id
        if (again := storage.get_study_id_from_name("short")) == study_id:
            assert watching.watch(again).trials == []


def test_a_trial_that_got_its_id_before_others_and_came_after(
    storage: Storage, watching: WatchingStorage, study_id: int
) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("update trials set study_id = null where number = 2")
    assert numbers(watching.watch(study_id).trials) == [0, 1, 3, 4, 5]
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(f"update trials set study_id = {study_id} where number = 2")
    assert numbers(watching.watch(study_id).trials) == [0, 1, 2, 3, 4, 5]


def test_studies_are_those_that_optuna_reads(storage: Storage, watching: WatchingStorage, study_id: int) -> None:
    storage.set_study_user_attr(study_id, "device", {"cpu": [1, None]})
    storage.set_study_system_attr(study_id, "study:metric_names", ["accuracy", "bytes"])
    storage.create_new_study([StudyDirection.MINIMIZE], "second")
    theirs = RDBStorage.get_all_studies(storage)
    assert [vars(one) for one in watching.get_all_studies()] == [vars(one) for one in theirs]
    found = watching.study(study_id)
    assert found is not None
    assert vars(found) == vars(theirs[0])


def test_optuna_reads_from_memory(watching: WatchingStorage, study_id: int) -> None:
    study = optuna.load_study(study_name="watched", storage=watching)
    assert study._storage is watching
    assert numbers(study.best_trials) == [0, 1, 3]


class TestRenaming:
    def test_everything_stays(self, storage: Storage, watching: WatchingStorage, study_id: int) -> None:
        first = watching.watch(study_id)
        assert watching.rename(study_id, "renamed")
        assert storage.get_study_name_from_id(study_id) == "renamed"
        assert watching.watch(study_id).making == first.making
        assert watching.rename(study_id, "renamed")  # to what it is called

    def test_names_of_others_and_of_none(self, storage: Storage, watching: WatchingStorage, study_id: int) -> None:
        storage.create_new_study(DIRECTIONS, "second")
        assert not watching.rename(study_id, "second")
        assert storage.get_study_name_from_id(study_id) == "watched"
        with pytest.raises(KeyError):
            watching.rename(99, "third")


def test_many_threads_see_growing_studies(storage: Storage, watching: WatchingStorage, study_id: int) -> None:
    stop, wrong = threading.Event(), list[Any]()

    def look() -> None:
        last = 0
        while not stop.is_set():
            watched = watching.watch(study_id)
            if numbers(watched.trials) != list(range(len(watched.trials))) or len(watched.ended) < last:
                wrong.append(watched)
            last = len(watched.ended)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6, 60):
            storage.write_trials(study_id, [begun(number)], [done(number)])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert watching.get_all_trials(study_id) == storage.get_all_trials(study_id)


def test_a_database_that_fails(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/watched.db"
    storage = open_storage(url, create=True)
    study_id = storage.create_new_study(DIRECTIONS, "watched")
    watching = WatchingStorage(storage)
    watching.watch(study_id)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("drop table trial_values")
    with pytest.raises(StudyError, match="trial_values"):
        watching.watch(study_id)
    storage.close()
