"""Studies of every kind of row to copy, their rows by table, and copies that end early."""

from contextlib import closing
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.storages._rdb.models import BaseModel
from optuna.trial import TrialState, create_trial
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, select, text

from objectives.racing import Outcomes
from search.address import full_address
from search.copying import Copied, copy
from search.storage import End, Start, Storage, open_storage
from search.study import open_study
from tests.stores import DISTRIBUTIONS, PARAMS, USER
from tests.studies import CONFIG, SPACE, describe

NAME = CONFIG.study
TOLD = 9


def start(number: int) -> Start:
    params = {**PARAMS[number % len(PARAMS)], "layers.0/bits": 2 + number % 7, "temperature": 1 + number / 3}
    return Start(
        number, params, DISTRIBUTIONS, {**USER, "asked": number}, {"nsga:generation": number}, {"sampler:n": number}
    )


def end(number: int) -> End:
    if number % 4 == 3:
        return End(number, TrialState.FAIL, None, {"error": "out of memory"})
    values = [0.1 * number, float("inf") if number == 2 else 1e5 / 3]
    outcomes = {0: outcomes_for(number), 1: outcomes_for(number + 1)}
    return End(number, TrialState.COMPLETE, values, {"rung": 1, "seconds": 0.1 * number}, outcomes)


def outcomes_for(number: int) -> Outcomes:
    generator = np.random.default_rng(number)
    return Outcomes(generator.integers(0, 2, 21).astype("f4"), generator.random(21, "f4"))


def grow(storage: Storage, study_id: int, told: int, asked: int) -> None:
    """Go on with a study until so many are told and asked."""
    states = [trial.state for trial in storage.load_trials(study_id)]
    running = [number for number, state in enumerate(states) if state is TrialState.RUNNING]
    starts = [start(number) for number in range(len(states), asked)]
    ends = [end(number) for number in sorted({*running, *range(len(states), asked)}) if number < told]
    storage.write_trials(study_id, starts, ends)


def go_on(url: str, told: int, asked: int) -> None:
    with closing(open_storage(url, create=False)) as storage:
        grow(storage, storage.get_study_id_from_name(NAME), told, asked)


def write(url: str, told: int = TOLD, asked: int = TOLD + 3) -> str:
    """A study of every kind of row, beside another one that takes the ids before it."""
    with closing(open_storage(url, create=True)) as storage:
        other = optuna.create_study(storage=storage, study_name="other", directions=["maximize"] * 3)
        other.add_trial(create_trial(values=[1.0, 2.0, 3.0], params={}, distributions={}))
        study_id, _ = open_study(storage, NAME)
        storage.make_outcomes(study_id)
        storage.set_study_attrs(study_id, describe(CONFIG, cache="/caches/new", earlier_caches=["/caches/old"]))
        storage.set_documents(study_id, {"sensitivities": {"wide": ["é" * 50_000]}, "space": SPACE.document()})
        grow(storage, study_id, told, asked)
        running = storage.get_all_trials(study_id)[asked - 1]._trial_id
        if asked > told:
            for step, value in enumerate([0.5, float("nan"), float("-inf")]):
                storage.set_trial_intermediate_value(running, step, value)
    return url


def tables(url: str, study: str = NAME) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a study by table, in the order of their ids, which are replaced by the trials' numbers."""
    engine = create_engine(full_address(url))
    found: dict[str, list[tuple[Any, ...]]] = {}
    with closing(engine.connect()) as connection:
        known = MetaData()
        known.reflect(connection)
        query = text("select study_id from studies where study_name = :name")
        study_id = connection.execute(query, {"name": study}).scalar_one()
        trials = known.tables["trials"]
        wanted = select(trials.c.trial_id, trials.c.number).where(trials.c.study_id == study_id)
        numbers = {trial_id: number for trial_id, number in connection.execute(wanted)}
        for name, reflected in known.tables.items():
            table = BaseModel.metadata.tables.get(name, reflected)  # which says how floats are read
            if name in ("alembic_version", "version_info", "studies", "slimfront_lease"):
                continue
            owner = "trial_id" if "trial_id" in table.c else "study_id"
            ids = {key.name for key in table.primary_key} & {"param_id", f"{name.rstrip('s')}_id"} | {
                column.name for column in table.c if column.name.endswith("_id")
            }
            rows = connection.execute(select(table).order_by(*table.primary_key)).mappings()
            of_study = {study_id} if owner == "study_id" else set(numbers)
            kept = [one for one in rows if one[owner] in of_study]
            found[name] = [
                (
                    *((numbers[one["trial_id"]],) if "trial_id" in table.c else ()),
                    *(value for column, value in one.items() if column not in ids),
                )
                for one in kept
            ]
    engine.dispose()
    return {
        name: sorted(rows, key=lambda one: one[0]) if name.startswith("trial_") else rows
        for name, rows in found.items()
    }


def in_seconds(value: Any) -> Any:
    return value.replace(microsecond=0) if isinstance(value, datetime) else value


def quiet(words: str) -> None:
    pass


def copied(source: str, target: str, batch: int = 5) -> Copied:
    return copy(NAME, source, target, quiet, batch=batch)


class Cut(Exception):  # noqa: N818
    """The end of a copy; nothing catches it."""


def cut(study: str, source: str, target: str, at: int, batch: int = 3) -> bool:
    """Copy, but end at this statement that writes the target's rows, from 0; whether it came to that."""
    seen = 0

    def after(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal seen
        words = statement.split()
        rows = words[0] in ("INSERT", "DELETE", "UPDATE") and words[2] not in ("slimfront_lease", "version_info")
        if rows and "target" in str(connection.engine.url) and "alembic" not in statement:
            seen += 1
            if seen > at:
                raise Cut

    event.listen(Engine, "after_cursor_execute", after)
    try:
        copy(study, source, target, quiet, batch=batch)
    except Cut:
        return True
    finally:
        event.remove(Engine, "after_cursor_execute", after)
    return False
