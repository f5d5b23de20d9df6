"""One driver per study: live processes are never overrun, dead ones never stand in the way."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from sqlalchemy import inspect, text

from search.lease import Holder, Lease, ask_to_stop, holder, refuse_held
from search.processes import process_started
from search.storage import Storage, open_storage
from spaces.errors import StudyError
from tests import processes
from tests.stores import MARIADB_SLOWLY, complete, empty, fresh_url

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


@pytest.fixture(params=MARIADB_SLOWLY)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made = open_storage(fresh_url(request.param, tmp_path), create=True)
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


def check(storage: Storage, lease: Lease) -> None:
    storage.run("checking", lease.guard, write=True)


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
        check(storage, lease)
        held = holder(storage, study_id)
        other_study = storage.create_new_study([StudyDirection.MAXIMIZE], "other")
        with Lease(storage, other_study):
            pass

    assert isinstance(held, Holder)
    assert (held.pid, held.alive) == (os.getpid(), True)
    assert 0 <= held.age_s < 5
    assert holder(storage, study_id) is None
    with pytest.raises(StudyError, match="was given back"):
        check(storage, lease)
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
        check(storage, first)


def test_a_live_process_is_not_overrun(storage: Storage, study_id: int, other: "subprocess.Popen[str]") -> None:
    change(storage, "heartbeat = heartbeat - 3600")  # stopped in a debugger, or the laptop slept
    expected = rf"study {study_id} is being searched by process {other.pid} on .* since \d{{4}}-.*wait for it, or end"
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
        check(storage, lease)
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
        check(storage, lease)

    assert left is not None
    assert not left.alive
    assert other.poll() is None


def test_another_machines_lease_is_respected_until_it_expires(
    storage: Storage, study_id: int, other: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    change(storage, "machine = 'elsewhere', host = 'far.example'")
    expected = rf"process {other.pid} on far\.example.*`--takeover` waits for it"
    with pytest.raises(StudyError, match=expected), Lease(storage, study_id, seconds=1):
        pass

    start = time.monotonic()
    with Lease(storage, study_id, takeover=True, seconds=1) as lease:
        waited_s = time.monotonic() - start
        check(storage, lease)

    assert 0.2 < waited_s < 5
    assert f"waiting for far.example (pid {other.pid})" in capsys.readouterr().err


def test_an_expired_lease_of_another_machine_needs_no_takeover(
    storage: Storage, study_id: int, other: "subprocess.Popen[str]"
) -> None:
    change(storage, "machine = 'elsewhere', host = 'far.example', heartbeat = heartbeat - 60")
    left = holder(storage, study_id)
    assert left is not None
    assert (left.host, left.pid, left.alive) == ("far.example", other.pid, False)
    assert 60 <= left.age_s < 90

    with Lease(storage, study_id) as lease:
        check(storage, lease)


def test_a_holder_that_lost_its_lease_is_told_so(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id, seconds=0.3) as lease:
        change(storage, "owner = 'somebody', host = 'far.example', pid = 7")
        with pytest.raises(StudyError, match=r"taken over by process 7 on far\.example"):
            check(storage, lease)
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


def test_it_is_asked_to_stop_from_elsewhere(storage: Storage, study_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFRONT_JOB", "raysubmit_7")
    assert ask_to_stop(storage, study_id) is None  # before there was a table
    other = open_storage(storage.url, create=False)
    with Lease(storage, study_id, seconds=0.3) as lease:
        before = lease.stop_asked
        asked = ask_to_stop(other, study_id)
        held = holder(other, study_id)
        waited = time.monotonic()
        while not lease.stop_asked and time.monotonic() - waited < 5:
            time.sleep(0.02)
        seen = lease.stop_asked
    other.close()

    assert (before, seen) == (False, True)
    assert asked is not None
    assert (asked.pid, asked.job, asked.alive) == (os.getpid(), "raysubmit_7", True)
    assert held is not None
    assert held.stopping
    assert ask_to_stop(storage, study_id) is None
    with Lease(storage, study_id) as lease:
        check(storage, lease)
        assert not lease.stop_asked


def test_the_guard_sees_the_wish_to_stop_with_the_next_write(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id, seconds=3600) as lease:
        ask_to_stop(storage, study_id)
        storage.write_trials(study_id, [empty(0)], [complete(0)], lease.guard)
        assert lease.stop_asked


def test_nothing_is_written_once_the_lease_is_lost(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id) as lease:
        storage.write_trials(study_id, [empty(0)], [], lease.guard)
        change(storage, "owner = 'somebody', host = 'far.example', pid = 7")
        with pytest.raises(StudyError, match=r"taken over by process 7 on far\.example"):
            storage.write_trials(study_id, [empty(1)], [complete(0)], lease.guard)

    (trial,) = storage.load_trials(study_id)
    assert trial.values is None


def test_a_driver_that_was_cut_off_goes_on_if_nobody_took_over(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id, seconds=0.3) as lease:
        change(storage, "heartbeat = heartbeat - 3600, machine = 'elsewhere'")
        check(storage, lease)
        time.sleep(0.4)
        held = holder(storage, study_id, seconds=30)

    assert held is not None
    assert held.alive


def test_the_table_of_an_earlier_version_gets_its_new_columns(storage: Storage, study_id: int) -> None:
    with Lease(storage, study_id):
        pass
    with storage.engine.begin() as connection:
        connection.execute(text("alter table slimfront_lease drop column stop"))
        connection.execute(text("alter table slimfront_lease drop column job"))

    assert holder(storage, study_id) is None
    with Lease(storage, study_id):
        asked = ask_to_stop(storage, study_id)
    assert asked is not None
    assert asked.alive


def test_a_launch_is_not_refused_for_the_table_of_an_earlier_version(storage: Storage, study_id: int) -> None:
    refuse_held(storage, study_id)  # there is none at all
    with Lease(storage, study_id):
        with pytest.raises(StudyError, match="is being searched by process"):
            refuse_held(storage, study_id)
        with storage.engine.begin() as connection:
            connection.execute(text("alter table slimfront_lease drop column stop"))
            connection.execute(text("alter table slimfront_lease drop column job"))

        refuse_held(storage, study_id)
        assert ask_to_stop(storage, study_id) is None
        with pytest.raises(StudyError, match="is being searched by process"), Lease(storage, study_id):
            pass  # whoever takes it knows the columns


def test_of_many_that_start_at_once_one_gets_it(storage: Storage, study_id: int) -> None:
    racers = [processes.start(HOLD.format(url=storage.url, study_id=study_id)) for _ in range(3)]
    waiting = [racer for racer in racers if racer.stdout is not None and racer.stdout.readline() == "held\n"]
    said = [racer.communicate("\n") for racer in racers]

    assert len(waiting) == 1
    assert sorted(racer.returncode for racer in racers) == [0, 1, 1]
    assert sum("StudyError: study" in errors for _, errors in said) == 2
