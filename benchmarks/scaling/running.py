"""One made-up search on simulated workers, with what it took."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.scaling.made_up import config_of, made_up, sleepers
from objectives.evaluation import Evaluation, no_teacher
from objectives.score import RungScore
from search.driver import Driver
from search.lease import Lease
from search.pool import RayPool
from search.samplers.proposer import Proposer
from search.storage import open_storage
from search.study import Proposal, Trials, open_study
from search.tasks import Result

AT_ONCE = 64  # simulated workers in a process
TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """What a search took.

    Attributes:
        seconds: from the first candidate to the last.
        busy: share of the workers' time in which they worked, while there were candidates to ask.
        busy_whole: the same, with the beginning and the end.
        driver: CPU milliseconds a candidate in the driver's process, all of its threads, the sampler apart.
        sampler: CPU milliseconds a candidate of asking and telling the sampler.
    """

    workers: int
    window: int
    sampler_name: str
    trials: int
    low: float
    high: float
    seconds: float
    busy: float
    busy_whole: float
    driver: float
    sampler: float


class TimedProposer(Proposer):
    """A proposer that says what it took."""

    spent = 0.0

    def propose(self, number: int) -> Proposal:
        """Ask for the next policy."""
        since = time.thread_time()
        found = super().propose(number)
        self.spent += time.thread_time() - since
        return found

    def tell(
        self,
        number: int,
        values: tuple[float, float] | None,
        rungs: Sequence[RungScore] = (),
        *,
        stopped: bool = False,
    ) -> None:
        """Let the sampler see a result."""
        since = time.thread_time()
        super().tell(number, values, rungs, stopped=stopped)
        self.spent += time.thread_time() - since


class Silent:
    """Watches nothing."""

    def say(self, words: str) -> None:
        """Take a line for people."""

    def show(self, values: tuple[float, float] | None) -> None:
        """Take one more trial."""


def run(
    folder: Path, url: str, *, workers: int, window: int, trials: int, low: float, high: float, sampler: str
) -> Run:
    """Search with simulated workers; Ray runs already.

    Args:
        folder: for what a cache would hold.
        url: of the study database.
        workers: simulated ones.
        window: candidates that may be asked and not yet told.
        trials: of the search.
        low: seconds that a candidate takes at least.
        high: seconds that it takes at most.
        sampler: its short name.
    """
    made = made_up()
    study = f"{workers}-{window}-{sampler}-{high:g}"
    config = config_of(study, trials=trials, window=window, workers=workers, sampler=sampler, url=url)
    evaluation = Evaluation(seed=0, chunk=100, threads=1, device="cpu", steps=(60,), cache=folder)
    concurrency = min(AT_ONCE, workers)
    pool = RayPool(
        config,
        cast(Any, None),  # nothing is loaded
        evaluation,
        no_teacher(),
        worker=sleepers(concurrency, low, high),
        concurrency=concurrency,
    )
    try:
        pool.wait_until_ready(workers)
        with contextlib.closing(open_storage(url, create=True)) as storage:
            study_id, _ = open_study(storage, study)
            with Lease(storage, study_id) as lease:
                proposer = TimedProposer(made.space, sampler, {}, 0, (), made.knowledge)
                trials_of_study = Trials(storage, study_id)
                driver = Driver(config, proposer, 0, trials_of_study, made.box, lease.guard)
                return _driven(driver, pool, proposer, config.model_dump(), (low, high), sampler)
    finally:
        pool.close()


def _driven(
    driver: Driver,
    pool: RayPool,
    proposer: TimedProposer,
    config: Mapping[str, Any],
    span: tuple[float, float],
    sampler: str,
) -> Run:
    trials, workers = config["budget"]["trials"], config["workers"]
    began, cpu = time.monotonic(), time.process_time()
    asked, running, last_asked = 0, 0, began
    worked: list[tuple[float, float]] = []  # from when to when
    results: list[Result] = []
    while not driver.finished:
        tasks = driver.step(results, Silent())
        running += len(tasks) - len(results)
        for task in tasks:
            pool.submit(task)
        asked += len(tasks)
        if tasks:
            last_asked = time.monotonic()
        results = pool.collect(0.0 if tasks else TICK_SECONDS) if running else []
        now = time.monotonic()
        worked += [(now - one.seconds, now) for one in results]
    ended, spent = time.monotonic(), time.process_time() - cpu
    until = sum(max(0.0, min(end, last_asked) - start) for start, end in worked)
    return Run(
        workers=workers,
        window=config["window"],
        sampler_name=sampler,
        trials=trials,
        low=span[0],
        high=span[1],
        seconds=ended - began,
        busy=until / (workers * (last_asked - began)),
        busy_whole=sum(end - start for start, end in worked) / (workers * (ended - began)),
        driver=(spent - proposer.spent) / trials * 1e3,
        sampler=proposer.spent / trials * 1e3,
    )
