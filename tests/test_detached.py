"""Detached searches: submitted, watched and stopped, from the machine that launched them or another one."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.lease import Lease, holder
from search.pool.jobs import Jobs
from search.status import status
from search.storage import open_storage
from search.study import open_study
from tests import processes
from tests.commands import refused, run, start
from tests.heads import free_ports, ray_head
from tests.postgres import fresh_database
from tests.searches import STUDY, TRIALS, rows_of, tiny
from tests.studies import write_made_up

TINY = Path(__file__).parent / "tiny.py"
SECRET = "s3cret"
PATIENCE_S = 60.0
HOLD = """
import sys
from search.lease import Lease
from search.storage import open_storage
storage = open_storage({url!r}, create=False)
with Lease(storage, storage.get_study_id_from_name("made-up")):
    print("held", flush=True)
    sys.stdin.readline()
"""


def search_in(folder: Path, storage: str | None, workload: str = "workload", **changed: Any) -> Path:
    """The config file of the tiny search, whose workload is a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(TINY, folder / "tiny.py")
    settings = tiny(folder).model_dump(mode="json", exclude_defaults=True)
    settings |= {"workload": f"tiny.py:{workload}", "storage": storage, **changed}
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder}/tiny.db"


def driver_of(url: str) -> int | None:
    """The live process that searches the tiny study."""
    return None if (found := status(STUDY, url).driver) is None or not found.alive else found.pid


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of no cluster, which is the default one."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", url)
    return url


class TestWithoutACluster:
    def test_launch_says_where_it_looked(self, nowhere: str, tmp_path: Path) -> None:
        file = search_in(tmp_path, url_in(tmp_path))
        said = refused(run("launch", str(file), "--detach"), 1)
        assert f"cannot reach the Ray cluster at {nowhere}" in said

    def test_the_config_names_the_cluster(self, nowhere: str, tmp_path: Path) -> None:
        other = f"http://127.0.0.1:{free_ports(1)[0]}"
        file = search_in(tmp_path, url_in(tmp_path), ray={"jobs": other})
        assert other in refused(run("launch", str(file), "--detach"), 1)

    def test_a_workload_elsewhere_is_refused(self, nowhere: str, tmp_path: Path) -> None:
        file = search_in(tmp_path / "one", url_in(tmp_path))
        shutil.copy(TINY, tmp_path / "tiny.py")
        file.write_text(file.read_text().replace("tiny.py:workload", "../tiny.py:workload"))
        assert "name a folder that holds both" in refused(run("launch", str(file), "--detach"), 2)

    def test_a_study_that_is_searched_is_not_submitted(self, nowhere: str, tmp_path: Path) -> None:
        url = url_in(tmp_path)
        file = search_in(tmp_path, url)
        with closing(open_storage(url, create=True)) as storage, Lease(storage, open_study(storage, STUDY)[0]):
            said = refused(run("launch", str(file), "--detach"), 1)
        assert f"is being searched by process {os.getpid()} on " in said
        assert f"slimfront stop {STUDY}" in said

    def test_logs_and_stop_say_what_is_not_there(self, nowhere: str, tmp_path: Path) -> None:
        url = write_made_up(tmp_path)
        assert nowhere in refused(run("logs", "made-up", "--storage", url), 1)
        assert "nobody searches study 'made-up'; there is nothing" in refused(run("stop", "--storage", url), 1)
        for command in ("logs", "stop"):
            refused(run(command, "other", "--storage", url), 1)
            assert "no study database" in refused(run(command, "--storage", url_in(tmp_path)), 1)

    def test_a_killed_driver_is_named(self, nowhere: str, tmp_path: Path) -> None:
        url = write_made_up(tmp_path)
        with processes.start(HOLD.format(url=url)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            process.kill()
        said = refused(run("stop", "--storage", url), 1)
        assert f"process {process.pid} on" in said
        assert "was killed" in said

    def test_a_search_on_a_terminal_is_stopped_politely(self, nowhere: str, tmp_path: Path) -> None:
        url = url_in(tmp_path)
        file = search_in(tmp_path, url, "slow", budget={"trials": 500, "grace": 5})
        with start(tmp_path, "launch", str(file)) as process:
            pid = _wait_for_driver(url)
            assert pid == process.pid
            said = refused(run("logs", "--storage", url), 1)
            assert f"is searched by process {pid}" in said
            assert "is no job" in said
            ended = run("stop", STUDY, "--storage", url)
            assert (ended.code, ended.out) == (0, f"study {STUDY} is stopped; the same launch goes on where it was\n")
            assert f"asked process {pid} on" in ended.err
            process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
        assert set(status(STUDY, url).states) <= {"COMPLETE", "RUNNING"}


def _wait_for_driver(url: str, patience_s: float = PATIENCE_S) -> int:
    """The process that searches the tiny study, once it does and has told a trial."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if Path(url.removeprefix("sqlite:///")).exists():
            with closing(open_storage(url, create=True)) as storage:
                study_id, _ = open_study(storage, STUDY)
                found = holder(storage, study_id)
                if found is not None and storage.get_n_trials(study_id) > 1:
                    return found.pid
        time.sleep(0.1)
    raise AssertionError(f"no driver within {patience_s} s")


@pytest.fixture(scope="module")
def shared_store() -> str:
    """A database whose URL has a password."""
    return fresh_database().replace("postgres:@", f"postgres:{SECRET}@")


@pytest.fixture(scope="module")
def cluster(shared_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster whose nodes know that database."""
    cache = str(tmp_path_factory.mktemp("node") / "cache")
    with ray_head(cpus=2, SLIMFRONT_STORAGE=shared_store, SLIMFRONT_CACHE=cache) as url:
        yield url


@pytest.fixture
def here(cluster: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cluster, as the default one of commands."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster)
    return cluster


@pytest.mark.slow
class TestOnACluster:
    def test_from_launch_to_the_front(self, here: str, tmp_path: Path) -> None:
        url = url_in(tmp_path)
        file = search_in(tmp_path, url, "slow", workers=1, budget={"trials": 500, "grace": 5})
        launched = run("launch", str(file), "--detach")
        assert launched.code == 0, launched.err
        commands = [line.split()[1] for line in launched.out.splitlines()[1:]]
        assert commands == ["status", "logs", "stop"]

        found = status(STUDY, url).driver
        assert found is not None
        assert found.alive
        job = found.job
        assert job is not None
        assert f"job {job} searches" in launched.out
        assert "alive" in run("status", STUDY, "--storage", url).out
        assert job in refused(run("launch", str(file), "--detach"), 1)

        log = run("logs", STUDY, "--storage", url)
        assert log.code == 0
        assert f"study {STUDY}: loading tiny.py:slow" in log.out
        assert "\x1b" not in log.out
        assert log.err == f"job {job}: running\n"
        self._follow_until_interrupted(tmp_path, url)

        assert run("stop", STUDY, "--storage", url).code == 0
        assert driver_of(url) is None
        told = status(STUDY, url).states["COMPLETE"]
        assert 0 < told < 500

        again = run("launch", str(file), "--detach", "--trials", str(told + 4))
        assert again.code == 0, again.err
        followed = run("logs", STUDY, "-f", "--storage", url)
        assert f"goes on after {told} of {told + 4}" in followed.out
        assert followed.err.endswith(": succeeded\n")
        assert status(STUDY, url).states == {"COMPLETE": told + 4}
        assert f"front of {STUDY}" in run("front", STUDY, "--storage", url).out

    def _follow_until_interrupted(self, folder: Path, url: str) -> None:
        with start(folder, "logs", STUDY, "-f", "--storage", url) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, said) == (130, "")

    def test_two_studies_at_once_and_the_password_is_nowhere(
        self, here: str, shared_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLIMFRONT_STORAGE", shared_store)
        for name in ("one", "two"):
            file = search_in(tmp_path / name, None, study=name, workers=1, cache={"folder": None})
            launched = run("launch", str(file), "--detach")
            assert launched.code == 0, launched.err
            assert "take theirs from $SLIMFRONT_STORAGE" in launched.err
            assert SECRET not in launched.out + launched.err
        for name in ("one", "two"):
            log = run("logs", name, "-f")
            assert f"front of {name}" in log.out
            assert SECRET not in log.out
            assert status(name).states == {"COMPLETE": TRIALS}
        assert SECRET not in json.dumps([one.model_dump(mode="json") for one in Jobs(here)._client.list_jobs()])

    def test_it_is_the_search_that_was_not_detached(self, here: str, tmp_path: Path, undisturbed: Path) -> None:
        config = tiny(tmp_path).model_dump(mode="json", exclude_defaults=True)
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(config))
        launched = run("launch", str(tmp_path / "search.yaml"), "--detach", "--workers", "1")
        assert launched.code == 0, launched.err
        assert run("logs", "-f", "--storage", url_in(tmp_path)).code == 0
        assert rows_of(tmp_path) == rows_of(undisturbed)

    @pytest.mark.parametrize(
        ("storage", "words"),
        [("", "SLIMFRONT_STORAGE: is not set on this node"), ("sqlite:////{}/other.db", "but not in postgresql")],
        ids=["unset", "another"],
    )
    def test_nodes_with_another_database_are_noticed(
        self, storage: str, words: str, here: str, shared_store: str, tmp_path: Path
    ) -> None:
        variables = {"SLIMFRONT_STORAGE": storage.format(tmp_path)}
        file = search_in(tmp_path, shared_store, study="three", workers=0, ray={"runtime_env": {"env_vars": variables}})
        said = refused(run("launch", str(file), "--detach"), 1)
        assert words in said
        assert SECRET not in said

    def test_why_a_job_ended_is_said(self, here: str, tmp_path: Path) -> None:
        file = search_in(tmp_path, url_in(tmp_path), "absent")
        said = refused(run("launch", str(file), "--detach"), 1)
        assert "failed before it searched" in said
        assert "has no 'absent'" in said
        log = run("logs", STUDY, "--storage", url_in(tmp_path))
        assert "has no 'absent'" in log.out

    def test_what_is_left_out_stays_here(self, here: str, tmp_path: Path) -> None:
        file = search_in(tmp_path, url_in(tmp_path), "absent", ray={"runtime_env": {"excludes": ["*.txt"]}})
        for name in (".env", "notes.txt", "old.db", "kept.csv", "cache/a", ".venv/b", ".ssh/id"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
        (tmp_path / "tiny.py").write_text(
            "from pathlib import Path\n"
            "def absent():\n"
            "    raise ValueError(sorted(str(one) for one in Path(__file__).parent.rglob('*') if one.is_file()))\n"
        )
        said = refused(run("launch", str(file), "--detach"), 1)
        seen = {Path(one).name for one in said.partition("[")[2].partition("]")[0].replace("'", "").split(", ")}
        assert seen - {f"tiny.{sys.implementation.cache_tag}.pyc"} == {
            "kept.csv",
            "search.yaml",
            "slimfront-job.yaml",
            "tiny.py",
        }

    def test_a_job_that_does_not_search_yet_can_be_stopped(self, here: str, tmp_path: Path) -> None:
        url = url_in(tmp_path)
        file = search_in(tmp_path, url, study="waiting")
        (tmp_path / "tiny.py").write_text("import time\ndef workload():\n    time.sleep(600)\n")
        with start(tmp_path, "launch", str(file), "--detach") as process:
            end = time.monotonic() + PATIENCE_S
            while "loading" not in run("logs", "waiting", "--storage", url).out and time.monotonic() < end:
                time.sleep(0.5)
            ended = run("stop", "waiting", "--storage", url)
            assert "did not search yet, is stopped" in ended.out
            _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert "stopped before it searched" in said
