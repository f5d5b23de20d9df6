"""The study database with several processes at it, and with one that is killed."""

import signal
import threading
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.storage import Start, open_storage
from tests import processes
from tests.stores import MARIADB_SLOWLY, complete, fresh_url


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def test_a_killed_process_leaves_what_it_committed(url: str) -> None:
    script = f"""
import os, signal
from optuna.study import StudyDirection
from search.storage import Start, open_storage
from tests.stores import complete, empty
storage = open_storage({url!r}, create=True)
study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "killed")
storage.write_trials(study_id, [empty(0)], [complete(0, [1.0])])
storage.write_trials(study_id, [Start(1, {{}}, {{}}, {{"policy": "x"}}, {{}})], [])
def die(connection):
    connection.exec_driver_sql("delete from trials")
    os.kill(os.getpid(), signal.SIGKILL)
storage.run("dying", die, write=True)
"""
    with processes.start(script) as killed:
        assert (killed.wait(), killed.stderr.read() if killed.stderr else "") == (-signal.SIGKILL, "")
    storage = open_storage(url, create=False)
    study_id = storage.get_study_id_from_name("killed")
    left = storage.load_trials(study_id)
    storage.write_trials(study_id, [], [complete(1, [2.0])])

    assert [trial.state for trial in left] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert [trial.values for trial in storage.load_trials(study_id)] == [[1.0], [2.0]]
    storage.close()


@pytest.mark.parametrize("kind", MARIADB_SLOWLY)
def test_readers_and_writers_do_not_lock_each_other_out(tmp_path: Path, kind: str) -> None:
    storage = open_storage(fresh_url(kind, tmp_path), create=True)
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE])
    errors: list[BaseException] = []

    def note() -> None:  # as Optuna Dashboard does
        other = RDBStorage(storage.url)
        try:
            for number in range(30):
                other.set_study_user_attr(study_id, "note", number)
                other.get_all_trials(study_id)
        except BaseException as error:
            errors.append(error)
        finally:
            other.remove_session()
            other.engine.dispose()

    thread = threading.Thread(target=note)
    thread.start()
    params = {f"layers.{site}/ratio": 0.5 for site in range(20)}
    drawn_from = dict.fromkeys(params, FloatDistribution(0.0, 1.0))
    for number in range(60):
        storage.write_trials(study_id, [Start(number, params, drawn_from, {}, {}, {"asked": number})], [])
        storage.write_trials(study_id, [], [complete(number, [1.0])])
    thread.join()

    assert errors == []
    attrs = storage.get_study_user_attrs(study_id)
    assert attrs == {"note": 29, "asked": 59}
    storage.close()


def test_processes_may_make_one_database_at_once(url: str) -> None:
    script = f"from search.storage import open_storage; open_storage({url!r}, create=True).close()"
    makers = [processes.start(script) for _ in range(3)]

    assert [maker.communicate() for maker in makers] == [("", "")] * 3
    storage = open_storage(url, create=False)
    assert storage.get_all_studies() == []
    storage.close()
