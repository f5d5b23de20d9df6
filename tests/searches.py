"""Searches of the tiny workload, and what two runs of one search must have in common."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from search.config import Config
from search.config_sections import BudgetConfig, DistillationConfig, SamplerConfig, SpaceConfig
from search.storage import open_storage
from search.stored import load_tested

STUDY = "tiny"
TRIALS = 24
NSGA2 = SamplerConfig(name="nsga2", options={"population_size": 6}, uniform=3, predicted=4)
FRONT = SamplerConfig(uniform=3, predicted=4)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/tiny.db"


def tiny(folder: Path, trials: int = TRIALS, **changed: Any) -> Config:
    """A search of the tiny workload that is scored in this process; NSGA-II breeds in it."""
    settings: dict[str, Any] = {
        "study": STUDY,
        "workload": "tests.tiny:workload",
        "space": SpaceConfig(bits=(2, 4, 6), ratios=(0.0, 0.6, 0.9)),
        "distillation": DistillationConfig(steps=(6, 18), batch_size=32, learning_rate=0.02, share=0.0),
        "sampler": NSGA2,
        "budget": BudgetConfig(trials=trials),
        "workers": 0,
        "window": 4,
        "chunk": 25,
        "storage": url_of(folder),
        "cache": str(folder / "cache"),
    }
    return Config(**{**settings, **changed})


@dataclass(frozen=True)
class Row:
    """What of a trial must not depend on workers, restarts and clocks."""

    number: int
    state: str
    values: tuple[float, ...]
    params: dict[str, Any]
    rungs: list[dict[str, Any]]
    attrs: dict[str, Any]
    system_attrs: dict[str, Any]


def row(trial: FrozenTrial) -> Row:
    circumstances = ("seconds", "host", "machine", "rungs")
    attrs = {key: value for key, value in trial.user_attrs.items() if key not in circumstances}
    rungs = [
        {key: value for key, value in rung.items() if key != "seconds"} for rung in trial.user_attrs.get("rungs", ())
    ]
    return Row(
        trial.number,
        trial.state.name,
        tuple(trial.values or ()),
        trial.params,
        rungs,
        attrs,
        dict(trial.system_attrs),
    )


def trials_of(store: Path | str) -> list[FrozenTrial]:
    """The trials that are in the store: that of a folder, or one with this URL."""
    with closing(open_storage(store if isinstance(store, str) else url_of(store), create=False)) as storage:
        return storage.load_trials(storage.get_study_id_from_name(STUDY))


def rows_of(store: Path | str) -> list[Row]:
    return [row(trial) for trial in trials_of(store)]


def attrs_of(store: Path | str) -> dict[str, Any]:
    """What the study says of itself: its attributes, and what is known of its front on the test split."""
    with closing(open_storage(store if isinstance(store, str) else url_of(store), create=False)) as storage:
        study_id = storage.get_study_id_from_name(STUDY)
        return {**storage.get_study_user_attrs(study_id), **load_tested(storage, study_id)}


def document_of(store: Path | str, key: str) -> Any:
    """A document of the study."""
    with closing(open_storage(store if isinstance(store, str) else url_of(store), create=False)) as storage:
        return storage.load_document(storage.get_study_id_from_name(STUDY), key)


def outcomes_of(store: Path | str) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """The outcomes that are stored, by trial and rung: values and losses."""
    with closing(open_storage(store if isinstance(store, str) else url_of(store), create=False)) as storage:
        found = storage.load_outcomes(storage.get_study_id_from_name(STUDY))
    return {
        (number, rung): (one.values.tobytes(), one.losses.tobytes())
        for number, rungs in sorted(found.items())
        for rung, one in sorted(rungs.items())
    }


def untell(folder: Path, left: int) -> None:
    """Make the last trials what a driver that was killed leaves: asked, and not told."""
    with closing(open_storage(url_of(folder), create=False)) as storage:
        ids = [trial._trial_id for trial in storage.load_trials(storage.get_study_id_from_name(STUDY))[-left:]]
        with storage.engine.begin() as connection:
            for trial_id in ids:
                connection.exec_driver_sql(f"delete from trial_values where trial_id = {trial_id}")
                connection.exec_driver_sql(
                    f"delete from trial_user_attributes where trial_id = {trial_id} "
                    "and key not in ('origin', 'digest', 'continues')"
                )
                connection.exec_driver_sql(
                    f"update trials set state = 'RUNNING', datetime_complete = null where trial_id = {trial_id}"
                )
