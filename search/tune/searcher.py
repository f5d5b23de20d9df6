"""A Ray Tune searcher over our study: it asks and tells the driver, as the loop of the pool does."""

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from search.arrivals import Arrivals
from search.launched import Launch
from search.pool.connecting import joined_address
from search.pool.head import HeadWatch, head_address
from search.pool.losses import OUT_OF_MEMORY, last_line, loss_of, starts_with_an_error
from search.pool.pool import DEATHS
from search.pool.retrying import Retries
from search.pool.room import alive_nodes
from search.pool.staff import STARTS
from search.pool.suspects import Suspects
from search.tasks import Result, Task
from search.tune.losses import written_error
from search.tune.scoring import Answer
from spaces.errors import StudyError

ANY_SEAT = 0  # Tune, not we, picks who tries again
DESK_SECONDS = 1.0  # that the desk is waited for, until it is looked whether the head is there


class AbruptEndError(BaseException):
    """Ends a Tuner without its own clean-up, which waits for a head that is lost until Ray ends this process."""


class _OfThisProcess:
    """Belongs to the driver: the study is its state, so that Tune's own files hold nothing of it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (type(self).__new__, (type(self),))


class StudySearcher(_OfThisProcess, Searcher):
    """Suggests the candidates that our driver asks, one Tune trial each, and tells it their scores.

    A candidate whose Tune trial came to nothing is suggested again, by the rules of our own pool. Its metrics have
    names that loggers show; the driver takes the whole result from the desk.

    Args:
        launch: the search.
        desk: the actor where tasks and results lie.

    Raises:
        StudyError: the database or Ray failed, or no worker can start; nothing told is lost.
    """

    def __init__(self, launch: Launch, desk: Any) -> None:
        super().__init__()
        self._launch, self._desk = launch, desk
        self._arrivals = Arrivals(launch.prepared.evaluation.cache, launch.progress.say)
        self._queue: deque[Task] = deque()
        self._retries = Retries()
        self._suspects = Suspects(launch.progress.say)
        local = joined_address(launch.config) is None
        self._watch = None if local else HeadWatch(head_address(), launch.progress.say)
        self._running: dict[str, Task] = {}  # by Tune's id
        self._results: list[Result] = []
        self._lost: list[tuple[str, Task, Answer]] = []
        self._errors: dict[str, Exception] = {}  # by Tune's id
        self._deaths: dict[int, list[str]] = {}  # the nodes of each
        self._bad_starts = 0
        self._end = float("inf")  # when what runs is not waited for any more
        self._ending = self._abandoned = False
        self.error: BaseException | None = None  # why it gave up, which Tune does not hand on as it is

    @property
    def running(self) -> int:
        """Tune trials that have not ended."""
        return len(self._running)

    def suggest(self, trial_id: str) -> Any:
        """The next candidate: the number of its trial and its parameters; None where one may come later.

        Args:
            trial_id: Tune's.

        Returns:
            A config, None, or Tune's word for the end of the search.
        """
        try:
            self.tick()
            if self.over:
                return Searcher.FINISHED
            task = self._next()
            if task is None:
                return None
            self._got(self._desk.put.remote(task))
        except BaseException as error:
            raise self.failed(error) from None
        self._running[trial_id] = task
        return {"trial": task.number, **self._launch.trials[task.number].params}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Take the result of a trial, or see that there is none."""
        task = self._running.pop(trial_id, None)
        if task is None:
            return
        try:
            answer: Answer = self._got(self._desk.collect.remote(task.number))
        except StudyError as lost:
            self.error = lost
            return
        except RayError as failure:
            self.error = StudyError(f"Ray lost what the search had on it: {last_line(failure)}; launch again")
            return
        self._lost.append((trial_id, task, answer))

    def on_trial_failed(self, trial_id: str, error: Exception | None) -> None:
        """Learn why a trial that ended had no result."""
        if error is not None:
            self._errors[trial_id] = error

    @property
    def over(self) -> bool:
        """Whether nothing more is suggested."""
        return self._ending or self._launch.driver.finished

    @property
    def out_of_time(self) -> bool:
        """Whether what still runs is not waited for any more."""
        return self._ending and time.monotonic() > self._end

    def tick(self) -> None:
        """Tell what has arrived, ask what may be asked, and see whether somebody wants the search to end."""
        if self.error is not None:
            raise self.error
        if self._watch is not None:
            self._watch.check()
        self._look_for_an_end()
        for trial_id, task, answer in self._lost:
            self._settle(trial_id, task, answer)
        self._lost.clear()
        asking = not self._ending
        while True:
            arrived, self._results = self._results, []
            ready = self._arrivals.through(arrived)
            self._queue += self._launch.driver.step(ready, self._launch.progress, asking=asking)
            waits = self._queue or self._running or self._retries or self._suspects or self._arrivals.waiting
            if waits or self._launch.driver.finished or not asking:
                return

    def abandon(self) -> None:
        """End the workers that still score: nobody waits for them any more."""
        actors = [] if self._abandoned else self._got(self._desk.busy.remote())
        self._abandoned = True
        for actor in actors:
            ray.kill(actor)
        if actors:
            words = "candidates were not finished in time; they are scored when the study goes on"
            self._launch.progress.say(f"{len(actors)} {words}")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its database."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: launch the search again to go on."""

    def _next(self) -> Task | None:
        """What is to be tried again comes first, once its pause is over, or alone once nothing else runs."""
        if self._suspects:
            alone = None if self._running else self._suspects.next
            if alone is not None:
                self._suspects.begun()
            return alone
        task = self._retries.due()
        if task is not None:
            self._retries.pop()
            return task
        return self._queue.popleft() if self._queue else None

    def failed(self, error: BaseException) -> BaseException:
        """Keep why the search gives up; what Tune is ended with."""
        self.error = error
        return AbruptEndError() if self._watch is not None and self._watch.lost else error

    def close(self) -> None:
        """Look no more after the cluster's head."""
        if self._watch is not None:
            self._watch.close()

    def _got(self, reference: Any) -> Any:
        """What the desk answers.

        Raises:
            StudyError: the cluster's head is lost, and perhaps the desk with it.
        """
        while True:
            try:
                return ray.get(reference, timeout=DESK_SECONDS)
            except GetTimeoutError:
                if self._watch is not None:
                    self._watch.check()

    # ------------------------------------------------------------------------------------------- what came of trials

    def _settle(self, trial_id: str, task: Task, answer: Answer) -> None:
        """Take a result in, or have the candidate suggested again unless it is given up."""
        error, alone = self._errors.pop(trial_id, None), self._suspects.ended(task.number)
        if answer.broken:
            raise StudyError(f"a worker cannot start: {answer.broken}")
        if answer.result is not None:
            self._bad_starts = 0
            self._give(answer.result)
        elif answer.refused:
            if given_up := self._retries.add(task, ANY_SEAT, answer.refused):
                self._give(Result(task.number, error=given_up))
        elif error is None:  # somebody's scheduler or stopper ended it
            self._again(task, None)
        elif answer.node and (loss := loss_of(error)) is not None and loss.reason == OUT_OF_MEMORY:
            if alone and (given_up := self._blame(task, answer, error)):
                self._give(Result(task.number, error=given_up))
            else:
                self._suspects.add(task)
        else:
            self._again(task, self._blame(task, answer, error))

    def _blame(self, task: Task, answer: Answer, error: Exception) -> str | None:
        """Why a candidate is given up whose worker was lost, if it is.

        Raises:
            StudyError: no worker starts, or one failed in a way that nobody expected.
        """
        loss = loss_of(error)
        if loss is None:
            raise StudyError(f"a worker failed in a way it should not, please report this: {error}") from error
        if not loss.own:
            return None
        if not answer.node:
            self._bad_starts += 1
            if starts_with_an_error(error) or self._bad_starts >= STARTS:
                raise StudyError(f"a worker cannot start: {last_line(error)}") from error
            return None
        deaths = self._deaths.setdefault(task.number, [])
        deaths.append(answer.node)
        if len(deaths) >= DEATHS:
            alive = alive_nodes()
            deaths[:] = [node for node in deaths if node in alive]
        return f"it killed its worker {DEATHS} times, the last time: {loss.reason}" if len(deaths) >= DEATHS else None

    def _again(self, task: Task, given_up: str | None) -> None:
        if given_up is None:
            self._queue.appendleft(task)
        else:
            self._give(Result(task.number, error=given_up))

    def _give(self, result: Result) -> None:
        self._deaths.pop(result.number, None)
        self._retries.forget(result.number)
        self._results.append(result)

    # ------------------------------------------------------------------------------------------------------ the end

    def _look_for_an_end(self) -> None:
        launch = self._launch
        if launch.stopped:  # perhaps only after the time was up
            self._end = min(self._end, time.monotonic() + launch.grace)
        if self._ending or not (launch.stopped or launch.deadline.passed):
            return
        self._ending = True
        left: int = self._got(self._desk.close.remote())
        why, limit = ("stopping", f", for up to {launch.grace:.0f} s") if launch.stopped else ("the time is up", "")
        launch.progress.say(f"{why}: {left} running candidates are finished first{limit}" if left else why)


class PoliteEnd(_OfThisProcess, Stopper):
    """Looks at each of Tune's steps whether the search shall end, and ends what takes longer than its grace."""

    def __init__(self, searcher: StudySearcher) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """A trial ends by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether nothing that still runs is waited for."""
        searcher = self._searcher
        try:
            searcher.tick()
        except BaseException as error:
            raise searcher.failed(error) from None
        if searcher.out_of_time:
            searcher.abandon()
        return searcher.over and (searcher.out_of_time or not searcher.running)


class KeepWorkers(_OfThisProcess, FIFOScheduler):
    """Keeps all workers while no candidate may be asked: Tune by itself keeps one, and each start costs seconds.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workers, self._done = workers, False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Have room in Tune's cache of actors, which it offers no setting for; without it a search is only slower."""
        super().on_trial_add(tune_controller, trial)
        cache = getattr(getattr(tune_controller, "_tune_controller", None), "_actor_cache", None)
        if cache is not None and not self._done:
            cache.increase_max(trial.placement_group_factory, self._workers)
            self._done = True


class Losses(_OfThisProcess, Callback):
    """Tells the searcher why Tune trials failed."""

    def __init__(self, searcher: StudySearcher) -> None:
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hand on what Ray said when a worker was lost.

        Tune writes that down as text, and pickled, too: what lies in a folder is read, and never run.
        """
        try:
            said = Path(trial.error_file or "").read_text(errors="replace")
        except OSError:
            said = ""
        self._searcher.on_trial_failed(trial.trial_id, written_error(said))
