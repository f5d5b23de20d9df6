"""One driver per study: live processes are never overrun, dead ones never stand in the way."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from sqlalchemy import inspect, text

from search.lease import Holder, Lease, holder, process_started
from search.storage import Storage, open_storage
from spaces.errors import StudyError
from tests import processes
from tests.postgres import fresh_database

HOLD = """
import sys
from search.lease import Lease
from search.storage import open_storage
storage = open_storage({url!r}, create=False)
with Lease(storage, {study_id}):
    print("held", flush=True)
    sys.stdin.readline()
storage.close()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    url = f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else fresh_database()
    made = open_storage(url, create=True)
    yield made
    made.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study([StudyDirection.MAXIMIZE], "digits")


@pytest.fixture
def other(storage: Storage, study_id: int) -> Iterator["subprocess.Popen[str]"]:
    """A live process that holds the lease, until it reads a line."""
    with processes.start(HOLD.format(url=storage.url, study_id=study_id)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def change(storage: Storage, assignment: str) -> None:
    with storage.engine.begin() as connection:
        connection.execute(text(f"update slimfront_lease set {assignment}"))


def column(storage: Storage, name: str) -> object:
    with storage.engine.connect() as connection:
        return connection.scalar(text(f"select {name} from slimfront_lease"))


def test_the_lease_is_held_and_given_back(storage: Storage, study_id: int) -> None:
    assert holder(storage, study_id) is None
    assert not inspect(storage.engine).has_table("slimfront_lease")

    with Lease(storage, study_id) as lease:
        lease.check()
        held = holder(storage, study_id)
        other_study = storage.create_new_study([StudyDirection.MAXIMIZE], "other")
        with Lease(storage, other_study):
            pass

    assert isinstance(held, Holder)
    assert (held.pid, held.alive) == (os.getpid(), True)
    assert 0 <= held.age_s < 5
    assert holder(storage, study_id) is None
    with pytest.raises(StudyError, match="was given back"):
        lease.check()
    with Lease(storage, study_id):
        pass


def test_it_is_given_back_when_the_search_fails(storage: Storage, study_id: int) -> None:
    with pytest.raises(ZeroDivisionError), Lease(storage, study_id):
        raise ZeroDivisionError

    assert holder(storage, study_id) is None


def test_what_failed_first_is_what_is_raised(storage: Storage, study_id: int) -> None:
    def search() -> None:
        drop(storage)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Lease(storage, study_id):
        search()
    with pytest.raises(StudyError, match="giving back the lease failed"), Lease(storage, study_id):
        drop(storage)


def drop(storage: Storage) -> None:
    with storage.engine.begin() as connection:
        connection.execute(text("drop table slimfront_lease"))


def test_two_leases_in_one_process_conflict(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id) as first:
        with pytest.raises(StudyError, match=f"searched by process {os.getpid()} "), Lease(storage, study_id):
            pass
        first.check()


def test_a_live_process_is_not_overrun(storage: Storage, study_id: int, other: "subprocess.Popen[str]") -> None:
    change(storage, "heartbeat = heartbeat - 3600")  # stopped in a debugger, or the laptop slept
    expected = rf"study {study_id} is being searched by process {other.pid} on .* since \d{{4}}-.*wait for it, or stop"
    for takeover in (False, True):
        with pytest.raises(StudyError, match=expected), Lease(storage, study_id, takeover=takeover):
            pass
    held = holder(storage, study_id)
    assert held is not None
    assert (held.pid, held.alive) == (other.pid, True)
    assert held.age_s > 3500

    out, errors = other.communicate("\n")
    assert (out, errors, other.returncode) == ("", "", 0)
    assert holder(storage, study_id) is None


def test_a_killed_holder_is_replaced_at_once(storage: Storage, study_id: int, other: "subprocess.Popen[str]") -> None:
    other.kill()
    while process_started(other.pid) is not None:  # it is a zombie then: nobody waited for it
        time.sleep(0.01)
    left = holder(storage, study_id)
    with Lease(storage, study_id) as lease:
        lease.check()
        held = holder(storage, study_id)

    assert left is not None
    assert (left.pid, left.alive) == (other.pid, False)
    assert held is not None
    assert held.pid == os.getpid()


def test_a_process_that_got_a_dead_holders_id_is_not_the_holder(
    storage: Storage, study_id: int, other: "subprocess.Popen[str]"
) -> None:
    change(storage, "process_started = '1'")

    left = holder(storage, study_id)
    with Lease(storage, study_id) as lease:
        lease.check()

    assert left is not None
    assert not left.alive
    assert other.poll() is None


def test_another_machines_lease_is_respected_until_it_expires(
    storage: Storage, study_id: int, other: "subprocess.Popen[str]", caplog: pytest.LogCaptureFixture
) -> None:
    change(storage, "machine = 'elsewhere', host = 'far.example'")
    expected = rf"process {other.pid} on far\.example.*`--takeover` waits for it"
    with pytest.raises(StudyError, match=expected), Lease(storage, study_id, seconds=1):
        pass

    start = time.monotonic()
    with Lease(storage, study_id, takeover=True, seconds=1) as lease:
        waited_s = time.monotonic() - start
        lease.check()

    assert 0.2 < waited_s < 5
    assert f"waiting for far.example (pid {other.pid})" in caplog.text


def test_an_expired_lease_of_another_machine_needs_no_takeover(
    storage: Storage, study_id: int, other: "subprocess.Popen[str]"
) -> None:
    change(storage, "machine = 'elsewhere', host = 'far.example', heartbeat = heartbeat - 60")
    left = holder(storage, study_id)
    assert left is not None
    assert (left.host, left.pid, left.alive) == ("far.example", other.pid, False)
    assert 60 <= left.age_s < 90

    with Lease(storage, study_id) as lease:
        lease.check()


def test_a_holder_that_lost_its_lease_is_told_so(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id, seconds=0.3) as lease:
        change(storage, "owner = 'somebody', host = 'far.example', pid = 7")
        with pytest.raises(StudyError, match=r"taken over by process 7 on far\.example"):
            lease.check()
        heartbeat = column(storage, "heartbeat")
        time.sleep(0.4)
        assert column(storage, "heartbeat") == heartbeat

    assert column(storage, "owner") == "somebody"


def test_the_heartbeat_is_renewed(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id, seconds=0.3):
        first = column(storage, "heartbeat")
        time.sleep(0.6)
        later = column(storage, "heartbeat")

    assert isinstance(first, float)
    assert isinstance(later, float)
    assert 0.1 < later - first < 5
    assert abs(later - time.time()) < 60


def test_of_many_that_start_at_once_one_gets_it(storage: Storage, study_id: int) -> None:
    racers = [processes.start(HOLD.format(url=storage.url, study_id=study_id)) for _ in range(3)]
    waiting = [racer for racer in racers if racer.stdout is not None and racer.stdout.readline() == "held\n"]
    said = [racer.communicate("\n") for racer in racers]

    assert len(waiting) == 1
    assert sorted(racer.returncode for racer in racers) == [0, 1, 1]
    assert sum("StudyError: study" in errors for _, errors in said) == 2


def test_processes_are_told_apart_by_their_start() -> None:
    with processes.start("input()") as process:
        first = process_started(process.pid)
        assert first
        assert first == process_started(process.pid) != process_started(os.getppid())
        process.kill()
    assert process_started(process.pid) is None
    assert process_started(1) is not None


def test_processes_are_told_apart_without_proc() -> None:
    from search.lease import _started_by_ps

    with processes.start("input()") as process:
        assert _started_by_ps(process.pid)
        process.kill()
        while process_started(process.pid) is not None:
            time.sleep(0.01)
        assert _started_by_ps(process.pid) is None  # a zombie
    assert _started_by_ps(process.pid) is None
