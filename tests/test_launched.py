"""The loop between the driver and a pool, without a model: it does not wait idly, and hears who stops it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from search.driver import ASKED_AT_ONCE
from search.goals import Deadline
from search.launched import Launch
from search.lease import Lease
from search.tasks import Result, ScoreTask, Task
from tests.driving import Seen, World, answer
from tests.searches import STUDY


class Workers:
    """A pool whose results are there when they are called for; it notes what it held whenever it was to wait."""

    def __init__(self) -> None:
        self.tasks: list[ScoreTask] = []
        self.waited: list[int] = []
        self.calling: list[threading.Event] = []  # set at the next call

    def submit(self, task: Task) -> None:
        assert isinstance(task, ScoreTask)
        self.tasks.append(task)

    def collect(self, timeout: float) -> list[Result]:
        while self.calling:
            self.calling.pop().set()
        if timeout == 0:
            return []
        self.waited.append(len(self.tasks))
        return self.ready(timeout)

    def ready(self, timeout: float) -> list[Result]:
        return [answer(self.tasks.pop(0))]

    def withdraw(self) -> int:
        return len(self.tasks)

    def close(self) -> None:
        pass


class Hanging(Workers):
    """A pool of which nothing comes back."""

    def ready(self, timeout: float) -> list[Result]:
        time.sleep(min(timeout, 0.02))
        return []


@contextlib.contextmanager
def launched(world: World, pool: Workers, *, grace: float = 0.1, timeout: float | None = None) -> Iterator[Launch]:
    with world.launched() as (driver, storage, trials, _):
        config = world.config
        budget = config.budget.model_copy(update={"grace": grace})
        config = config.model_copy(update={"budget": budget})
        deadline = Deadline(timeout, None, datetime.now(UTC))
        progress = cast(Any, Seen())
        with Lease(storage, storage.get_study_id_from_name(STUDY)) as lease:
            prepared = cast(Any, None)
            yield Launch(config, prepared, storage, trials, driver, pool, progress, lease, threading.Event(), deadline)


def said(launch: Launch) -> list[str]:
    lines: list[str] = cast(Any, launch.progress).said
    return [line for line in lines if "failed" not in line]


def test_a_window_wider_than_a_step_is_full_before_anybody_is_waited_for(tmp_path: Path) -> None:
    window = 2 * ASKED_AT_ONCE + 10
    pool = Workers()
    with launched(World(tmp_path, window=window, trials=window + 20), pool) as launch:
        launch.until_budget()
        assert launch.driver.finished
    assert pool.waited[0] == window
    assert pool.waited == [window] * 21 + list(range(window - 1, 0, -1))


@pytest.mark.parametrize("timeout", [None, 1e-6])
def test_who_stops_it_waits_for_no_longer_than_its_grace(tmp_path: Path, timeout: float | None) -> None:
    """Also while it waits for what runs because its time is up."""
    pool = Hanging()
    with launched(World(tmp_path), pool) as launch:
        for task in launch.driver.step([], Seen()):
            pool.submit(task)
            launch.running += 1
        launch.deadline = Deadline(timeout, None, datetime.now(UTC))
        pool.calling.append(launch.stop)
        began = time.monotonic()
        launch.until_budget()
        assert time.monotonic() - began < 5
        assert launch.stopped
        lines = said(launch)
    why = "the time is up: 5 running candidates are finished first"
    stopping = "stopping: 5 running candidates are finished first, for up to 0 s"
    assert lines == [
        why if timeout else stopping,
        "5 candidates were not finished in time; they are scored when the study goes on",
    ]
