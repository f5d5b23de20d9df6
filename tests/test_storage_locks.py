"""Locks of a driver that vanished: the server ends them, and whoever waits for them goes on or says so."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, make_url, text

from search.lease import LITTLE_PATIENCE_S, Lease
from search.storage import Storage, open_storage
from spaces.errors import StudyError
from tests import postgres
from tests.stores import DIRECTIONS, complete, empty


def with_options(url: str, options: str) -> str:
    return make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)


@pytest.fixture
def url() -> str:
    return postgres.fresh_database()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def quick(url: str, said: list[str]) -> Iterator[Storage]:
    """A storage that waits for a lock, and in a transaction, for shorter times."""
    options = "-c lock_timeout=200ms -c idle_in_transaction_session_timeout=400ms"
    made = open_storage(with_options(url, options), create=True, patience=30.0, say=said.append)
    yield made
    made.close()


@pytest.fixture
def study_id(quick: Storage) -> int:
    return quick.create_new_study(DIRECTIONS, "digits")


@pytest.fixture
def other(url: str, study_id: int) -> Iterator[Storage]:
    """A storage of another driver, with the settings of every driver."""
    with contextlib.closing(open_storage(url, create=False)) as made:
        yield made


def setting(storage: Storage, name: str) -> str:
    return storage.run("asking", lambda connection: str(connection.scalar(text(f"show {name}"))), write=False)


@contextlib.contextmanager
def locked(other: Storage, study_id: int) -> Iterator[Callable[[], None]]:
    """Holds the study's row, and gives what lets go of it."""
    with other.engine.connect() as connection:
        other.lock_study(connection, study_id)
        yield connection.rollback


def test_every_connection_says_how_long_it_waits(quick: Storage, other: Storage) -> None:
    names = ("idle_in_transaction_session_timeout", "lock_timeout")
    assert [setting(other, name) for name in names] == ["1min", "30s"]
    assert [setting(quick, name) for name in names] == ["400ms", "200ms"]  # what the URL says counts


def test_what_the_url_says_stays_beside_ours(url: str) -> None:
    with contextlib.closing(open_storage(with_options(url, "-c work_mem=5MB"), create=True)) as storage:
        assert [setting(storage, name) for name in ("work_mem", "lock_timeout")] == ["5MB", "30s"]


def test_a_lock_that_is_let_go_of_is_waited_for(quick: Storage, study_id: int, other: Storage, said: list[str]) -> None:
    with locked(other, study_id) as let_go:
        timer = threading.Timer(0.7, let_go)
        timer.start()
        quick.write_trials(study_id, [empty(0)], [complete(0)])
        timer.join()

    assert quick.get_n_trials(study_id) == 1
    assert len(said) == 2
    assert "lock timeout" in said[0]


def test_a_lock_that_stays_ends_in_an_error(quick: Storage, study_id: int, other: Storage) -> None:
    quick.patience = 0.5
    since = time.monotonic()
    with locked(other, study_id), pytest.raises(StudyError, match=r"starting trial 0 failed, .*lock timeout"):
        quick.write_trials(study_id, [empty(0)], [])
    assert 0.5 < time.monotonic() - since < 10
    assert quick.get_n_trials(study_id) == 0


def test_a_driver_that_stands_still_in_a_transaction_loses_its_locks_and_may_go_on(
    quick: Storage, study_id: int, other: Storage, said: list[str]
) -> None:
    slow: list[float] = []

    def stand_still(_: Connection) -> None:
        if not slow:
            since = time.monotonic()
            other.set_study_attrs(study_id, {"taken": "over"})  # waits for the row until the server ends its holder
            slow.append(time.monotonic() - since)

    quick.write_trials(study_id, [empty(0)], [complete(0)], stand_still)

    assert 0.2 < slow[0] < 10
    assert quick.get_study_user_attrs(study_id) == {"taken": "over"}
    assert quick.get_n_trials(study_id) == 1
    assert len(said) == 2
    assert "idle-in-transaction" in said[0]


def test_a_lease_is_given_back_with_little_patience_where_the_search_failed(
    quick: Storage, study_id: int, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(connection: Connection) -> None:
        connection.execute(text("lock table slimfront_lease"))
        raise ZeroDivisionError

    assert LITTLE_PATIENCE_S < 10
    monkeypatch.setattr("search.lease.LITTLE_PATIENCE_S", 0.3)
    quick.patience = 600.0
    since = time.monotonic()
    with other.engine.connect() as connection:
        with pytest.raises(ZeroDivisionError), Lease(quick, study_id):
            search(connection)
        connection.rollback()
    assert time.monotonic() - since < 10
