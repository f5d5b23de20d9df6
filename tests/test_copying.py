"""Moving a study to another database: row for row the same, whatever interrupts it, and it goes on there."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import create_engine, text

from search.copying import copy
from search.front import front
from search.lease import Lease
from search.loop import launch
from search.storage import open_storage
from spaces.errors import StudyError
from tests.commands import refused, run
from tests.copies import NAME, TOLD, copied, cut, go_on, quiet, tables, write
from tests.postgres import fresh_database
from tests.searches import STUDY, attrs_of, outcomes_of, rows_of, tiny, trials_of, untell, url_of
from tests.stores import DIRECTIONS, fresh_url


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study; made once."""
    folder = tmp_path_factory.mktemp("written")
    write(f"sqlite:///{folder}/source.db")
    return folder / "source.db"


@pytest.fixture
def source(tmp_path: Path, written: Path) -> str:
    shutil.copy(written, tmp_path)
    return f"sqlite:///{tmp_path}/source.db"


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/target.db"


class TestSameRows:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("sqlite", "postgresql"),
            ("postgresql", "sqlite"),
            ("sqlite", "sqlite"),
            ("sqlite", "mariadb"),
            ("mariadb", "postgresql"),
        ],
    )
    def test_table_by_table(self, tmp_path: Path, one: str, other: str) -> None:
        source, target = write(fresh_url(one, tmp_path, "source.db")), fresh_url(other, tmp_path, "target.db")
        done = copied(source, target)
        mine, theirs = tables(source), tables(target)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name] or name == "trial_heartbeats", name
            if name == "trials" and "mariadb" in (one, other):  # which keeps whole seconds
                cut = [
                    [value.replace(microsecond=0) if hasattr(value, "hour") else value for value in row]
                    for row in mine[name]
                ]
                assert [list(row) for row in theirs[name]] == cut
            elif name.startswith("study_"):
                assert sorted(mine[name], key=repr) == sorted(theirs[name], key=repr), name
            else:
                assert mine[name] == theirs[name], name
        assert (done.trials, done.copied) == (TOLD + 3, TOLD + 3)
        assert done.compared == {
            "parameters": 48,
            "values": 14,
            "intermediate values": 3,
            "user attributes": 12 * 5 + 7 * 2 + 2,
            "system attributes": 12,
            "outcomes": 14,
            "study attributes": len(mine["study_user_attributes"]) + len(mine["study_system_attributes"]),
            "documents": 2,
        }
        assert done.caches == (Path("/caches/new"), Path("/caches/old"))

    def test_what_optuna_reads(self, source: str, target: str) -> None:
        copied(source, target)
        one, other = (optuna.load_study(study_name=NAME, storage=url) for url in (source, target))
        assert [self.without_id(trial) for trial in one.trials] == [self.without_id(trial) for trial in other.trials]
        assert (one.directions, one.metric_names, one.user_attrs) == (
            other.directions,
            other.metric_names,
            other.user_attrs,
        )
        assert [trial.number for trial in one.best_trials] == [trial.number for trial in other.best_trials]

    @staticmethod
    def without_id(trial: optuna.trial.FrozenTrial) -> list[str]:
        return [f"{key}={value!r}" for key, value in vars(trial).items() if key != "_trial_id"]  # nan is not nan

    def test_other_studies_are_left_alone(self, source: str, target: str) -> None:
        write(target.replace("target", "more"), told=2, asked=2)
        target = target.replace("target", "more")
        with closing(open_storage(target, create=False)) as storage:
            storage.delete_study(storage.get_study_id_from_name(NAME))  # its id is given again, its outcomes are there
        before = tables(target, "other")
        copied(source, target)
        assert tables(target, "other") == before
        assert tables(target)["slimfront_outcomes"] == tables(source)["slimfront_outcomes"]

    def test_no_lease_is_left_or_copied(self, source: str, target: str) -> None:
        copied(source, target)
        for url in (source, target):
            engine = create_engine(url)
            with engine.connect() as connection:
                assert connection.scalar(text("select count(*) from slimfront_lease")) == 0
            engine.dispose()


class TestInterrupted:
    def test_at_any_statement(self, source: str, tmp_path: Path) -> None:
        whole, at = tables(source), 0
        while cut(NAME, source, target := f"sqlite:///{tmp_path}/target{at}.db", at):
            with pytest.raises(StudyError):
                front(NAME, target)
            copied(source, target, batch=3)
            for name, rows in tables(target).items():
                assert sorted(rows, key=repr) == sorted(whole[name], key=repr), name
            at += 7
        assert at > 35

    @pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
    def test_killed(self, source: str, tmp_path: Path, kind: str) -> None:
        target = fresh_url(kind, tmp_path, "target.db")
        for trials in (4, 8):  # the second time it goes on after 4, and is killed again
            script = f"""
import os, signal
from search.copying import copy
from sqlalchemy import Connection, Engine, event
def after(connection, cursor, statement, parameters, context, many):
    if "INSERT INTO trials" in statement:
        after.seen += 1
        if after.seen == {2}:
            os.kill(os.getpid(), signal.SIGKILL)
after.seen = 0
event.listen(Engine, "after_cursor_execute", after)
copy({NAME!r}, {source!r}, {target!r}, print, batch=4)
"""
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
            command = [sys.executable, "-c", script]
            killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            assert len(tables(target)["trials"]) == trials
            with pytest.raises(StudyError, match="is not all there: it is being copied from"):
                front(NAME, target)
        said: list[str] = []
        done = copy(NAME, source, target, said.append, batch=4)
        assert (done.copied, done.trials) == (4, 12)
        assert said == ["8 of 12 trials are there already"]
        assert tables(target)["trial_params"] == tables(source)["trial_params"]

    def test_a_stop_that_is_asked_for(self, source: str, target: str) -> None:
        stop = threading.Event()
        said: list[str] = []
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            copy(NAME, source, target, said.append, batch=5, stop=stop)
        assert tables(target)["trials"] == []
        assert copied(source, target).copied == TOLD + 3

    def test_nothing_is_left_to_do(self, source: str, target: str) -> None:
        copied(source, target)
        before = tables(target)
        assert copied(source, target).copied == 0
        assert tables(target) == before

    def test_a_half_copy_is_launched_and_shown_by_nobody(self, tmp_path: Path) -> None:
        source, target = url_of(tmp_path), f"sqlite:///{tmp_path}/target.db"
        launch(tiny(tmp_path, trials=3))
        for at in (12, 24):  # before the first trial, and after some
            assert cut(STUDY, source, target, at, batch=1)
            for look in (lambda: front(STUDY, target), lambda: launch(tiny(tmp_path, storage=target))):
                with pytest.raises(StudyError, match="is not all there: it is being copied from"):
                    look()


class TestGrown:
    def test_the_new_trials_are_brought(self, source: str, target: str) -> None:
        copied(source, target)
        go_on(source, told=14, asked=17)
        done = copied(source, target)
        assert (done.copied, done.trials) == (17 - TOLD, 17)  # those that ran then are copied again
        mine, theirs = tables(source), tables(target)
        assert all(mine[name] == theirs[name] for name in mine if not name.startswith("study_"))

    @pytest.mark.parametrize(("told", "asked"), [(TOLD + 1, TOLD + 3), (TOLD, TOLD + 4), (14, 20)])
    def test_not_where_the_target_has_moved_on(self, source: str, target: str, told: int, asked: int) -> None:
        copied(source, target)
        go_on(target, told, asked)
        before = tables(target)
        if asked <= 14:
            go_on(source, told=14, asked=17)
        with pytest.raises(StudyError, match="has gone on"):
            copied(source, target)
        assert tables(target) == before

    def test_back_to_where_it_came_from(self, source: str, target: str) -> None:
        copied(source, target)
        go_on(target, told=14, asked=17)
        assert copied(target, source).trials == 17
        assert tables(source)["trial_values"] == tables(target)["trial_values"]


class TestRefusals:
    def test_the_same_database(self, source: str, tmp_path: Path) -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "source.db")
        for target in (source, f"sqlite:///{tmp_path}/../{tmp_path.name}/source.db", f"sqlite:///{tmp_path}/link.db"):
            with pytest.raises(StudyError, match="the same database"):
                copied(source, target)

    def test_a_driver_in_either(self, source: str, target: str) -> None:
        copied(source, target)
        go_on(source, 14, 14)
        for url in (source, target):
            with (
                closing(open_storage(url, create=False)) as storage,
                Lease(storage, storage.get_study_id_from_name(NAME)),
                pytest.raises(StudyError, match=f"process {os.getpid()} on .*: wait for it, or "),
            ):
                copied(source, target)
        assert len(tables(target)["trials"]) == TOLD + 3

    def test_another_study_of_this_name(self, source: str, target: str) -> None:
        write(target)  # of the same settings, at another time
        before = tables(target)
        with pytest.raises(StudyError, match=f"holds another study {NAME!r}: its trial 0 is not that of"):
            copied(source, target)
        assert tables(target) == before

    @pytest.mark.parametrize("directions", [DIRECTIONS, DIRECTIONS[:1]])
    def test_a_study_of_another_program(self, source: str, target: str, directions: list[StudyDirection]) -> None:
        made = optuna.create_study(storage=target, study_name=NAME, directions=directions)
        made.set_user_attr("note", "mine")
        with pytest.raises(StudyError, match=f"holds another study {NAME!r}, of other settings"):
            copied(source, target)
        assert made.user_attrs == {"note": "mine"}

    def test_a_half_copy_of_another_source(self, source: str, target: str, tmp_path: Path) -> None:
        assert cut(NAME, source, target, 30)
        assert 0 < len(tables(target)["trials"]) < TOLD
        other = write(f"sqlite:///{tmp_path}/another.db")
        with pytest.raises(StudyError, match="its trial 0 is not that of"):
            copied(other, target)
        assert copied(source, target).trials == TOLD + 3

    def test_what_is_no_study(self, source: str, target: str, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match="no study database at"):
            copied(f"sqlite:///{tmp_path}/none.db", target)
        with pytest.raises(StudyError, match="was not started by"):
            copy("other", source, target, quiet)
        with pytest.raises(StudyError, match="holds no study 'nobody'"):
            copy("nobody", source, target, quiet)
        assert not (tmp_path / "target.db").exists()

    def test_a_target_that_changes_what_is_written(self, source: str, target: str) -> None:
        open_storage(target, create=True).close()
        engine = create_engine(target)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "create trigger wrong after insert on trial_params when new.param_name = 'temperature' begin "
                    "update trial_params set param_value = 1.5 where param_id = new.param_id; end"
                )
            )
        with pytest.raises(StudyError, match="trial 0 has other parameters; it stays unfinished"):
            copied(source, target)
        with pytest.raises(StudyError):
            front(NAME, target)
        with engine.begin() as connection:
            connection.execute(text("drop trigger wrong"))
        engine.dispose()
        assert copied(source, target).trials == TOLD + 3
        assert tables(target)["trial_params"] == tables(source)["trial_params"]


class TestGoesOn:
    @pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
    def test_as_if_it_had_always_been_there(self, undisturbed: Path, tmp_path: Path, kind: str) -> None:
        launch(tiny(tmp_path, trials=13))
        untell(tmp_path, 3)
        target = fresh_url(kind, tmp_path, "target.db")
        assert copy(STUDY, url_of(tmp_path), target, quiet).trials == 13
        assert [trial.state for trial in trials_of(target)[-3:]] == [TrialState.RUNNING] * 3
        launch(tiny(tmp_path, storage=target))
        assert rows_of(target) == rows_of(undisturbed)
        assert outcomes_of(target) == outcomes_of(undisturbed)
        moved, stayed = attrs_of(target), attrs_of(undisturbed)
        assert moved["test"].items() >= stayed["test"].items()  # and those of the front after 13 trials
        elsewhere = ("cache", "config", "test")
        assert {k: v for k, v in moved.items() if k not in elsewhere} == {
            k: v for k, v in stayed.items() if k not in elsewhere
        }


class TestCommand:
    def test_it_says_what_it_compared_and_what_is_next(self, source: str, target: str) -> None:
        ended = run("copy", NAME, "--from", source, "--to", target)
        assert (ended.code, ended.err) == (0, "")
        lines = ended.out.splitlines()
        assert lines[0] == f"study {NAME}: copied 12 of 12 trials from {source} to {target}"
        assert lines[1].startswith("compared, the same in both: 12 trials, 48 parameters, 14 values, ")
        assert "/caches/new, /caches/old" in lines[2]
        assert f"  export SLIMFRONT_STORAGE={target}" in lines
        assert f"  slimfront front {NAME}" in lines

    def test_passwords_are_not_shown(self, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
        target = fresh_database().replace("postgres:@", "postgres:hush@")
        monkeypatch.setenv("SLIMFRONT_STORAGE", source)
        ended = run("copy", NAME, "--to", target)
        assert ended.code == 0, ended.err
        assert "hush" not in ended.out + ended.err
        assert "postgres:***@" in ended.out
        assert "# with the password in it" in ended.out
        with closing(open_storage(target, create=False)) as storage:
            assert "hush" not in str(storage.get_study_user_attrs(storage.get_study_id_from_name(NAME)))

    def test_wrong_urls(self, source: str) -> None:
        assert "names 'oracle'" in refused(run("copy", NAME, "--from", source, "--to", "oracle://a/b"), 2)
        assert "not a database URL" in refused(run("copy", NAME, "--from", source, "--to", "here.db"), 2)
        assert "the same database" in refused(run("copy", NAME, "--from", source, "--to", source), 1)
