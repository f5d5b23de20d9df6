"""Ends a server of the tests whose test run was itself killed, and removes its files; runs as a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_PATIENCE_S = 10.0


class Guard:
    """Watches over a server until it is closed, or until the process that made this has ended, however it did."""

    def __init__(self, folder: Path, pid_file: str) -> None:
        command = [sys.executable, __file__, str(folder), pid_file]
        # A session of its own: what ends the test run's whole process group must not end this too.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def close(self) -> None:
        """End the server if it still runs, and remove its folder."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def end(folder: Path, pid_file: str) -> None:
    """End the server of a folder, with what it started, and remove the folder.

    Args:
        folder: where its files are.
        pid_file: the file in it whose first line says the server's process.
    """
    with suppress(OSError, ValueError, IndexError):
        server = int((folder / pid_file).read_text().split()[0])
        if str(folder) in _family(server).get(server, ""):  # a number is given again
            _signal(server, signal.SIGCONT)  # it may be paused
            _signal(server, signal.SIGQUIT)
            late = time.monotonic() + _PATIENCE_S
            while _family(server) and time.monotonic() < late:
                time.sleep(0.1)
            _signal(server, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _signal(server: int, number: int) -> None:
    for process in _family(server):
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _family(server: int) -> dict[int, str]:
    """The commands of a process and of those that it started, as far as they run."""
    said = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=False
    )
    rows = [line.split(maxsplit=3) for line in said.stdout.splitlines()]
    return {int(row[0]): row[-1] for row in rows if str(server) in row[:2] and not row[2].startswith("Z")}


if __name__ == "__main__":
    sys.stdin.read()
    end(Path(sys.argv[1]), sys.argv[2])
