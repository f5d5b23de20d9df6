"""A study's rows as they are stored, a batch of trials at a time, without the ids that each database gives anew."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Column, ColumnElement, Connection, Enum, Table, delete, func, insert, inspect, select

from search.storage import documents, outcomes
from search.storage.inserting import insert_rows
from search.storage.rows import (
    DIRECTIONS,
    INTERMEDIATE_VALUES,
    PARAMS,
    STUDIES,
    STUDY_ATTRS,
    STUDY_SYSTEM_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
)
from spaces.errors import StudyError

MARK: Final = "copying"  # the only user attribute of a study that is not all there yet
HEARTBEATS: Final[Table] = models.TrialHeartbeatModel.__table__
KINDS: Final[Mapping[str, Table]] = {  # what a trial owns, in the words of a report
    "parameters": PARAMS,
    "values": VALUES,
    "intermediate values": INTERMEDIATE_VALUES,
    "user attributes": USER_ATTRS,
    "system attributes": SYSTEM_ATTRS,
    "outcomes": outcomes.TABLE,
}
_OF_STUDY: Final = (DIRECTIONS, STUDY_ATTRS, STUDY_SYSTEM_ATTRS, documents.TABLE)
_OURS: Final = (outcomes.TABLE, documents.TABLE)


@dataclass(frozen=True)
class TrialRows:
    """All rows of a trial.

    Attributes:
        own: number, state, start and end.
        owned: rows by kind, as in `KINDS`, in the order in which they were stored.
    """

    own: tuple[int, TrialState, Any, Any]
    owned: Mapping[str, list[tuple[Any, ...]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    @property
    def running(self) -> bool:
        """Whether it was asked and not yet told."""
        return self.own[1] is TrialState.RUNNING

    @property
    def asked(self) -> tuple[Any, ...]:
        """What is there of it from its start on: number, start, parameters."""
        return self.own[0], self.own[2], self.owned["parameters"]

    def in_seconds(self) -> "TrialRows":
        """The same with times of whole seconds, which is all that MySQL keeps of Optuna's."""
        number, state, *times = self.own
        start, end = (None if time is None else time.replace(microsecond=0) for time in times)
        return replace(self, own=(number, state, start, end))


@dataclass(frozen=True)
class Head:
    """All rows of a study that belong to no trial: its directions, attributes and documents, each sorted."""

    directions: tuple[tuple[Any, ...], ...]
    user_attrs: tuple[tuple[Any, ...], ...]
    system_attrs: tuple[tuple[Any, ...], ...]
    documents: tuple[tuple[Any, ...], ...]

    @property
    def attrs(self) -> dict[str, Any]:
        """The user attributes, by key."""
        return {key: json.loads(text) for key, text in self.user_attrs}

    def unfinished(self, source: str) -> "Head":
        """That of a study that is not all there yet; `source` says where it is copied from, without a password."""
        return Head(self.directions, ((MARK, json.dumps({"from": source})),), (), ())


def refuse_unfinished(name: str, attrs: Mapping[str, Any]) -> None:
    """Refuse a study that `slimfront copy` has not copied to its end.

    Raises:
        StudyError: it is one, by its user attributes.
    """
    if MARK in attrs:
        raise StudyError(
            f"study {name!r} is not all there: it is being copied from {attrs[MARK]['from']}, or that was interrupted; "
            f"run the same `slimfront copy` again"
        )


def read_head(connection: Connection, study_id: int) -> Head:
    """What the study says about itself."""
    parts = []
    for table in _OF_STUDY:
        rows: list[tuple[Any, ...]] = []
        if table not in _OURS or inspect(connection).has_table(table.name):
            wanted = select(*_content(table)).where(table.c.study_id == study_id)
            rows = [tuple(row) for row in connection.execute(wanted)]
        parts.append(tuple(sorted(rows, key=repr)))
    return Head(*parts)


def write_head(connection: Connection, study_id: int, head: Head) -> None:
    """Put all of this in place of what the study says about itself."""
    parts = (head.directions, head.user_attrs, head.system_attrs, head.documents)
    for table, rows in zip(_OF_STUDY, parts, strict=True):
        connection.execute(delete(table).where(table.c.study_id == study_id))
        _insert(connection, table, ("study_id",), [(study_id, *row) for row in rows])


def study_named(connection: Connection, name: str, head: Head) -> int:
    """The id of the study of this name; if there is none, of a new one with this head and no trials."""
    wanted = select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    found = connection.scalar(wanted)
    if found is None:
        connection.execute(insert(STUDIES), {"study_name": name})
        found = connection.execute(wanted).scalar_one()
        for table in _OURS:  # what a deleted study left behind; its id may be given again
            connection.execute(delete(table).where(table.c.study_id == found))
        write_head(connection, found, head)
    return int(found)


def trials_of(connection: Connection, study_id: int) -> int:
    """How many trials the study has: one more than the highest number."""
    last = connection.scalar(select(func.max(TRIALS.c.number)).where(TRIALS.c.study_id == study_id))
    return 0 if last is None else int(last) + 1


def read_trials(connection: Connection, study_id: int, low: int, high: int) -> list[TrialRows]:
    """The trials numbered from `low` up to, and without, `high`, by number, in a fixed number of statements."""
    own = TRIALS.c.number, TRIALS.c.state, TRIALS.c.datetime_start, TRIALS.c.datetime_complete
    stored = select(TRIALS.c.trial_id, *own).where(_numbered(TRIALS, study_id, low, high)).order_by(TRIALS.c.number)
    trials = {trial_id: TrialRows((number, *rest)) for trial_id, number, *rest in connection.execute(stored)}
    by_number = {trial.own[0]: trial for trial in trials.values()}
    for kind, table in KINDS.items():
        if table is not outcomes.TABLE:
            _read(connection, table, kind, table.c.trial_id.in_(list(trials)), trials)
        elif inspect(connection).has_table(table.name):
            _read(connection, table, kind, _numbered(table, study_id, low, high), by_number)
    return list(trials.values())


def write_trials(connection: Connection, study_id: int, trials: Sequence[TrialRows]) -> None:
    """Insert trials of consecutive numbers with all that they own; none of these numbers may be there."""
    names = "number", "state", "datetime_start", "datetime_complete"
    own = [{"study_id": study_id, **dict(zip(names, one.own, strict=True))} for one in trials]
    connection.execute(insert(TRIALS), own)
    these = _numbered(TRIALS, study_id, trials[0].own[0], trials[-1].own[0] + 1)
    found = connection.execute(select(TRIALS.c.number, TRIALS.c.trial_id).where(these))
    ids: dict[int, int] = {number: trial_id for number, trial_id in found}
    for kind, table in KINDS.items():
        if table is outcomes.TABLE:
            rows = [(study_id, one.own[0], *row) for one in trials for row in one.owned[kind]]
            _insert(connection, table, ("study_id", "number"), rows)
        else:
            rows = [(ids[one.own[0]], *row) for one in trials for row in one.owned[kind]]
            _insert(connection, table, ("trial_id",), rows)


def delete_trials(connection: Connection, study_id: int, low: int) -> None:
    """Delete the trials numbered from `low` on, with all that they own."""
    these = (TRIALS.c.study_id == study_id) & (TRIALS.c.number >= low)
    ids = select(TRIALS.c.trial_id).where(these)
    for table in (*KINDS.values(), HEARTBEATS):
        if table is outcomes.TABLE:
            connection.execute(delete(table).where(table.c.study_id == study_id, table.c.number >= low))
        else:
            connection.execute(delete(table).where(table.c.trial_id.in_(ids)))
    connection.execute(delete(TRIALS).where(these))


def _numbered(table: Table, study_id: int, low: int, high: int) -> ColumnElement[bool]:
    return (table.c.study_id == study_id) & (table.c.number >= low) & (table.c.number < high)


def _content(table: Table) -> list[Column[Any]]:
    """The columns that are no ids: what two databases have in common."""
    keys = list(table.primary_key)
    ids = {"study_id", "trial_id", "number"} | ({keys[0].name} if len(keys) == 1 else set())
    return [column for column in table.c if column.name not in ids]


def _read(
    connection: Connection, table: Table, kind: str, wanted: ColumnElement[bool], owners: Mapping[int, TrialRows]
) -> None:
    """Hand each row to the trial that owns it, in the order in which they were stored."""
    owner = table.c.number if table is outcomes.TABLE else table.c.trial_id
    for key, *row in connection.execute(select(owner, *_content(table)).where(wanted).order_by(*table.primary_key)):
        if key in owners:
            owners[key].owned[kind].append(tuple(row))


def _insert(connection: Connection, table: Table, owners: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows whose first values are those of the columns `owners`."""
    content = _content(table)
    names = *owners, *(column.name for column in content)
    if not any(isinstance(column.type, Enum) for column in content):
        insert_rows(connection, table, names, rows)
    elif rows:  # SQLAlchemy knows how each database writes these
        connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])
