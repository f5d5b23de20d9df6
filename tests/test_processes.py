"""Which process is which, with and without /proc."""

import os
import time

from search.processes import _started_by_ps, process_started
from tests import processes


def test_processes_are_told_apart_by_their_start() -> None:
    with processes.start("input()") as process:
        first = process_started(process.pid)
        assert first
        assert first == process_started(process.pid) != process_started(os.getppid())
        process.kill()
    assert process_started(process.pid) is None
    assert process_started(1) is not None


def test_processes_are_told_apart_without_proc() -> None:
    with processes.start("input()") as process:
        assert _started_by_ps(process.pid)
        process.kill()
        while process_started(process.pid) is not None:
            time.sleep(0.01)
        assert _started_by_ps(process.pid) is None  # a zombie
    assert _started_by_ps(process.pid) is None
