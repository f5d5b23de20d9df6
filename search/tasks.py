"""What there is to do for a candidate, what comes back, and a pool that does it in the driver's own process."""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from compress.files import artifact_path
from compress.layer import Cost
from objectives.accuracy import Accuracy
from objectives.failures import sorted_failures
from objectives.judging import Judge
from objectives.machine import machine
from objectives.packed import keep_packed
from objectives.score import RungScore, Score, Scorer
from search.arrivals import Arrivals
from search.prices import Sensing, prices
from spaces.errors import CandidateError, RetryableError, SlimfrontError
from spaces.policy import Choice, Policy

PAUSES = (2.0, 20.0)  # seconds before further tries of what failed for want of memory or disk: a disk may come back
RETRIES = len(PAUSES)
WAIT_SECONDS = 0.5  # for room in the cache folder
BATCH = 2**26  # weights of one site that are compressed together, all its choices counted


T = TypeVar("T")


@dataclass(frozen=True)
class ScoreTask:
    """Score a policy; `number` is its trial.

    `start` are the scores that it takes over from the trial that it continues.

    Its judge is pickled with it, and with the judge the outcomes that races are judged against: Ray puts what is large
    into its object store by itself.
    """

    number: int
    policy: Policy
    judge: Judge
    start: tuple[RungScore, ...] = ()


@dataclass(frozen=True)
class TestTask:
    """Score a kept packed file on the test split, on any node; `number` is its trial.

    Attributes:
        artifact: the file's hash.
        blob: the file.
    """

    __test__ = False
    number: int
    artifact: str
    blob: bytes = field(repr=False)


@dataclass(frozen=True)
class LayerTask:
    """Compress a site at several choices; `number` is the task's own.

    Attributes:
        policy: which model, with which channels and blocks cut out; its choices do not matter.
        site: its name.
        choices: what to compress it at.
        sensing: how closely to look at what each choice costs in loss; None does not look.
    """

    number: int
    policy: Policy
    site: str
    choices: tuple[Choice, ...]
    sensing: Sensing | None = None

    def run(self, scorer: Scorer) -> list[Cost]:
        """Have the layers in the layer database; what they cost, `Price` each where that is looked at.

        Raises:
            CandidateError: a choice does not fit the site, or it cannot be compressed.
            RetryableError: out of memory.
        """
        with sorted_failures(f"site {self.site}: "):
            return self._costs(scorer)

    def _costs(self, scorer: Scorer) -> list[Cost]:
        """The costs, from batches of choices: what is made of one choice does not depend on the others."""
        variant = scorer.models.variant(self.policy)
        site = next(one for one in variant.sites if one.name == self.site)
        database, cut = scorer.models.database(self.policy.model), variant.cuts.get(self.site)
        most = max(1, BATCH // site.size)
        batches = [self.choices[start : start + most] for start in range(0, len(self.choices), most)]
        costs = [cost for batch in batches for cost in database.costs(site, batch, cut)]
        if self.sensing is None:
            return costs
        return [*prices(scorer, self.policy, self.site, self.choices, costs, self.sensing)]

    def insist(self, scorer: Scorer) -> list[Cost]:
        """`run` with further tries, as a pool has it done.

        Raises:
            CandidateError: a choice does not fit the site, or all tries failed.
        """
        try:
            return _insisting(lambda: self.run(scorer))
        except RetryableError as error:
            raise CandidateError(in_vain(str(error))) from error


@dataclass(frozen=True)
class Result:
    """What came back: a score, one on the test split, costs, or the reason why there is none; and where it was made.

    Attributes:
        number: the task's.
        score, test, costs, error: one of them.
        seconds: that it took.
        host: whose process it was.
        machine: what it was measured on (see `objectives.machine`).
        blob: the packed file of a score that keeps one, where it is not yet in the driver's cache folder.
    """

    number: int
    score: Score | None = None
    test: Accuracy | None = None
    costs: tuple[Cost, ...] | None = None
    error: str | None = None
    seconds: float = 0.0
    host: str = ""
    machine: str = ""
    blob: bytes | None = field(default=None, repr=False)


Task = ScoreTask | TestTask | LayerTask


def in_vain(why: str) -> str:
    """Why a task is given up that may be tried again, and was.

    Args:
        why: the last try failed.
    """
    return f"failed {RETRIES + 1} times, the last time: {why}"


def _insisting(work: Callable[[], T]) -> T:
    """Do something, with a pause before each further try.

    Raises:
        RetryableError: the last try failed.
    """
    for pause in PAUSES:
        with contextlib.suppress(RetryableError):
            return work()
        time.sleep(pause)
    return work()


def run(scorer: Scorer, cache: Path, task: Task, *, carry: bool = False) -> Result:
    """Carry a task out; a candidate's own failure is a result, too.

    Args:
        scorer: of the study.
        cache: the folder for packed files.
        task: what is to be done.
        carry: whether the driver has another cache folder, so that a packed file has to come with the result. It comes
            also where this process cannot write it: the driver then waits for room.

    Raises:
        RetryableError: out of memory.
    """
    clock = time.perf_counter()
    try:
        result = _outcome(scorer, cache, task, carry=carry)
    except RetryableError:
        raise
    except SlimfrontError as error:
        result = Result(task.number, error=str(error))
    evaluation = scorer.evaluation
    return replace(
        result,
        seconds=time.perf_counter() - clock,
        host=socket.gethostname(),
        machine=machine(evaluation.device, evaluation.threads),
    )


def _outcome(scorer: Scorer, cache: Path, task: Task, *, carry: bool) -> Result:
    match task:
        case ScoreTask(number, policy, judge, start):
            score, blob = scorer.packed(policy, judge, start)
            if score.artifact is not None and blob is not None:
                scorer.share(score.artifact, blob)
                if not carry:
                    with contextlib.suppress(RetryableError):
                        keep_packed(cache, score.artifact, blob)
                        blob = None
            return Result(number, score=score, blob=blob)
        case TestTask(number, artifact, blob):
            return Result(number, test=scorer.score_blob(blob, artifact_path(cache, artifact), "test"))
        case LayerTask(number):
            return Result(number, costs=tuple(task.run(scorer)))


class Pool(Protocol):
    """Takes tasks and gives results, in any order."""

    def submit(self, task: Task) -> None:
        """Queue a task."""

    def collect(self, timeout: float) -> list[Result]:
        """Results that are ready; waits up to `timeout` seconds for the first one."""

    def withdraw(self) -> int:
        """Take back what no worker has begun; how many results are still to come."""

    def close(self) -> None:
        """End the workers."""


class Late:
    """A pool that is made when it is first given something.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], Pool]) -> None:
        self._make = make
        self._pool: Pool | None = None

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._pool = self._pool or self._make()
        self._pool.submit(task)

    def collect(self, timeout: float) -> list[Result]:
        """Results that are ready."""
        return self._pool.collect(timeout) if self._pool else []

    def withdraw(self) -> int:
        """Take back what no worker has begun; how many results are still to come."""
        return self._pool.withdraw() if self._pool else 0

    def close(self) -> None:
        """End the workers, where there are any."""
        if self._pool:
            self._pool.close()


class LocalPool:
    """Scores in the driver's own process, one task a `collect`."""

    def __init__(self, scorer: Scorer, cache: Path) -> None:
        self._scorer, self._cache = scorer, cache
        self._queue: deque[Task] = deque()
        self._arrivals = Arrivals(cache)

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._queue.append(task)

    def collect(self, timeout: float) -> list[Result]:
        """The result of the oldest task, with pauses before further tries.

        Raises:
            StudyError: the cache folder could not be written for too long.
        """
        if self._arrivals.waiting:
            time.sleep(min(timeout, WAIT_SECONDS))
            return self._arrivals.through()
        return self._arrivals.through(self._scored())

    def _scored(self) -> list[Result]:
        if not self._queue:
            return []
        task = self._queue.popleft()
        try:
            return [_insisting(lambda: run(self._scorer, self._cache, task))]
        except RetryableError as error:
            return [Result(task.number, error=in_vain(str(error)))]

    def withdraw(self) -> int:
        """Take back what has not begun: everything, between two `collect` calls, but a result that waits for room."""
        self._queue.clear()
        return self._arrivals.waiting

    def close(self) -> None:
        """Give what other nodes may use a few seconds to get there."""
        self._scorer.close()
