"""One launch of a search: prepares it, has candidates scored until the budget is used, and ends politely."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from compress.files import artifact_path, sweep
from compress.layer import Cost
from objectives.score import Scorer
from search.candidates import Build, Checked, Prepared, build_here, check, prepare
from search.config import Config
from search.crew import Crew
from search.describe import check_unchanged, describe
from search.driver import SAMPLER_PREFIX, Driver
from search.front import Front, read_front
from search.goals import Deadline, Focus, check_goals
from search.launched import Engine, Launch
from search.lease import Lease, holder, refuse_held
from search.pareto import Box, reference_box
from search.patience import PATIENCE_SECONDS
from search.pool import start_ray, stop_ray
from search.progress import SearchProgress, say
from search.restoring import lost
from search.samplers.proposer import Proposer
from search.signals import stopped_politely
from search.storage import MissingStoreError, Storage, check_storage_url, open_storage
from search.stored import pick_study
from search.study import Trials, open_study
from search.tasks import Late, LayerTask, LocalPool, Pool
from spaces.errors import ConfigError


@dataclass(frozen=True)
class LaunchResult:
    """How a launch ended: the study's front, and whether it was interrupted before its budget was used."""

    study: str
    front: Front
    interrupted: bool


def launch(config: Config, *, takeover: bool = False, engine: "Engine | None" = None) -> LaunchResult:
    """Start a search, or resume it when its study exists.

    Args:
        config: the search.
        takeover: wait for the lease of a driver on another host to run out, and go on in its place.
        engine: has the candidates scored; None for the one that the config names.

    Raises:
        ConfigError, WorkloadError: fix the input; nothing was written.
        StudyError: the store cannot be reached, or another driver searches this study.
    """
    url = config.resolved_storage()
    check_storage_url(url)
    engine = _engine(config, engine)
    deadline = Deadline(config.budget.timeout, config.budget.until, datetime.now(UTC))
    say(f"study {config.study}: loading {config.workload}")
    checked = check(config)
    sampler = config.sampler
    Proposer(checked.space, sampler.name, sampler.options, config.seed, ()).check()
    if (done := _finished(config, checked, url, takeover=takeover)) is not None:
        say(f"study {config.study} is finished: its {config.budget.trials} trials are told")
        return LaunchResult(config.study, done, interrupted=False)
    with _prepared(config, checked) as (prepared, pool):
        score = prepared.float_score
        check_goals(config.budget, _box(prepared), score.bytes, score.validation.value)
        with contextlib.closing(open_storage(url, create=True, patience=PATIENCE_SECONDS, say=say)) as storage:
            study_id, _ = open_study(storage, config.study)
            with Lease(storage, study_id, takeover=takeover) as lease:
                describe(storage, study_id, config, prepared, lease)
                interrupted = search(config, prepared, storage, study_id, lease, deadline, pool, engine)
            found = read_front(storage, pick_study(storage, config.study))
    return LaunchResult(config.study, found, interrupted)


def search(
    config: Config,
    prepared: Prepared,
    storage: Storage,
    study_id: int,
    lease: Lease,
    deadline: Deadline,
    pool: Pool,
    engine: Engine | None = None,
) -> bool:
    """Search a study that is described and leased until its budget is used.

    Args:
        config: the search.
        prepared: what is known before its first trial.
        storage: the study database.
        study_id: the study's id in it.
        lease: on the study.
        deadline: when this launch's time is up.
        pool: scores.
        engine: has the candidates scored; None for the pool.

    Returns:
        Whether it was interrupted before.

    Raises:
        StudyError: the database or the pool failed, or the study was taken over; nothing told is lost.
    """
    trials = Trials(storage, study_id, lease.guard)
    focus = _focus(storage, trials, lease, config.budget.focus)
    sampler = config.sampler
    proposer = Proposer(
        prepared.space, sampler.name, sampler.options, config.seed, prepared.first, prepared.knowledge, focus.at
    )
    attrs = storage.get_study_user_attrs(study_id)
    proposer.restore(
        {key.removeprefix(SAMPLER_PREFIX): v for key, v in attrs.items() if key.startswith(SAMPLER_PREFIX)}
    )
    stop = threading.Event()

    def hurry() -> None:
        storage.patience = min(storage.patience, config.budget.grace)

    with (
        stopped_politely(stop, hurry),
        SearchProgress(config.budget.trials, trials.told, prepared.float_score.bytes) as progress,
    ):
        for told in trials.finished():
            progress.show(told.values, now=False)
        before = trials.told
        driver = Driver(config, proposer, len(prepared.first), trials, _box(prepared), lease.guard)
        launched = Launch(config, prepared, storage, trials, driver, pool, progress, lease, stop, deadline)
        launched.wait_for_workers()
        if driver.ends:
            progress.say(f"{driver.ends}; raise budget.patience or leave it out to go on")
        elif before:
            progress.say(f"goes on after {before} of {config.budget.trials} trials")
        progress.start()
        (engine or Launch.until_budget)(launched)
        return (launched.stopped and not driver.finished) or not launched.score_test()


def _finished(config: Config, checked: Checked, url: str, *, takeover: bool) -> Front | None:
    """The front of a study that is there already and lacks nothing; nothing is compressed or started for it.

    Raises:
        ConfigError: the study is about something else.
        StudyError: somebody searches it.
    """
    try:
        storage = open_storage(url, create=False)
    except MissingStoreError:
        return None
    with contextlib.closing(storage):
        try:
            study_id = storage.get_study_id_from_name(config.study)
        except KeyError:
            return None
        refuse_held(storage, study_id, takeover=takeover)
        if holder(storage, study_id) is not None:  # who was killed at the very end: its lease is to be given back
            return None
        stored = storage.get_study_user_attrs(study_id)
        check_unchanged(stored, config, checked)
        if "fingerprint" not in stored:
            return None
        found = read_front(storage, pick_study(storage, config.study))
    left = config.budget.trials - sum(found.states.values())
    members = (*found.points, *found.uniform)
    whole = found.compared and all(one.test_accuracy is not None for one in members)
    done = left <= 0 and "RUNNING" not in found.states and whole and not lost(members, checked.evaluation.cache)
    return found if done else None


def _engine(config: Config, engine: Engine | None) -> Engine:
    """Who has the candidates scored.

    Raises:
        ConfigError: it cannot.
    """
    if config.engine == "pool":
        return engine or Launch.until_budget
    try:
        from search.tune import check_tune, run
    except ImportError as error:
        raise ConfigError(
            "engine: given tune, which needs Ray Tune: pip install 'slimfront[tune]', or take engine: pool "
            f"({' '.join(str(error).split())})"
        ) from error
    check_tune(config)
    return engine or run


def _box(prepared: Prepared) -> Box:
    """Where the hypervolume of the front is taken."""
    return reference_box(prepared.smallest_bytes, prepared.float_score.bytes, prepared.loaded.workload.chance)


def _focus(storage: Storage, trials: Trials, lease: Lease, span: tuple[int, int] | None) -> Focus:
    """What the study's candidates aim at, and from the next one on do in this launch; the study is told."""
    stored = Focus.read(storage.get_study_user_attrs(trials.study_id).get("focus", ()))
    focus = stored.then(trials.count, span)
    if focus != stored:
        storage.set_study_attrs(trials.study_id, {"focus": focus.document()}, lease.guard)
    return focus


@contextlib.contextmanager
def _prepared(config: Config, checked: Checked) -> Iterator[tuple[Prepared, Pool]]:
    """The prepared search and who scores its candidates; Ray, which takes seconds to start, starts beside the work."""
    if config.workers == 0:
        prepared = prepare(config, checked, _with_cache(build_here), config.budget.focus)
        with contextlib.closing(LocalPool(prepared.scorer, prepared.evaluation.cache)) as pool:
            yield prepared, pool
        return
    say(f"starting {config.workers} Ray workers")
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(start_ray, config)
        crew = Crew(config, starting)
        try:
            prepared = prepare(config, checked, _with_cache(crew.build), config.budget.focus)
            if config.engine == "tune":
                starting.result()
                crew.close()  # Tune's own workers take their place; others score the test split
                yield prepared, Late(lambda: crew.pool(prepared.scorer))
            else:
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
            sweep(artifact_path(cache, "").parent)
        except OSError as error:
            raise ConfigError(f"cache: the folder {cache} cannot be made: {error}") from error
        return build(scorer, tasks)

    return built
