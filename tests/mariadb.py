"""Real MariaDB servers for the tests that need one, removed when the tests end."""

import atexit
import getpass
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from functools import cache
from pathlib import Path

import pytest

from tests.guarding import Guard

PASSWORD = "secret @:/"
_IN_URL = "secret%20%40%3A%2F"


def fresh_database() -> str:
    """The URL of a new, empty database; the test is skipped where there is no server to be had."""
    return _shared().fresh_database()


class MariaServer:
    """A server of a test's own, which it may stop, kill and pause; it runs until `close`."""

    def __init__(self) -> None:
        pytest.importorskip("pymysql", reason="needs pip install 'slimfront[mysql]' (PyMySQL)")
        program, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
        if program is None or install is None:
            pytest.skip("needs MariaDB: apt-get install mariadb-server")
        self.folder = Path(tempfile.mkdtemp(prefix="slimfront-mariadb-"))
        self._guard = Guard(self.folder, "pid")
        atexit.register(self._guard.close)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        data, user = f"--datadir={self.folder}/data", f"--user={getpass.getuser()}"
        made = [install, "--no-defaults", data, user, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(made, check=True, capture_output=True)
        self._command = [
            *(program, "--no-defaults", data, user, f"--socket={self.folder}/socket", f"--port={self._port}"),
            *("--bind-address=127.0.0.1", f"--pid-file={self.folder}/pid", f"--log-error={self.folder}/log"),
            *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--skip-name-resolve"),
            # What it wrote outlives its end, if not the machine's.
            *("--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync", "--skip-innodb-doublewrite"),
            *("--innodb-file-per-table=0", "--sync-frm=0"),
        ]
        atexit.register(self.close)
        self.start()
        self.ask(f"create user 'slimfront'@'127.0.0.1' identified by '{PASSWORD}'")
        self.ask("grant all on *.* to 'slimfront'@'127.0.0.1'")

    def fresh_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.ask(f"create database {name} character set utf8mb4")
        return f"mysql://slimfront:{_IN_URL}@127.0.0.1:{self._port}/{name}"

    def ask(self, statement: str) -> None:
        """Run a statement as the server's administrator."""
        import pymysql

        connection = pymysql.connect(unix_socket=f"{self.folder}/socket", user="root", connect_timeout=2)
        try:
            connection.cursor().execute(statement)
        finally:
            connection.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        listening = self.folder / "socket"
        listening.unlink(missing_ok=True)  # a killed one leaves it
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        while not listening.exists():
            if self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)
        self.ask("select 1")

    def stop(self) -> None:
        """Shut down, as an administrator does: whoever is connected is cut off."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End without a shutdown: the next start recovers from the log."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still, as a machine that is out of breath does."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good, and remove its files."""
        self._end(signal.SIGKILL)
        self._guard.close()

    def _end(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(30)


@cache
def _shared() -> MariaServer:
    return MariaServer()
