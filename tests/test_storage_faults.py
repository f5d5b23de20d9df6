"""A database that goes away for a while: everything is stored once, as if nothing had been."""

import errno
import itertools
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy import Connection, event, text

from search.lease import Lease
from search.storage import Storage, open_storage
from spaces.errors import StudyError
from tests.mariadb import MariaServer
from tests.postgres import PostgresServer
from tests.stores import DIRECTIONS, complete, end, fresh_url, start

Server = PostgresServer | MariaServer


@pytest.fixture(scope="module", params=[PostgresServer, MariaServer], ids=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of this module's own, to be stopped and killed."""
    made: Server = request.param()
    yield made
    made.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def storage(server: Server, said: list[str]) -> Iterator[Storage]:
    made = open_storage(server.fresh_database(), create=True, patience=60.0, say=said.append)
    yield made
    made.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study(DIRECTIONS, "digits")


@pytest.fixture
def local(tmp_path: Path, said: list[str]) -> Iterator[Storage]:
    """A storage in an SQLite file."""
    made = open_storage(fresh_url("sqlite", tmp_path), create=True, patience=60.0, say=said.append)
    yield made
    made.close()


def states(storage: Storage, study_id: int) -> list[TrialState]:
    return [trial.state for trial in storage.load_trials(study_id)]


def later(seconds: float, act: Callable[[], None]) -> threading.Timer:
    """Does something after a while, in a thread that is not waited for."""
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_is_waited_for(storage: Storage, study_id: int, server: Server, said: list[str], how: str) -> None:
    with Lease(storage, study_id) as lease:
        storage.write_trials(study_id, [start(0)], [], lease.guard)
        {"stop": server.stop, "kill": server.kill}[how]()
        restart = later(1.0, server.start)
        storage.write_trials(study_id, [start(1)], [end(0)], lease.guard)
        restart.join()
        storage.write_trials(study_id, [], [end(1)], lease.guard)

    assert states(storage, study_id) == [TrialState.COMPLETE, TrialState.PRUNED]
    assert len(said) == 2
    assert "telling trial 0: the database" in said[0]
    assert "does not answer" in said[0]
    assert "trying again for up to 60 s" in said[0]
    assert "secret" not in "".join(said)
    assert "the database answers again after" in said[1]


def test_a_pause_is_nothing_to_speak_of(storage: Storage, study_id: int, server: Server, said: list[str]) -> None:
    server.pause()
    later(1.0, server.resume)
    since = time.monotonic()
    storage.write_trials(study_id, [start(0)], [end(0)])

    assert time.monotonic() - since > 0.9
    assert said == []
    assert states(storage, study_id) == [TrialState.COMPLETE]


def cut(storage: Storage, server: Server, connection: Connection) -> None:
    """Ends the server's side of a connection, as an administrator may."""
    if storage.engine.dialect.name == "postgresql":
        server.ask(f"select pg_terminate_backend({connection.scalar(text('select pg_backend_pid()'))})")
    else:
        server.ask(f"kill {connection.scalar(text('select connection_id()'))}")
    time.sleep(0.2)


def test_a_connection_that_is_cut_in_a_transaction(
    storage: Storage, study_id: int, server: Server, said: list[str]
) -> None:
    calls = []

    def guard(connection: Connection) -> None:
        calls.append(0)
        if len(calls) == 1:
            cut(storage, server, connection)

    storage.write_trials(study_id, [start(0)], [end(0)], guard)
    storage.set_study_attrs(study_id, {"a": 1}, guard)

    assert len(calls) == 3
    assert len(said) == 2
    assert states(storage, study_id) == [TrialState.COMPLETE]


@pytest.mark.parametrize("stored", [True, False])
def test_a_commit_whose_answer_is_lost(
    storage: Storage, study_id: int, server: Server, said: list[str], stored: bool
) -> None:
    """The connection ends right after, or right before, the server has committed."""
    done: list[int] = []

    def lose(connection: Connection) -> None:
        if done:
            return
        done.append(0)
        if stored:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.commit()
        cut(storage, server, connection)  # begins another transaction, so that the commit which follows is sent

    storage.write_trials(study_id, [start(0)], [])
    event.listen(storage.engine, "commit", lose)
    storage.write_trials(study_id, [start(1), start(2)], [end(0), end(1)])
    done.clear()
    storage.write_trials(study_id, [start(3, {"asked": 3})], [])
    done.clear()
    storage.write_trials(study_id, [], [end(2), end(3)])

    told = storage.load_trials(study_id)
    assert [trial.number for trial in told] == [0, 1, 2, 3]
    assert [trial.state for trial in told] == [end(n).state for n in range(4)]
    assert len(said) == 6
    with pytest.raises(StudyError, match="trial 3 is COMPLETE, not RUNNING"):
        storage.write_trials(study_id, [], [end(3)])


def test_what_another_process_wrote_meanwhile_is_not_taken_for_ours(
    storage: Storage, study_id: int, server: Server
) -> None:
    other = open_storage(storage.url, create=False)
    calls = []

    def guard(connection: Connection) -> None:
        calls.append(0)
        if len(calls) == 1:
            cut(storage, server, connection)
            other.write_trials(study_id, [start(1), start(2)], [])

    storage.write_trials(study_id, [start(0)], [])
    with pytest.raises(StudyError, match=r"trial 1 cannot start.* 3 trials"):
        storage.write_trials(study_id, [start(1)], [complete(0)], guard)
    other.close()
    assert states(storage, study_id) == [TrialState.RUNNING] * 3


def test_patience_ends(storage: Storage, study_id: int, server: Server, said: list[str]) -> None:
    storage.patience = 1.0
    server.stop()
    since = time.monotonic()
    with pytest.raises(StudyError, match=r"starting trial 0 failed, .*start again") as caught:
        storage.write_trials(study_id, [start(0)], [])
    waited = time.monotonic() - since
    storage.patience = 60.0
    later(0.5, lambda: setattr(storage, "patience", 0.0))
    with pytest.raises(StudyError):
        storage.load_trials(study_id)
    server.start()

    assert 0.9 < waited < 30
    assert "secret" not in str(caught.value)
    assert len(said) == 1


def test_a_wrong_password_is_not_waited_for(storage: Storage, study_id: int, server: Server) -> None:
    if isinstance(server, PostgresServer):
        pytest.skip("the test server trusts whoever reaches it")
    storage.close()
    server.ask("alter user 'slimfront'@'127.0.0.1' identified by 'another'")
    try:
        with pytest.raises(StudyError, match="Access denied"):
            storage.load_trials(study_id)
    finally:
        server.ask("alter user 'slimfront'@'127.0.0.1' identified by 'secret @:/'")


def test_a_dropped_database_is_not_waited_for(storage: Storage, study_id: int, server: Server) -> None:
    name = storage.engine.url.database
    storage.close()
    server.ask(f"drop database {name}")
    with pytest.raises(StudyError, match=f"{name}.* says: .*(does not exist|Unknown database)"):
        storage.load_trials(study_id)


def test_a_locked_file_is_waited_for(local: Storage, said: list[str]) -> None:
    study_id = local.create_new_study(DIRECTIONS, "digits")
    event.listen(local.engine, "connect", lambda connection, _: connection.execute("pragma busy_timeout = 50"))
    local.close()
    other = sqlite3.connect(local.url.removeprefix("sqlite:///"), check_same_thread=False, isolation_level=None)
    other.execute("begin immediate")
    later(1.0, other.rollback)
    local.write_trials(study_id, [start(0)], [end(0)])
    other.close()

    assert len(said) == 2
    assert "database is locked" in said[0]
    assert states(local, study_id) == [TrialState.COMPLETE]


def test_a_full_database_is_waited_for(local: Storage, said: list[str]) -> None:
    study_id = local.create_new_study(DIRECTIONS, "digits")
    most = [1]
    event.listen(local.engine, "checkout", lambda raw, *_: raw.execute(f"pragma max_page_count = {most[0]}"))
    later(1.0, lambda: most.__setitem__(0, 2**30))
    local.write_trials(study_id, [start(n) for n in range(200)], [])

    assert len(said) == 2
    assert "database or disk is full" in said[0]
    assert len(local.load_trials(study_id)) == 200


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_is_waited_for(tmp_path: Path, said: list[str]) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("needs leave to mount a small file system")
    try:
        storage = open_storage(fresh_url("sqlite", tmp_path), create=True, patience=60.0, say=said.append)
        study_id = storage.create_new_study(DIRECTIONS, "digits")
        ballast = tmp_path / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space") as full:
            file.writelines(itertools.repeat(bytes(4096)))
        assert full.value.errno == errno.ENOSPC
        later(1.0, ballast.unlink)
        storage.write_trials(study_id, [start(n) for n in range(100)], [])
        found = len(storage.load_trials(study_id))
        storage.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)

    assert found == 100
    assert len(said) == 2


def test_a_deleted_file_stops_the_search(local: Storage, tmp_path: Path) -> None:
    study_id = local.create_new_study(DIRECTIONS, "digits")
    local.write_trials(study_id, [start(0)], [])
    file = tmp_path / "study.db"
    kept = tmp_path / "kept.db"
    file.rename(kept)
    with pytest.raises(StudyError, match=r"the database file .*study\.db was deleted or moved away; put it back"):
        local.write_trials(study_id, [], [end(0)])
    assert not file.exists()
    shutil.copy(kept, file)
    with pytest.raises(StudyError, match="it was exchanged"):
        local.load_trials(study_id)


def test_a_damaged_file_stops_the_search(local: Storage, tmp_path: Path) -> None:
    study_id = local.create_new_study(DIRECTIONS, "digits")
    local.write_trials(study_id, [start(n) for n in range(300)], [])
    local.close()
    with (tmp_path / "study.db").open("r+b") as file:
        for page in range(1, os.path.getsize(tmp_path / "study.db") // 4096):
            file.seek(4096 * page)
            file.write(b"\xff" * 2048)
    with pytest.raises(StudyError, match=r"malformed; the file is damaged: put a copy .*\.recover"):
        local.load_trials(study_id)
