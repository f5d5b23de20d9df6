"""A launch that has begun: has candidates scored until its search ends, and the front at last on the test split."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from search.candidates import Prepared
from search.config import Config
from search.driver import Driver
from search.front import Front, read_front
from search.goals import Deadline
from search.honest import held_back
from search.lease import Lease
from search.pool import RayPool
from search.progress import SearchProgress
from search.restoring import lost, restore
from search.storage import Storage
from search.stored import load_tested, pick_study
from search.study import Trials
from search.tasks import Pool, ScoreTask

TICK_SECONDS = 0.5


@dataclass
class Launch:
    """What the driver wants scored goes to the pool, and what the pool has to the driver."""

    config: Config
    prepared: Prepared
    storage: Storage
    trials: Trials
    driver: Driver
    pool: Pool
    progress: SearchProgress
    lease: Lease
    stop: threading.Event
    deadline: Deadline
    running: int = 0

    @property
    def grace(self) -> float:
        """Seconds for which what runs is waited for when somebody wants it to end."""
        return self.config.budget.grace

    @property
    def stopped(self) -> bool:
        """Whether somebody wants it to end."""
        return self.stop.is_set() or self.lease.stop_asked

    @property
    def front(self) -> Front:
        """The study's front now."""
        return read_front(self.storage, pick_study(self.storage, self.config.study))

    def wait_for_workers(self) -> None:
        """Wait for a worker that can take work."""
        while isinstance(self.pool, RayPool) and not self.stopped:
            if self.pool.wait_until_ready(timeout=TICK_SECONDS):
                return

    def until_budget(self) -> None:
        """Ask, collect and tell until the budget is used, the time is up, or somebody wants it to end."""
        self.deadline.start()
        tasks: list[ScoreTask] = []
        while not self.driver.finished:
            if self.stopped or self.deadline.passed:
                return self._finish_running()
            wait = 0.0 if tasks else TICK_SECONDS  # one step asks only a part of a wide window
            results = self.pool.collect(wait) if self.running else []
            tasks = self.driver.step(results, self.progress)
            self.running += len(tasks) - len(results)
            for task in tasks:
                self.pool.submit(task)

    def _finish_running(self) -> None:
        """Have finished what a worker has begun, as far as that takes no longer than the grace."""
        left, end = self.pool.withdraw(), inf
        why, limit = ("stopping", f", for up to {self.grace:.0f} s") if self.stopped else ("the time is up", "")
        self.progress.say(f"{why}: {left} running candidates are finished first{limit}" if left else why)
        while left > 0:
            if self.stopped:  # perhaps only now
                end = min(end, time.monotonic() + self.grace)
            if time.monotonic() >= end:
                break
            results = self.pool.collect(min(TICK_SECONDS, max(0.0, end - time.monotonic())))
            left -= len(results)
            self.driver.step(results, self.progress, asking=False)
        if left > 0:
            self.progress.say(f"{left} candidates were not finished in time; they are scored when the study goes on")

    def score_test(self) -> bool:
        """Score the members of the front, and the uniform policies, on the held-back test split, and compare them.

        Returns:
            Whether all that was done; what was not is done by the next launch.
        """
        found, cache = self.front, self.prepared.evaluation.cache
        missing = lost((*found.points, *found.uniform), cache)
        policies = {one: self.prepared.space.policy(self.trials[one].params) for one in missing}
        if not restore(missing, policies, self.pool, self.progress.say, lambda: self.stopped):
            return False
        known = load_tested(self.storage, self.trials.study_id)
        new = held_back(found, known, self.pool, cache, self.progress.say, lambda: self.stopped)
        if new:
            self.storage.set_documents(self.trials.study_id, new, self.lease.guard)
        return new is not None


Engine = Callable[[Launch], None]  # has candidates scored until the budget is used, as `Launch.until_budget` does
