"""The driver: asks for candidates, has them scored, and tells the results in the order in which they were asked."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from compress.layer import Cost
from objectives.score import Scorer
from search.candidates import Build, Checked, Prepared, build_here, check, prepare
from search.config import Config
from search.continuing import to_continue
from search.crew import Crew
from search.describe import describe
from search.front import Front, front
from search.goals import Deadline, Focus, Patience, check_goals
from search.honest import held_back
from search.lease import Lease
from search.pareto import Box, reference_box
from search.pool import RayPool, start_ray, stop_ray
from search.progress import SearchProgress, say
from search.rungs import History
from search.samplers.proposer import Proposer
from search.signals import stopped_politely
from search.storage import Storage, check_storage_url, open_storage
from search.study import Asked, Proposal, Trials, open_study
from search.tasks import LayerTask, LocalPool, Pool, Result, ScoreTask
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
    deadline = Deadline(config.budget.timeout, config.budget.until, datetime.now(UTC))
    say(f"study {config.study}: loading {config.workload}")
    checked = check(config)
    sampler = config.sampler
    Proposer(checked.space, sampler.name, sampler.options, config.seed, ()).check()
    with _prepared(config, checked) as (prepared, pool):
        score = prepared.float_score
        check_goals(config.budget, _box(prepared), score.bytes, score.validation.value)
        with contextlib.closing(open_storage(url, create=True)) as storage:
            study_id, _ = open_study(storage, config.study)
            with Lease(storage, study_id, takeover=takeover) as lease:
                describe(storage, study_id, config, prepared)
                focus = _focus(storage, study_id, config.budget.focus)
                proposer = Proposer(
                    checked.space,
                    sampler.name,
                    sampler.options,
                    config.seed,
                    prepared.first,
                    prepared.knowledge,
                    focus.at,
                )
                interrupted = _Search(config, prepared, proposer, storage, study_id, lease, deadline).run(pool)
    return LaunchResult(config.study, front(config.study, url), interrupted)


def _box(prepared: Prepared) -> Box:
    """Where the hypervolume of the front is taken."""
    return reference_box(prepared.smallest_bytes, prepared.float_score.bytes, prepared.loaded.workload.chance)


def _focus(storage: Storage, study_id: int, span: tuple[int, int] | None) -> Focus:
    """What the study's candidates aim at, and from the next one on do in this launch; the study is told."""
    stored = Focus.read(storage.get_study_user_attrs(study_id).get("focus", ()))
    focus = stored.then(storage.get_n_trials(study_id), span)
    if focus != stored:
        storage.set_study_attrs(study_id, {"focus": focus.document()})
    return focus


@contextlib.contextmanager
def _prepared(config: Config, checked: Checked) -> Iterator[tuple[Prepared, Pool]]:
    """The prepared search and who scores its candidates; Ray, which takes seconds to start, starts beside the work."""
    if config.workers == 0:
        prepared = prepare(config, checked, _with_cache(build_here), config.budget.focus)
        yield prepared, LocalPool(prepared.scorer, prepared.evaluation.cache)
        return
    say(f"starting {config.workers} Ray workers")
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(start_ray, config.workers)
        crew = Crew(config, starting)
        try:
            prepared = prepare(config, checked, _with_cache(crew.build), config.budget.focus)
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
        deadline: Deadline,
    ) -> None:
        self._config, self._prepared, self._lease = config, prepared, lease
        self._storage, self._study_id = storage, study_id
        self._proposer = proposer
        self._trials = Trials(storage, study_id)
        self._history, self._judged = _history(config), _history(config)  # of what is visible, and of all that is told
        self._visible = 0  # trials that the sampler and the history have been shown
        self._asked = 0  # trials replayed or asked in this launch
        self._arrived: dict[int, Result] = {}
        self._deadline = deadline
        self._patience = Patience(config.budget.patience, _box(prepared))
        self._stop = threading.Event()
        self._reasons: set[str] = set()  # why trials failed, each said once
        for told in self._trials.finished():
            self._judged_now(told)
        attrs = storage.get_study_user_attrs(study_id)
        proposer.restore(
            {key.removeprefix(SAMPLER_PREFIX): v for key, v in attrs.items() if key.startswith(SAMPLER_PREFIX)}
        )

    def run(self, pool: Pool) -> bool:
        """Search until the budget is used; whether it was interrupted before."""
        told = self._trials.told
        total = self._config.budget.trials
        with stopped_politely(self._stop), SearchProgress(total, told, self._prepared.float_score.bytes) as progress:
            for outcome in self._trials.finished():
                progress.show(outcome.values, now=False)
                self._watch(outcome)
            if isinstance(pool, RayPool):
                pool.wait_until_ready()
            if self._patience.stopped is not None:
                progress.say(f"{self._ends()}; raise budget.patience or leave it out to go on")
            elif told:
                progress.say(f"goes on after {told} of {total} trials")
            progress.start()
            self._until_budget(pool, progress)
            interrupted = self._stop.is_set()
            if not interrupted:
                self._score_test(pool, progress)
        return interrupted

    def _until_budget(self, pool: Pool, progress: SearchProgress) -> None:
        """Ask, collect and tell until the budget is used, or until what runs is finished after a stop."""
        self._deadline.start()
        while self._trials.told < self._budget():
            if self._stop.is_set() or self._deadline.passed:
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
        wanted = self._patience.trials(self._config.budget.trials, self._config.window)
        return max(wanted, self._trials.count)

    def _watch(self, told: Asked) -> None:
        """Let patience see the next told trial."""
        self._patience.tell(told.values, first=told.origin in ("uniform", "predicted"))

    def _ends(self) -> str:
        return f"{self._patience.words}: the study ends with {self._budget()} trials"

    def _ask_more(self, pool: Pool) -> None:
        while self._asked < min(self._budget(), self._trials.told + self._config.window):
            number = self._asked
            self._show_until(number - self._config.window)
            if number < self._trials.count:
                asked = self._trials[number]
                policy = self._proposer.replay(number, asked.params, asked.system_attrs)
            else:
                self._lease.check()
                proposal = self._proposal(number)
                policy = proposal.policy
                asked = self._trials.start(proposal, self._proposer.distributions, SAMPLER_PREFIX)
            self._asked += 1
            if self._trials.first_with(number) == number and not asked.told:
                start = () if asked.continues is None else self._trials[asked.continues].rungs
                judgement = self._history.judges(always=asked.origin == "uniform")
                pool.submit(ScoreTask(number, policy, judgement, start))

    def _proposal(self, number: int) -> Proposal:
        """The next trial: it continues one that turned out strong, or is what the sampler proposes."""
        again = None
        if number >= len(self._prepared.first):
            last = len(self._config.distillation.steps)
            again = to_continue(number, self._trials.asked, self._visible, self._history, last)
        if again is None:
            return self._proposer.propose(number)
        params = self._trials[again].params
        return Proposal(self._proposer.replay(number, params, {}), params, "continued", {}, {}, again)

    def _show_until(self, number: int) -> None:
        """Let the sampler and the history see the told trials up to and with `number`."""
        while self._visible <= number:
            trial = self._trials[self._visible]
            self._proposer.tell(self._visible, trial.values, trial.rungs, stopped=trial.stopped)
            if trial.rungs:
                self._history.tell(trial.number, trial.rungs, self._trials.outcomes(trial.number), trial.stopped)
            self._trials.forget_outcomes(trial.number)
            self._visible += 1

    def _tell_in_order(self, progress: SearchProgress) -> None:
        """Tell what arrived, as far as there is no gap; a repeated policy is answered from memory."""
        while (number := self._trials.told) < self._asked:
            first = self._trials.first_with(number)
            if first == number and number not in self._arrived:
                return
            self._lease.check()
            told = self._trials.repeat(first) if first < number else self._tell(self._arrived.pop(number), progress)
            self._judged_now(told)
            progress.show(told.values)
            self._watch(told)
            if self._patience.stopped == self._trials.told:
                progress.say(self._ends())

    def _judged_now(self, told: Asked) -> None:
        """Judge the outcomes of the next trials by what is told up to now, whoever has seen it."""
        if told.rungs:
            self._judged.tell(told.number, told.rungs, (), told.stopped)

    def _tell(self, result: Result, progress: SearchProgress) -> Asked:
        where = {"seconds": round(result.seconds, 3), "host": result.host}
        if result.score is None:
            reason = result.error or "no reason was given"
            if reason not in self._reasons:
                self._reasons.add(reason)
                progress.say(f"trial {result.number} failed: {reason}")
            return self._trials.fail(reason, where)
        kept = {
            rung.rung
            for rung in result.score.rungs
            if self._judged.keeps_outcomes(rung.rung, rung.accuracy, rung.bytes)
        }
        return self._trials.complete(result.score, where, kept)

    def _score_test(self, pool: Pool, progress: SearchProgress) -> None:
        """Score the members of the front, and the uniform policies, on the held-back test split, and compare them."""
        found = front(self._config.study, self._config.resolved_storage())
        attrs = self._storage.get_study_user_attrs(self._study_id)
        if new := held_back(found, attrs, pool, progress.say):
            self._lease.check()
            self._storage.set_study_attrs(self._study_id, new)


def _history(config: Config) -> History:
    return History(len(config.distillation.steps) + 1, config.distillation.share, config.racing.confidence)
