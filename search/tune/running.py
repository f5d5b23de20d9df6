"""A search whose trials Ray Tune runs: as our engine, or in a Tuner of the user's."""

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner

from search.config import Config
from search.launched import Launch
from search.loop import LaunchResult, launch
from search.pool.connecting import joined_address
from search.pool.room import check_local
from search.pool.workers import requested, setup
from search.tune.scoring import ScoringTrainable, open_desk, trainable
from search.tune.searcher import AbruptEndError, KeepWorkers, Losses, PoliteEnd, StudySearcher
from spaces.errors import ConfigError, StudyError

_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the search ends politely by itself
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the searcher says what happened
    "TUNE_STATE_REFRESH_PERIOD": "86400",  # asking for the cluster's resources hangs where its head is lost
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # the study is the state: Tune's own is written for those who look at it
}
_NO_MEMORY = (
    "Ray ended a worker, as its node had too little memory left, and Ray Tune does not go on after that. What is told "
    "is stored: launch again with engine: pool, which does, or with fewer workers or ray.resources.memory"
)


@dataclass(frozen=True)
class TuneSearch:
    """What a `ray.tune.Tuner` needs to run the trials of a search.

    Attributes:
        searcher: suggests candidates, and tells the study.
        trainable: scores one of them.
        workers: how many trials run at a time.
        folder: where Tune keeps its files: a folder of the study's name below it.
        study: its name.
    """

    searcher: StudySearcher
    trainable: type[ScoringTrainable]
    workers: int
    folder: Path
    study: str

    def tune_config(self, **changed: Any) -> TuneConfig:
        """How Tune searches.

        Args:
            **changed: other values of `ray.tune.TuneConfig`, such as a scheduler.
        """
        settings: dict[str, Any] = {
            "search_alg": self.searcher,
            "num_samples": -1,
            "max_concurrent_trials": self.workers,
            "reuse_actors": True,
            "scheduler": KeepWorkers(self.workers),
            "trial_dirname_creator": _folder_of,
        }
        return TuneConfig(**settings | changed)

    def run_config(self, **changed: Any) -> RunConfig:
        """How Tune runs.

        Args:
            **changed: other values of `ray.tune.RunConfig`, such as callbacks and verbose.
        """
        settings: dict[str, Any] = {
            "name": self.study,
            "storage_path": str(self.folder),
            "verbose": 0,
            "checkpoint_config": CheckpointConfig(checkpoint_at_end=False),
        }
        callbacks = [*(changed.pop("callbacks", None) or ()), Losses(self.searcher)]
        return RunConfig(**settings | {"stop": PoliteEnd(self.searcher)} | changed, callbacks=callbacks)


def launch_in_tune(config: Config, fit: Callable[[TuneSearch], Any], *, takeover: bool = False) -> LaunchResult:
    """Start or resume a search whose trials a Tuner of yours runs; the study is that of any other launch.

    Args:
        config: the search; at least one worker.
        fit: has the Tuner fitted, as ``Tuner(search.trainable, tune_config=search.tune_config(),
            run_config=search.run_config()).fit()`` does.
        takeover: see `search.loop.launch`.

    Raises:
        ConfigError, WorkloadError, StudyError: as for `search.loop.launch`.
    """
    return launch(config.model_copy(update={"engine": "tune"}), takeover=takeover, engine=lambda one: drive(one, fit))


def run(launched: Launch) -> None:
    """Have Tune run the trials, quietly, until the budget is used, the time is up, or somebody wants it to end.

    Its files, a folder for each trial, are nobody's but ours, and gone at the end.
    """
    with tempfile.TemporaryDirectory(prefix="slimfront-tune-", ignore_cleanup_errors=True) as folder:
        drive(launched, _fit, Path(folder))


def drive(launched: Launch, fit: Callable[[TuneSearch], Any], folder: Path | None = None) -> None:
    """Have a Tuner run the trials.

    Args:
        launched: the search.
        fit: has the Tuner fitted.
        folder: where Tune keeps its files, unless `fit` says so; None for `tune` below the cache folder.

    Raises:
        ConfigError: Ray is reached by its client, where a Tuner would run elsewhere.
        StudyError: the database or Ray failed; nothing told is lost.
    """
    if launched.driver.finished:
        return
    launched.deadline.start()
    config, prepared = launched.config, launched.prepared
    asked = requested(config, prepared.evaluation.device)
    if joined_address(config) is None:
        check_local(asked, config.workers)
    made = setup(config, prepared.loaded, prepared.evaluation, prepared.teacher)
    name, desk = open_desk(made)
    searcher = StudySearcher(launched, desk)
    kept = folder or prepared.evaluation.cache / "tune"
    search = TuneSearch(searcher, trainable(name, asked), config.workers, kept, config.study)
    try:
        with _as_ours():
            fit(search)
        searcher.tick()
    except (Exception, AbruptEndError) as error:
        if searcher.error is not None:
            raise searcher.error from None
        if isinstance(error.__cause__, OutOfMemoryError):
            raise StudyError(_NO_MEMORY) from None
        raise
    finally:
        searcher.close()
        ray.kill(desk)
    if not (searcher.over or launched.driver.finished):
        launched.stop.set()  # the Tuner had enough


def check_tune(config: Config) -> None:
    """Refuse what Tune cannot run.

    Raises:
        ConfigError: which key, and why.
    """
    if config.workers == 0:
        raise ConfigError("workers: given 0, with engine: tune, allowed 1 or more; engine: pool scores in the driver")
    if (address := joined_address(config)) is not None and address.startswith("ray://"):
        raise ConfigError(
            f"ray.address: given {address}, with engine: tune, allowed auto or HOST:PORT on a node of the cluster: "
            "launch with --detach, or take engine: pool"
        )


def _fit(search: TuneSearch) -> None:
    logger = logging.getLogger("ray.tune")
    level, output = logger.level, os.environ.get("RAY_AIR_NEW_OUTPUT")
    logger.setLevel(logging.CRITICAL)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints errors at every verbosity
    try:
        Tuner(search.trainable, tune_config=search.tune_config(), run_config=search.run_config()).fit()
    finally:
        logger.setLevel(level)
        del os.environ["RAY_AIR_NEW_OUTPUT"]
        if output is not None:
            os.environ["RAY_AIR_NEW_OUTPUT"] = output


@contextlib.contextmanager
def _as_ours() -> Iterator[None]:
    """Tune with our settings, where the user has none, and without what it leaves in this process."""
    given = {name: os.environ.get(name) for name in _SETTINGS}
    handler = signal.getsignal(signal.SIGUSR1)
    os.environ.update({name: value for name, value in _SETTINGS.items() if given[name] is None})
    try:
        yield
    finally:
        for name, value in given.items():
            if value is None:
                os.environ.pop(name, None)
        with contextlib.suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGUSR1, handler)


def _folder_of(trial: Any) -> str:
    """The name of a Tune trial's folder: that of ours, and Tune's own, as a candidate may take several."""
    return f"{trial.config['trial']:06d}-{trial.trial_id}"
