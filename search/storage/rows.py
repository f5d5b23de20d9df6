"""Optuna's tables, and reading many trials of them in six statements."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, Table, select

STUDIES: Final[Table] = models.StudyModel.__table__
STUDY_ATTRS: Final[Table] = models.StudyUserAttributeModel.__table__
TRIALS: Final[Table] = models.TrialModel.__table__
PARAMS: Final[Table] = models.TrialParamModel.__table__
VALUES: Final[Table] = models.TrialValueModel.__table__
USER_ATTRS: Final[Table] = models.TrialUserAttributeModel.__table__
STUDY_SYSTEM_ATTRS: Final[Table] = models.StudySystemAttributeModel.__table__
DIRECTIONS: Final[Table] = models.StudyDirectionModel.__table__
SYSTEM_ATTRS: Final[Table] = models.TrialSystemAttributeModel.__table__
INTERMEDIATE_VALUES: Final[Table] = models.TrialIntermediateValueModel.__table__
ENDED: Final = tuple(state for state in TrialState if state.is_finished())


def read_frozen_trials(connection: Connection, wanted: ColumnElement[bool]) -> list[FrozenTrial]:
    """The wanted trials by id; they share the objects of equal distributions."""
    trials = {
        trial_id: FrozenTrial(
            number=number,
            trial_id=trial_id,
            state=state,
            value=None,
            datetime_start=_local(started),
            datetime_complete=_local(completed),
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for trial_id, number, state, started, completed in connection.execute(
            select(
                TRIALS.c.trial_id,
                TRIALS.c.number,
                TRIALS.c.state,
                TRIALS.c.datetime_start,
                TRIALS.c.datetime_complete,
            )
            .where(wanted)
            .order_by(TRIALS.c.trial_id)
        )
    }

    def rows_of(table: Table, *columns: str) -> Iterator[Any]:
        named = (table.c[name] for name in ("trial_id", *columns))
        ids = select(TRIALS.c.trial_id).where(wanted)
        stored = next(iter(table.primary_key))  # grows in the order in which rows were stored
        yield from connection.execute(select(*named).where(table.c.trial_id.in_(ids)).order_by(stored))

    known: dict[str, BaseDistribution] = {}
    for trial_id, name, value, text in rows_of(PARAMS, "param_name", "param_value", "distribution_json"):
        if (distribution := known.get(text)) is None:
            distribution = known[text] = json_to_distribution(text)
        trial = trials[trial_id]
        trial.params[name] = distribution.to_external_repr(value)
        trial.distributions[name] = distribution
    values: dict[int, dict[int, float]] = {}
    for trial_id, objective, value, kind in rows_of(VALUES, "objective", "value", "value_type"):
        values.setdefault(trial_id, {})[objective] = models.TrialValueModel.stored_repr_to_value(value, kind)
    for trial_id, by_objective in values.items():
        trials[trial_id].values = [value for _, value in sorted(by_objective.items())]
    for trial_id, key, text in rows_of(USER_ATTRS, "key", "value_json"):
        trials[trial_id].user_attrs[key] = json.loads(text)
    for trial_id, key, text in rows_of(SYSTEM_ATTRS, "key", "value_json"):
        trials[trial_id].system_attrs[key] = json.loads(text)
    intermediate = models.TrialIntermediateValueModel
    columns = ("step", "intermediate_value", "intermediate_value_type")
    for trial_id, step, value, kind in rows_of(INTERMEDIATE_VALUES, *columns):
        number = intermediate.stored_repr_to_intermediate_value(value, kind)
        trials[trial_id].intermediate_values[step] = number
    return list(trials.values())


def _local(stored: datetime | None) -> datetime | None:
    """The time as Optuna shows it: in local time, without saying so."""
    return None if stored is None else stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
