"""Narrow reads of a study: counts, sums and numbers of all its trials, and everything of those that are asked for."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from optuna.distributions import json_to_distribution
from optuna.trial import TrialState
from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    cast,
    exists,
    func,
    select,
)

from search.storage.rows import PARAMS, STUDIES, STUDY_ATTRS, TRIALS, USER_ATTRS, VALUES

_FETCHED = 2_000  # rows of JSON that are in memory at once


class OnRung(NamedTuple):
    """What a candidate was on a rung: bytes of its file, accuracy on validation."""

    rung: int
    bytes: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A COMPLETE trial as the few numbers that a plot or a comparison of all trials needs.

    Attributes:
        trial: its number.
        bytes: of its file.
        accuracy: on validation; an estimate where it was stopped.
        origin: who proposed it.
        rung: the last one it reached.
        stopped: whether its last evaluation was stopped early.
        full: what it was on each rung on which it was scored in full, in their order.
    """

    trial: int
    bytes: int
    accuracy: float
    origin: str
    rung: int
    stopped: bool
    full: tuple[OnRung, ...]


class Ended(NamedTuple):
    """When a trial was told, in UTC without saying so, and the seconds that scoring it took."""

    at: datetime
    seconds: float


class NotOursError(Exception):
    """A trial lacks what every trial of a search has: its number, and the name of that."""

    def __init__(self, number: int, lacks: str) -> None:
        super().__init__(f"trial {number} has no {lacks!r}")
        self.number, self.lacks = number, lacks


# Each of these is one or two statements, whatever the number of trials, and takes a connection, so that several of
# them in one transaction see one snapshot.


def read_names(connection: Connection) -> dict[str, int]:
    """The ids of all studies, by name."""
    return {name: study_id for name, study_id in connection.execute(select(STUDIES.c.study_name, STUDIES.c.study_id))}


def read_study_attrs(connection: Connection, study_id: int) -> dict[str, Any]:
    """The user attributes of a study."""
    wanted = select(STUDY_ATTRS.c.key, STUDY_ATTRS.c.value_json).where(STUDY_ATTRS.c.study_id == study_id)
    return {key: json.loads(text) for key, text in connection.execute(wanted)}


def count_states(connection: Connection, study_id: int) -> dict[str, int]:
    """How many trials are in which state."""
    counted = select(TRIALS.c.state, func.count()).where(TRIALS.c.study_id == study_id).group_by(TRIALS.c.state)
    return {name: count for name, count in sorted((state.name, count) for state, count in connection.execute(counted))}


def sum_attrs(connection: Connection, study_id: int, keys: Collection[str], *, unless: str) -> dict[str, int]:
    """The sums of some whole-numbered user attributes over all trials but those that have the attribute `unless`."""
    other = USER_ATTRS.alias("other")
    excluded = exists().where(other.c.trial_id == USER_ATTRS.c.trial_id, other.c.key == unless)
    summed = (
        select(USER_ATTRS.c.key, func.sum(cast(USER_ATTRS.c.value_json, BigInteger)))
        .join(TRIALS, TRIALS.c.trial_id == USER_ATTRS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, USER_ATTRS.c.key.in_(keys), ~excluded)
        .group_by(USER_ATTRS.c.key)
    )
    found = {key: int(total) for key, total in connection.execute(summed)}
    return {key: found.get(key, 0) for key in keys}


def read_candidates(connection: Connection, study_id: int) -> list[Candidate]:
    """All COMPLETE trials, by bytes and number.

    Raises:
        NotOursError: one has no origin or no values that are numbers.
    """
    by_rung = _full_rungs(connection, study_id)
    origins: dict[str, str] = {}
    found = []
    for trial_id, number, accuracy, size, origin, rung, stopped in connection.execute(
        _complete(study_id, "origin", "rung", "stopped")
    ):
        if size is None or accuracy is None:
            raise NotOursError(number, "values")
        if origin is None or rung is None:
            raise NotOursError(number, "origin" if origin is None else "rung")
        if origin not in origins:
            origins[origin] = json.loads(origin)
        bytes, last, cut = int(size), int(rung), stopped == "true"
        plain = () if cut else (OnRung(last, bytes, accuracy),)
        full = by_rung.get(trial_id, plain)
        found.append(Candidate(number, bytes, accuracy, origins[origin], last, cut, full))
    found.sort(key=lambda one: (one.bytes, one.trial))
    return found


def best_within(connection: Connection, study_id: int, limit: int) -> tuple[int, float, int] | None:
    """Number, accuracy and bytes of the most accurate COMPLETE trial of at most `limit` bytes that was not stopped.

    Of equally accurate ones it is the smallest, of equal ones the first; None if there is none.
    """
    wanted = _complete(study_id, "stopped")
    _, number, accuracy, size, stopped = wanted.selected_columns
    fitting = wanted.where(size <= limit, stopped.is_(None) | (stopped != "true"))
    row = connection.execute(fitting.order_by(accuracy.desc(), size, number).limit(1)).one_or_none()
    return None if row is None else (row[1], row[2], int(row[3]))


def latest_ends(connection: Connection, study_id: int, count: int) -> list[Ended]:
    """The latest trials that were told, at most `count`, the earliest first."""
    seconds = USER_ATTRS.alias("seconds")
    ended = (
        select(TRIALS.c.datetime_complete, seconds.c.value_json)
        .outerjoin(seconds, _is_attr(seconds.c, "seconds"))
        .where(TRIALS.c.study_id == study_id, TRIALS.c.datetime_complete.is_not(None))
        .order_by(TRIALS.c.datetime_complete.desc())
        .limit(count)
    )
    return [Ended(at, float(json.loads(text or "0"))) for at, text in reversed(connection.execute(ended).all())]


def read_attrs(connection: Connection, study_id: int, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """All user attributes of these trials, by number."""
    found: dict[int, dict[str, Any]] = {number: {} for number in numbers}
    wanted = select(TRIALS.c.number, USER_ATTRS.c.key, USER_ATTRS.c.value_json)
    rows = wanted.join(USER_ATTRS, USER_ATTRS.c.trial_id == TRIALS.c.trial_id).where(_are(study_id, numbers))
    for number, key, text in connection.execute(rows):
        found[number][key] = json.loads(text)
    return found


def read_params(connection: Connection, study_id: int, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The parameters of these trials, as a user sees them, by number; less those that the study does not have."""
    wanted = select(TRIALS.c.number, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)
    rows = wanted.outerjoin(PARAMS, PARAMS.c.trial_id == TRIALS.c.trial_id).where(_are(study_id, numbers))
    known: dict[str, Any] = {}
    found: dict[int, dict[str, Any]] = {}
    for number, name, value, text in connection.execute(rows):
        params = found.setdefault(number, {})
        if name is None:  # a trial without parameters
            continue
        if text not in known:
            known[text] = json_to_distribution(text)
        params[name] = known[text].to_external_repr(value)
    return found


def _are(study_id: int, numbers: Sequence[int]) -> ColumnElement[bool]:
    # written into the statement: a front may have more members than a database takes parameters
    listed: BindParameter[Any] = bindparam("numbers", list(numbers), expanding=True, literal_execute=True)
    return and_(TRIALS.c.study_id == study_id, TRIALS.c.number.in_(listed))


def _is_attr(columns: Any, key: str) -> ColumnElement[bool]:
    return and_(columns.trial_id == TRIALS.c.trial_id, columns.key == key)


def _complete(study_id: int, *keys: str) -> Select[Any]:
    """Id, number, accuracy, bytes and the JSON of some user attributes of all COMPLETE trials."""
    values = [VALUES.alias("accuracy"), VALUES.alias("bytes")]
    attrs = {key: USER_ATTRS.alias(key) for key in keys}
    joined: FromClause = TRIALS
    for objective, one in enumerate(values):
        joined = joined.outerjoin(one, and_(one.c.trial_id == TRIALS.c.trial_id, one.c.objective == objective))
    for key, one in attrs.items():
        joined = joined.outerjoin(one, _is_attr(one.c, key))
    columns = [TRIALS.c.trial_id, TRIALS.c.number, *(one.c.value for one in values)]
    texts = [one.c.value_json for one in attrs.values()]
    where = TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE
    return select(*columns, *texts).select_from(joined).where(*where)


def _full_rungs(connection: Connection, study_id: int) -> dict[int, tuple[OnRung, ...]]:
    """What the COMPLETE trials that came beyond rung 0 were on the rungs where they were scored in full, by id."""
    rungs, rung, stopped = (USER_ATTRS.alias(key) for key in ("rungs", "rung", "stopped"))
    wanted = (
        select(TRIALS.c.trial_id, rungs.c.value_json, rung.c.value_json, stopped.c.value_json)
        .join(rung, _is_attr(rung.c, "rung"))
        .join(rungs, _is_attr(rungs.c, "rungs"))
        .outerjoin(stopped, _is_attr(stopped.c, "stopped"))
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE, rung.c.value_json != "0")
    )
    found = {}
    for trial_id, text, last, cut in connection.execute(wanted, execution_options={"yield_per": _FETCHED}):
        own = (OnRung(one["rung"], one["bytes"], one["accuracy"]) for one in json.loads(text))
        found[trial_id] = tuple(sorted(one for one in own if cut != "true" or one.rung != int(last)))
    return found
