"""Drivers and workers that are killed or interrupted at any moment: the next launch goes on as if nothing had been."""

import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from search.config_sections import SamplerConfig
from search.loop import launch
from tests import processes
from tests.searches import FRONT, NSGA2, TRIALS, attrs_of, rows_of, tiny

slow = pytest.mark.slow
INTERRUPTED = 130
PATIENCE = 300.0  # a busy machine takes minutes for what takes seconds
FORKS = multiprocessing.get_context("forkserver")  # children start with everything imported
FORKS.set_forkserver_preload(["search.loop", "tests.searches", "tests.tiny", "torch._dynamo"])


def _drive(folder: Path, workers: int, sampler: SamplerConfig) -> None:
    os.setpgrp()  # as a shell would start it
    sys.exit(INTERRUPTED if launch(tiny(folder, workers=workers, sampler=sampler)).interrupted else 0)


def start(folder: Path, workers: int = 0, sampler: SamplerConfig = NSGA2) -> ForkServerProcess:
    """A driver of the tiny search."""
    process = FORKS.Process(target=_drive, args=(folder, workers, sampler))
    process.start()
    return process


def ended(process: ForkServerProcess) -> int:
    """Its exit code; minus the signal if one ended it."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "the driver does not end"
    code = process.exitcode
    process.close()
    return code


def count(folder: Path, sql: str) -> int:
    """A number out of the store, -1 where it cannot be read yet."""
    file = folder / "tiny.db"
    if not file.exists():
        return -1
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return int(connection.execute(sql).fetchone()[0])
    except sqlite3.OperationalError:
        return -1


def told(folder: Path) -> int:
    return count(folder, "select count(*) from trials where state != 'RUNNING'")


def asked(folder: Path) -> int:
    return count(folder, "select count(*) from trials")


def wait(process: ForkServerProcess, happened: Callable[[], bool]) -> None:
    """Until it happened, or the driver has ended."""
    end = time.monotonic() + PATIENCE
    while not happened() and process.is_alive():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.001)


def finish(folder: Path, undisturbed: Path, workers: int = 0, sampler: SamplerConfig = NSGA2) -> None:
    """Launch again, to the end, and compare."""
    assert ended(start(folder, workers, sampler)) == 0
    assert rows_of(folder) == rows_of(undisturbed)
    assert attrs_of(folder)["test"] == attrs_of(undisturbed)["test"]
    assert list((folder / "cache").rglob("*.tmp*")) == []


class TestKilledDriver:
    @pytest.mark.parametrize("trials", [1, 13, TRIALS, *(pytest.param(n, marks=slow) for n in (0, 6, TRIALS - 1))])
    def test_after_some_trials(self, tmp_path: Path, undisturbed: Path, trials: int) -> None:
        process = start(tmp_path)
        wait(process, lambda: told(tmp_path) >= trials and asked(tmp_path) > 0)
        process.kill()
        assert ended(process) == -signal.SIGKILL or trials == TRIALS  # then it may have been quicker
        rows = rows_of(tmp_path)
        done = [row for row in rows if row.state != "RUNNING"]
        assert len(done) >= trials
        assert len(rows) - len(done) <= 4
        assert done == rows_of(undisturbed)[: len(done)]
        finish(tmp_path, undisturbed)

    def test_our_sampler_goes_on_as_if_nothing_had_been(self, tmp_path: Path, undisturbed_front: Path) -> None:
        for trials in (10, 15, 20):
            process = start(tmp_path, sampler=FRONT)
            wait(process, lambda trials=trials: told(tmp_path) >= trials)  # type: ignore[misc]
            process.kill()
            ended(process)
        finish(tmp_path, undisturbed_front, sampler=FRONT)

    @pytest.mark.parametrize("delay", [0.03, 0.2, *(pytest.param(s, marks=slow) for s in (0.0, 0.01, 0.1, 0.15, 0.3))])
    def test_while_it_makes_the_store(self, tmp_path: Path, undisturbed: Path, delay: float) -> None:
        process = start(tmp_path)
        wait(process, (tmp_path / "tiny.db").exists)
        time.sleep(delay)
        process.kill()
        ended(process)
        finish(tmp_path, undisturbed)

    def test_while_it_makes_the_tables(self, tmp_path: Path, undisturbed: Path) -> None:
        """The moment is too short to be met, so the store is made of the first table alone."""
        with (
            closing(sqlite3.connect(undisturbed / "tiny.db")) as whole,
            closing(sqlite3.connect(tmp_path / "tiny.db")) as half,
        ):
            half.execute(whole.execute("select sql from sqlite_master where name = 'studies'").fetchone()[0])
        finish(tmp_path, undisturbed)

    @slow
    def test_again_and_again(self, tmp_path: Path, undisturbed: Path) -> None:
        kills = 0
        while told(tmp_path) < TRIALS - 3:
            before = max(0, told(tmp_path))
            process = start(tmp_path)
            wait(process, lambda before=before: told(tmp_path) >= before + 4)  # type: ignore[misc]
            process.kill()
            kills += ended(process) == -signal.SIGKILL
        assert kills >= 3
        finish(tmp_path, undisturbed)


class TestInterruptedDriver:
    @pytest.mark.parametrize(("number", "trials"), [(signal.SIGINT, 1), (signal.SIGTERM, 9)])
    def test_it_ends_politely(self, tmp_path: Path, undisturbed: Path, number: signal.Signals, trials: int) -> None:
        process = start(tmp_path)
        wait(process, lambda: told(tmp_path) >= trials)
        assert process.pid
        os.kill(process.pid, number)
        assert ended(process) == INTERRUPTED
        done = [row for row in rows_of(tmp_path) if row.state != "RUNNING"]
        assert trials <= len(done) < TRIALS
        assert count(tmp_path, "select count(*) from slimfront_lease") == 0
        finish(tmp_path, undisturbed)

    def test_twice_it_ends_at_once(self, tmp_path: Path, undisturbed: Path) -> None:
        process = start(tmp_path)
        wait(process, lambda: told(tmp_path) >= 3)
        assert process.pid
        for _ in range(2):
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.002)
        assert ended(process) in (1, INTERRUPTED)  # 1: a traceback of KeyboardInterrupt
        finish(tmp_path, undisturbed)


@slow
class TestOnWorkers:
    @pytest.mark.parametrize("victims", [1, 2])
    def test_killed_workers_are_replaced(self, tmp_path: Path, undisturbed: Path, victims: int) -> None:
        process = start(tmp_path, workers=2)
        wait(process, lambda: told(tmp_path) >= 4)
        assert process.pid
        driver = process.pid
        os.kill(driver, signal.SIGSTOP)  # or it may be done before its workers are found
        wait(
            process, lambda: len(processes.below(driver, "ray::_Worker")) == 2
        )  # they write their names anew now and then
        for pid in processes.below(driver, "ray::_Worker")[:victims]:
            os.kill(pid, signal.SIGKILL)
        assert told(tmp_path) < TRIALS
        os.kill(driver, signal.SIGCONT)
        assert ended(process) == 0
        assert rows_of(tmp_path) == rows_of(undisturbed)

    def test_a_killed_driver_goes_on(self, tmp_path: Path, undisturbed: Path) -> None:
        process = start(tmp_path, workers=2)
        wait(process, lambda: told(tmp_path) >= 7)
        process.kill()
        assert ended(process) == -signal.SIGKILL
        finish(tmp_path, undisturbed, workers=2)

    def test_control_c_reaches_workers_and_ends_politely(self, tmp_path: Path, undisturbed: Path) -> None:
        process = start(tmp_path, workers=2)
        wait(process, lambda: told(tmp_path) >= 5)
        assert process.pid
        os.killpg(process.pid, signal.SIGINT)  # a terminal signals the whole group
        assert ended(process) == INTERRUPTED
        done = [row for row in rows_of(tmp_path) if row.state != "RUNNING"]
        assert done == rows_of(undisturbed)[: len(done)]
        finish(tmp_path, undisturbed)
