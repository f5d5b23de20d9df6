"""The driver: asks for candidates, has them scored, and tells the results in the order in which they were asked."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any

from compress.layer import Cost
from objectives.score import Scorer
from search.candidates import Build, Checked, Prepared, build_here, check, prepare
from search.config import Config
from search.crew import Crew
from search.describe import describe
from search.front import Front, front
from search.lease import Lease
from search.pool import RayPool, start_ray, stop_ray
from search.progress import SearchProgress, say
from search.rungs import History
from search.samplers.proposer import Proposer
from search.storage import Storage, check_storage_url, open_storage
from search.study import Asked, Trials, open_study
from search.tasks import LayerTask, LocalPool, Pool, Result, ScoreTask, TestTask
from spaces.errors import ConfigError

SAMPLER_PREFIX = "sampler:"
TICK_SECONDS = 0.5


@dataclass(frozen=True)
class LaunchResult:
    """How a launch ended: the study's front, and whether it was interrupted before its budget was used."""

    study: str
    front: Front
    interrupted: bool


def launch(config: Config, *, takeover: bool = False) -> LaunchResult:
    """Start a search, or resume it when its study exists.

    Args:
        config: the search.
        takeover: wait for the lease of a driver on another host to run out, and go on in its place.

    Raises:
        ConfigError, WorkloadError: fix the input; nothing was written.
        StudyError: the store cannot be reached, or another driver searches this study.
    """
    url = config.resolved_storage()
    check_storage_url(url)
    say(f"study {config.study}: loading {config.workload}")
    checked = check(config)
    sampler = config.sampler
    Proposer(checked.space, sampler.name, sampler.options, config.seed, ()).check()
    with _prepared(config, checked) as (prepared, pool):
        proposer = Proposer(checked.space, sampler.name, sampler.options, config.seed, prepared.first)
        with contextlib.closing(open_storage(url, create=True)) as storage:
            study_id, _ = open_study(storage, config.study)
            with Lease(storage, study_id, takeover=takeover) as lease:
                describe(storage, study_id, config, prepared)
                interrupted = _Search(config, prepared, proposer, storage, study_id, lease).run(pool)
    return LaunchResult(config.study, front(config.study, url), interrupted)


@contextlib.contextmanager
def _prepared(config: Config, checked: Checked) -> Iterator[tuple[Prepared, Pool]]:
    """The prepared search and who scores its candidates; Ray, which takes seconds to start, starts beside the work."""
    if config.workers == 0:
        prepared = prepare(config, checked, _with_cache(build_here))
        yield prepared, LocalPool(prepared.scorer, prepared.evaluation.cache)
        return
    say(f"starting {config.workers} Ray workers")
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(start_ray, config.workers)
        crew = Crew(config, starting)
        try:
            prepared = prepare(config, checked, _with_cache(crew.build))
            yield prepared, crew.pool(prepared.scorer)
        finally:
            crew.close()
            with contextlib.suppress(Exception):
                if starting.result():
                    stop_ray()


def _with_cache(build: Build) -> Build:
    """The same, which makes the cache folder first: nothing is written before, as a loss may still prove wrong."""

    def built(scorer: Scorer, tasks: Sequence[LayerTask]) -> list[list[Cost]]:
        cache = scorer.evaluation.cache
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache: the folder {cache} cannot be made: {error}") from error
        return build(scorer, tasks)

    return built


class _Search:
    """One launch of a study: replays what was told, runs what was asked, and asks on until the budget is used.

    Candidate i is asked when exactly 0 .. i - window have been told to the sampler and to the history that judges it,
    no matter what arrived early, so neither workers nor restarts change a study.
    """

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        proposer: Proposer,
        storage: Storage,
        study_id: int,
        lease: Lease,
    ) -> None:
        self._config, self._prepared, self._lease = config, prepared, lease
        self._storage, self._study_id = storage, study_id
        self._proposer = proposer
        self._trials = Trials(storage, study_id)
        self._history = History(len(prepared.evaluation.steps) + 1, config.distillation.margin)
        self._visible = 0  # trials that the sampler and the history have been shown
        self._asked = 0  # trials replayed or asked in this launch
        self._arrived: dict[int, Result] = {}
        self._stop = threading.Event()
        self._reasons: set[str] = set()  # why trials failed, each said once
        attrs = storage.get_study_user_attrs(study_id)
        proposer.restore(
            {key.removeprefix(SAMPLER_PREFIX): v for key, v in attrs.items() if key.startswith(SAMPLER_PREFIX)}
        )

    def run(self, pool: Pool) -> bool:
        """Search until the budget is used; whether it was interrupted before."""
        told = self._trials.told
        total = self._config.budget.trials
        with _signals(self._stop), SearchProgress(total, told, self._prepared.float_score.bytes) as progress:
            for outcome in self._trials.finished():
                progress.show(outcome.values, now=False)
            if isinstance(pool, RayPool):
                pool.wait_until_ready()
            if told:
                progress.say(f"goes on after {told} of {total} trials")
            progress.start()
            self._until_budget(pool, progress)
            interrupted = self._stop.is_set()
            if not interrupted:
                self._score_test(pool, progress)
        return interrupted

    def _until_budget(self, pool: Pool, progress: SearchProgress) -> None:
        """Ask, collect and tell until the budget is used, or until what runs is finished after a stop."""
        timeout = self._config.budget.timeout
        end = time.monotonic() + timeout if timeout else float("inf")
        while self._trials.told < self._budget():
            if self._stop.is_set() or time.monotonic() > end:
                return self._finish_running(pool, progress)
            self._ask_more(pool)
            if self._trials.told not in self._arrived:
                self._collect(pool)
            self._tell_in_order(progress)

    def _finish_running(self, pool: Pool, progress: SearchProgress) -> None:
        left = pool.withdraw()
        why = "stopping" if self._stop.is_set() else "the time is up"
        progress.say(f"{why}: {left} running candidates are finished first" if left else why)
        while left > 0:
            left -= self._collect(pool)
        self._tell_in_order(progress)

    def _collect(self, pool: Pool) -> int:
        results = pool.collect(TICK_SECONDS)
        self._arrived.update({result.number: result for result in results})
        return len(results)

    def _budget(self) -> int:
        """Trials the study shall have: what was asked once is always told."""
        return max(self._config.budget.trials, self._trials.count)

    def _ask_more(self, pool: Pool) -> None:
        while self._asked < min(self._budget(), self._trials.told + self._config.window):
            number = self._asked
            self._show_until(number - self._config.window)
            if number < self._trials.count:
                asked = self._trials[number]
                policy = self._proposer.replay(number, asked.params, asked.system_attrs)
            else:
                self._lease.check()
                proposal = self._proposer.propose(number)
                policy = proposal.policy
                asked = self._trials.start(proposal, self._proposer.distributions, SAMPLER_PREFIX)
            self._asked += 1
            if self._trials.first_with(number) == number and not asked.told:
                promotion, keep = self._history.judges(always=asked.origin == "uniform")
                pool.submit(ScoreTask(number, policy, promotion, keep))

    def _show_until(self, number: int) -> None:
        """Let the sampler and the history see the told trials up to and with `number`."""
        while self._visible <= number:
            trial = self._trials[self._visible]
            self._proposer.tell(self._visible, trial.values)
            if trial.rungs:
                self._history.tell(trial.rungs)
            self._visible += 1

    def _tell_in_order(self, progress: SearchProgress) -> None:
        """Tell what arrived, as far as there is no gap; a repeated policy is answered from memory."""
        while (number := self._trials.told) < self._asked:
            first = self._trials.first_with(number)
            if first == number and number not in self._arrived:
                return
            self._lease.check()
            told = self._trials.repeat(first) if first < number else self._tell(self._arrived.pop(number), progress)
            progress.show(told.values)

    def _tell(self, result: Result, progress: SearchProgress) -> Asked:
        where = {"seconds": round(result.seconds, 3), "host": result.host}
        if result.score is None:
            reason = result.error or "no reason was given"
            if reason not in self._reasons:
                self._reasons.add(reason)
                progress.say(f"trial {result.number} failed: {reason}")
            return self._trials.fail(reason, where)
        return self._trials.complete(result.score, where)

    def _score_test(self, pool: Pool, progress: SearchProgress) -> None:
        """Score the members of the front, and the uniform policies, on the held-back test split."""
        found = front(self._config.study, self._config.resolved_storage())
        points = {point.trial: point for point in (*found.points, *found.uniform)}
        missing = {p.trial: p.artifact for p in points.values() if p.test_accuracy is None and p.artifact}
        if not missing:
            return
        progress.say(f"scoring {len(missing)} policies on the test split")
        for trial, artifact in missing.items():
            pool.submit(TestTask(trial, artifact))
        scores: dict[str, float] = {}
        left = len(missing)
        while left:
            results = pool.collect(TICK_SECONDS)
            left -= len(results)
            for result in results:
                if result.test_accuracy is None:
                    progress.say(f"trial {result.number} has no test accuracy: {result.error}")
                else:
                    scores[str(result.number)] = result.test_accuracy
        self._lease.check()
        known: Mapping[str, Any] = self._storage.get_study_user_attrs(self._study_id).get("test", {})
        self._storage.set_study_attrs(self._study_id, {"test": {**known, **scores}})


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks for a polite end, the second one ends at once; both lose nothing told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
