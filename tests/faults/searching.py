"""Searches to be disturbed: `slimfront launch` in a process of its own, and what must be so when it has ended."""

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psycopg
from optuna.trial import FrozenTrial, TrialState

from compress.files import artifact_path
from search.front import front
from tests.commands import ROOT
from tests.faults import ordered
from tests.faults.cluster import RayCluster
from tests.postgres import PostgresServer
from tests.searches import STUDY, TRIALS, attrs_of, outcomes_of, rows_of, tiny, trials_of

INTERRUPTED = 130
PATIENCE_S = 300.0  # a busy machine takes minutes for what takes seconds
FORKS = multiprocessing.get_context("forkserver")  # children start with everything imported
FORKS.set_forkserver_preload(["search.cli", "search.loop", "tests.searches", "tests.faults.ordered", "torch._dynamo"])


def _command(folder: Path) -> None:
    """The command line in a child, which prints into a file."""
    from search.cli import main

    output = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["slimfront", "launch", str(folder / "tiny.yaml")]
    main()


@dataclass
class Search:
    """A search of the tiny workload, of which one driver at a time runs.

    Attributes:
        folder: its own.
        url: of its database.
        workers: that score; 0 has the driver do it.
        server: that has the database; None for SQLite.
        cluster: whose workers score; None starts a Ray for them.
        changed: further settings.
        workload: a name in `ordered`.
        environment: variables of a driver that has to be started with them.
    """

    folder: Path
    url: str
    workers: int = 0
    server: PostgresServer | None = None
    cluster: RayCluster | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    workload: str = "ordered"
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: "ForkServerProcess | subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start a driver."""
        entry = ordered.write(self.folder, self.workload)
        ray = {} if self.cluster is None else {"ray": {"address": self.cluster.address}}
        config = tiny(self.folder).model_dump(mode="json", exclude_unset=True)
        config |= {"workload": entry, "storage": self.url, "workers": self.workers, **ray, **self.changed}
        (self.folder / "tiny.yaml").write_text(json.dumps(config))
        if not self.environment:
            self._process = FORKS.Process(target=_command, args=(self.folder,))
            self._process.start()
            return
        with (self.folder / "said").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "search.cli", "launch", str(self.folder / "tiny.yaml")],
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        """The driver's."""
        assert self._process is not None
        assert self._process.pid
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the driver runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll() is None
        return self._process is not None and self._process.is_alive()

    def ended(self) -> int:
        """Wait for the driver's end: its exit code, minus the signal if one ended it."""
        self.wait(lambda: False)
        if isinstance(self._process, subprocess.Popen):
            return self._process.wait()
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        return code

    def finish(self) -> None:
        """Launch to the end, undisturbed."""
        self.start()
        assert self.ended() == 0, self.said()

    def wait(self, happened: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
        """Wait until something happened or the driver has ended; whether it still runs."""
        end = time.monotonic() + seconds
        while not happened() and self.alive:
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)
        return self.alive

    def said(self) -> str:
        """What all drivers printed, on one line."""
        file = self.folder / "said"
        return " ".join(file.read_text().split()) if file.exists() else ""

    def order(self, name: str) -> None:
        """Have the metric obey from now on (see `ordered`)."""
        (self.folder / name).touch()

    def hold(self) -> bool:
        """Have the evaluations stand still; whether one does."""
        (self.folder / "held").unlink(missing_ok=True)
        self.order("hold")
        return self.wait((self.folder / "held").exists)

    def release(self) -> None:
        """Have them go on after `hold`."""
        (self.folder / "hold").unlink()

    def told(self) -> int:
        """How many trials are told, -1 where that cannot be read."""
        return self.count("select count(*) from trials where state != 'RUNNING'")

    def count(self, sql: str) -> int:
        """A number out of the database, -1 where it cannot be read."""
        try:
            if self.server is not None:
                with psycopg.connect(self.url, autocommit=True) as connection:
                    row = connection.execute(sql.encode()).fetchone()
            else:
                with closing(sqlite3.connect(f"file:{self.url.removeprefix('sqlite:///')}?mode=ro", uri=True)) as file:
                    row = file.execute(sql).fetchone()
        except (sqlite3.OperationalError, psycopg.Error):
            return -1
        return -1 if row is None else int(row[0])

    def finished(self) -> list[FrozenTrial]:
        """The trials that are told now, with everything that is stored of them."""
        return [] if self.told() < 1 else [one for one in trials_of(self.url) if one.state != TrialState.RUNNING]

    def check_kept(self, before: list[FrozenTrial]) -> None:
        """No finished trial may be lost, or be another one than it was."""
        now = {trial.number: trial for trial in trials_of(self.url)}
        assert [now[one.number] for one in before] == before

    def check_equals(self, undisturbed: Path) -> None:
        """The study must be the one that nothing disturbed, and nothing may be left over of what happened."""
        assert rows_of(self.url) == rows_of(undisturbed)
        assert outcomes_of(self.url) == outcomes_of(undisturbed)
        for key in ("test", "within_noise"):
            assert attrs_of(self.url)[key] == attrs_of(undisturbed)[key]
        assert self.count("select count(*) from trials") == TRIALS
        assert self.count("select count(*) from slimfront_lease") == 0
        self.check_files(undisturbed)

    def check_files(self, undisturbed: Path) -> None:
        """The packed files of the front must be those of the undisturbed search."""
        found = front(STUDY, self.url)
        for point in (*found.points, *found.uniform):
            assert point.artifact
            theirs = artifact_path(undisturbed / "cache", point.artifact)
            assert artifact_path(self.folder / "cache", point.artifact).read_bytes() == theirs.read_bytes()

    def leftovers(self) -> list[Path]:
        """Files that a write which was given up left behind."""
        return [one for one in (self.folder / "cache").rglob("*") if one.name.startswith(".") or ".tmp" in one.name]

    def close(self) -> None:
        """End the driver, if it still runs, and what it started with it."""
        (self.folder / "hold").unlink(missing_ok=True)
        if self.alive and self._process is not None:
            self._process.kill()
            self.ended()
