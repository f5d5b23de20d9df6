"""The pool of Ray workers: hands tasks out, collects results, and decides what is tried again."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from objectives.evaluation import Evaluation, Teacher
from objectives.workload import LoadedWorkload
from search.arrivals import Arrivals
from search.config import Config
from search.pool.connecting import is_client, joined_address, start_ray, stop_ray
from search.pool.head import HeadWatch, head_address
from search.pool.losses import OUT_OF_MEMORY
from search.pool.rejoining import Rejoining
from search.pool.retrying import Retries
from search.pool.room import alive_nodes, check_local
from search.pool.staff import Back, Staff
from search.pool.suspects import Suspects
from search.pool.workers import requested, starter
from search.progress import say as say_on_stderr
from search.tasks import Result, Task
from spaces.errors import StudyError

DEATHS = 3  # of its workers, for which a task is blamed
TICK_SECONDS = 1.0


@dataclass(frozen=True)
class _Death:
    """How and on which node a worker died that was running a task."""

    reason: str
    node: str


class RayPool:
    """Scores on Ray workers, one actor each; a lost worker is started again and its tasks are tried elsewhere.

    Work goes to workers that are ready, and one of them is enough; others join when they are. What a task costs here
    grows with workers and tasks by no more than a logarithm.

    Args:
        config: of the search: how many workers, on which Ray, with what set aside for each.
        loaded: the workload, as the driver has it.
        evaluation: settings of the study.
        teacher: the float model's outputs, shared through the object store.
        say: takes a line for people.
        joined: whether the caller joined or started this Ray by `start_ray`, and stops it: the pool may then join a
            lost cluster again, too, and still leaves the end to the caller.
        worker: starts an actor of another kind, with the methods `ready()` and `run(task)`: a simulated one.
        concurrency: tasks that such an actor runs at a time; it counts as so many workers.

    Raises:
        StudyError: Ray does not start, or this machine has less than the workers ask for.
    """

    def __init__(
        self,
        config: Config,
        loaded: LoadedWorkload,
        evaluation: Evaluation,
        teacher: Teacher,
        say: Callable[[str], None] = say_on_stderr,
        *,
        joined: bool = False,
        worker: Callable[[], Any] | None = None,
        concurrency: int = 1,
    ) -> None:
        self._config, self._say = config, say
        self._ours = start_ray(config, say)
        asked = requested(config, evaluation.device)
        workers, local = max(1, config.workers), joined_address(config) is None
        if local and worker is None:
            check_local(asked, workers)

        def hired() -> Staff:
            start = starter(config, loaded, evaluation, teacher) if worker is None else worker
            return Staff(start, workers, concurrency, None if local else asked, say)

        self._hire = hired
        client = is_client()
        self._rejoins = client and (self._ours or joined)
        self._arrivals = Arrivals(evaluation.cache, say)
        self._queue: deque[Task] = deque()
        self._running: dict[int, Task] = {}  # by the number of the call, which is the order of handing out
        self._results: list[Result] = []
        self._retries = Retries()
        self._suspects = Suspects(say)
        self._deaths: dict[int, list[_Death]] = {}
        self._rejoining: Rejoining | None = None
        try:
            self._staff = hired()
        except ConnectionError as error:
            self._rejoin(error)
        self._watch = None if local or client else HeadWatch(head_address(), say)

    def is_ready(self) -> bool:
        """Whether a worker has loaded the workload; does not wait.

        Raises:
            StudyError: none can.
        """
        self._pump(0.0)
        return self._ready > 0

    def wait_until_ready(self, workers: int = 1, timeout: float = math.inf) -> bool:
        """Wait for workers to have loaded the workload; whether they have.

        Args:
            workers: how many.
            timeout: seconds.

        Raises:
            StudyError: none can.
        """
        end = time.monotonic() + timeout
        while self._ready < workers and (left := end - time.monotonic()) > 0:
            self._pump(min(left, TICK_SECONDS))
        return self._ready >= workers

    def submit(self, task: Task) -> None:
        """Queue a task, and hand it out if a worker has room."""
        self._queue.append(task)
        self._dispatch()

    def collect(self, timeout: float) -> list[Result]:
        """Results that are ready, all of them; waits up to `timeout` seconds for the first one.

        Raises:
            StudyError: no worker can be started, a cluster or its head stays lost, or the cache folder could not be
                written for too long.
        """
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            self._pump(min(left, TICK_SECONDS, self._retries.pause) if self._busy and not self._results else 0.0)
            arrived, self._results = self._results, []
            if ready := self._arrivals.through(arrived):
                return ready
            left = end - time.monotonic()
            if left <= 0 or not (self._busy or self._arrivals.waiting):
                return []
            if not self._busy:
                time.sleep(min(left, TICK_SECONDS))

    def withdraw(self) -> int:
        """Take back what no worker has been handed; how many results are still to come."""
        self._queue.clear()
        self._retries.clear()
        self._suspects.clear()
        return len(self._running) + len(self._results) + self._arrivals.waiting

    def close(self) -> None:
        """End the workers, and the Ray that was started for them."""
        if self._watch is not None:
            self._watch.close()
        if self._rejoining is None:
            self._staff.close()
        else:
            self._rejoining.give_up()
        if self._ours:
            stop_ray()

    @property
    def _ready(self) -> int:
        return self._staff.ready if self._rejoining is None else 0

    @property
    def _busy(self) -> bool:
        """Whether workers have something to do."""
        return bool(self._running or self._queue or self._retries or self._suspects)

    def _pump(self, timeout: float) -> None:
        """Take in what workers are done with, and hand out what they have room for."""
        if self._watch is not None:
            self._watch.check()
        if self._rejoining is not None:
            staff = self._rejoining.staff(timeout)
            if staff is None:
                return
            self._staff, self._rejoining, timeout = staff, None, 0.0
            self._say("the Ray cluster is joined again: the search goes on")
        try:
            for back in self._staff.back(timeout):
                self._take_in(back)
            self._dispatch()
        except ConnectionError as error:  # of Ray's client: a driver on a node ends with its node
            self._rejoin(error)

    def _dispatch(self) -> None:
        try:
            while self._rejoining is None and (self._handed_again() or self._handed_next() or self._handed_alone()):
                pass
        except ConnectionError as error:
            self._rejoin(error)

    def _handed_alone(self) -> bool:
        """Hand out what is to run alone, once nothing else runs; whether that was so, and a worker had room."""
        task = self._suspects.next
        if task is None or self._running or (call := self._staff.hand(task)) is None:
            return False
        self._suspects.begun()
        self._running[call] = task
        return True

    def _handed_again(self) -> bool:
        """Hand out what is to be tried again; whether a worker other than those that failed had room."""
        task = None if self._suspects else self._retries.due()
        if task is None or (call := self._staff.hand(task, self._retries.seats(task))) is None:
            return False
        self._retries.pop()
        self._running[call] = task
        return True

    def _handed_next(self) -> bool:
        """Hand out the first in the queue; whether a worker had room."""
        if self._suspects or not self._queue or (call := self._staff.hand(self._queue[0])) is None:
            return False
        self._running[call] = self._queue.popleft()
        return True

    def _take_in(self, back: Back) -> None:
        result = back.result
        doubtful = not self._suspects.ended(back.task.number) and back.death == OUT_OF_MEMORY
        if result is None and not doubtful and (given_up := self._given_up(back)) is not None:
            result = Result(back.task.number, error=given_up)
        del self._running[back.call]  # not before: a cluster that is lost meanwhile loses what runs, and no more
        if result is not None:
            self._retries.forget(result.number)
            self._deaths.pop(result.number, None)
            self._results.append(result)
        elif back.death == OUT_OF_MEMORY:
            self._suspects.add(back.task)
        elif back.refused is None:
            self._queue.appendleft(back.task)

    def _given_up(self, back: Back) -> str | None:
        """Why a task that did not succeed is not tried again, if it is not."""
        if back.refused is not None:
            return self._retries.add(back.task, back.seat, back.refused)
        return None if back.death is None else self._blame(back.task, _Death(back.death, back.node))

    def _blame(self, task: Task, death: _Death) -> str | None:
        """Why a task is given up, if it is: what died with its node is no task's fault, and may show only later."""
        deaths = self._deaths.setdefault(task.number, [])
        deaths.append(death)
        if len(deaths) < DEATHS:
            return None
        alive = alive_nodes()
        deaths[:] = [one for one in deaths if one.node in alive]
        return f"it killed its worker {DEATHS} times, the last time: {death.reason}" if len(deaths) >= DEATHS else None

    def _rejoin(self, error: Exception) -> None:
        """Begin to join a cluster again that Ray's client has lost; what ran is tried again.

        Raises:
            StudyError: it is not Ray's client that lost it.
        """
        if not self._rejoins:
            raise StudyError(f"the connection to Ray is lost: {error}") from error
        self._say("the connection to the Ray cluster is lost: it is joined again, and what ran there is tried again")
        self._queue.extendleft(reversed(self._running.values()))
        for task in self._running.values():
            self._suspects.ended(task.number)
        self._running.clear()
        self._rejoining = Rejoining(stop_ray, lambda: start_ray(self._config, self._say), self._hire)
