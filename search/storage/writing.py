"""Trials as they start and end: checked, encoded, and stored in a fixed number of statements."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Row, insert, select, update

from objectives.racing import Outcomes
from search.storage.inserting import insert_rows, put_attrs
from search.storage.outcomes import replace_outcomes
from search.storage.rows import PARAMS, STUDY_ATTRS, SYSTEM_ATTRS, TRIALS, USER_ATTRS, VALUES
from spaces.errors import StudyError

_MOST_TEXTS: Final = 10_000


@dataclass(frozen=True)
class Start:
    """A trial that starts running.

    Attributes:
        number: from 0; the first of a call must be the study's next one, the others follow it.
        params: parameter name to value, as a user sees it (a choice, not its index).
        distributions: the same names to what they were drawn from.
        user_attrs: JSON values by name, of the trial.
        system_attrs: JSON values by name, of the trial; samplers keep their state here.
        study_attrs: JSON values by name, put into the study's user attributes.
    """

    number: int
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]
    study_attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How a running trial ended.

    Attributes:
        number: of the trial.
        state: COMPLETE, PRUNED or FAIL.
        values: one number per objective, infinite ones allowed; COMPLETE needs them, FAIL has None.
        user_attrs: JSON values by name, added to the trial's.
        outcomes: per sample, by rung; the table was made by `make_outcomes`. None leaves those that are there alone.
    """

    number: int
    state: TrialState
    values: Sequence[float] | None
    user_attrs: Mapping[str, Any]
    outcomes: Mapping[int, Outcomes] | None = None


class DistributionTexts:
    """The JSON of distributions, by object: a search draws all its trials from the same few."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[BaseDistribution, str]] = {}  # holding the object keeps its id its own

    def __call__(self, distribution: BaseDistribution) -> str:
        """The JSON of one."""
        found = self._known.get(id(distribution))
        if found is None:
            if len(self._known) >= _MOST_TEXTS:
                self._known.clear()
            found = self._known[id(distribution)] = (distribution, distribution_to_json(distribution))
        return found[1]


class Batch:
    """Starts and ends that are stored together or not at all.

    Args:
        starts: by number, without gaps.
        ends: of running trials, or of those that start with them.
        texts: the JSON of distributions.

    Raises:
        StudyError: they cannot be stored, whatever the study holds.
    """

    def __init__(self, starts: Sequence[Start], ends: Sequence[End], texts: DistributionTexts) -> None:
        self._starts, self._ends, self._now = starts, ends, utc_now()
        numbers = [start.number for start in starts]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else ()):
            raise StudyError(f"trials {numbers} cannot start together: give them one after another, without gaps")
        if len({end.number for end in ends}) < len(ends):
            raise StudyError(f"trials {[end.number for end in ends]} cannot end: one is told twice")
        for end in ends:
            _check(end)
        self._params = {start.number: list(_drawn(start, texts)) for start in starts}
        self._attrs = {start.number: _texts(start.user_attrs) for start in starts}
        self._system = {start.number: _texts(start.system_attrs) for start in starts}
        self._values = {end.number: list(_values(end)) for end in ends}
        self._study: dict[str, Any] = {}
        for start in starts:
            self._study.update(start.study_attrs)

    @property
    def doing(self) -> str:
        """What storing it is, in words."""
        said = []
        for verb, trials in (("starting", self._starts), ("telling", self._ends)):
            numbers = [trial.number for trial in trials]
            if numbers:
                some = f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {min(numbers)} to {max(numbers)}"
                said.append(f"{verb} {some}")
        return " and ".join(said)

    def store(self, connection: Connection, study_id: int, known: Mapping[int, int]) -> dict[int, int]:
        """Store all of it.

        Args:
            connection: the transaction, which holds the study's row.
            study_id: the study's id in the database.
            known: ids of running trials by number, as far as the caller remembers them.

        Returns:
            The ids of the trials that started, by number.

        Raises:
            StudyError: a number is not the next one, or a trial that ends is not running.
        """
        started = self._start(connection, study_id) if self._starts else {}
        if self._ends:
            self._end(connection, study_id, {**known, **started})
        put_attrs(connection, STUDY_ATTRS, "study_id", {study_id: self._study})
        return started

    def _start(self, connection: Connection, study_id: int) -> dict[int, int]:
        # By id, not by number: that is what the tables have indices for.
        last = select(TRIALS.c.trial_id, TRIALS.c.number).where(TRIALS.c.study_id == study_id)
        newest = connection.execute(last.order_by(TRIALS.c.trial_id.desc()).limit(1)).one_or_none()
        last_id, held = (0, 0) if newest is None else (newest.trial_id, newest.number + 1)
        if (number := self._starts[0].number) != held:
            raise StudyError(
                f"trial {number} cannot start: study {study_id} has {held} trials, so the next number is "
                f"{held}; if another process writes to this study, stop it, and start again"
            )
        new = [
            {"study_id": study_id, "number": n, "state": TrialState.RUNNING, "datetime_start": self._now}
            for n in self._params
        ]
        if connection.dialect.name == "postgresql":
            made = connection.execute(insert(TRIALS).returning(TRIALS.c.trial_id, TRIALS.c.number), new)
        else:
            connection.execute(insert(TRIALS), new)
            newer = (TRIALS.c.study_id == study_id) & (TRIALS.c.trial_id > last_id)
            made = connection.execute(select(TRIALS.c.trial_id, TRIALS.c.number).where(newer))
        ids = {row.number: row.trial_id for row in made}
        params = [(ids[n], *row) for n, rows in self._params.items() for row in rows]
        insert_rows(connection, PARAMS, ("trial_id", "param_name", "param_value", "distribution_json"), params)
        for table, attrs in ((USER_ATTRS, self._attrs), (SYSTEM_ATTRS, self._system)):
            rows = [(ids[n], key, text) for n, own in attrs.items() for key, text in own.items()]
            insert_rows(connection, table, ("trial_id", "key", "value_json"), rows)
        return ids

    def _end(self, connection: Connection, study_id: int, known: Mapping[int, int]) -> None:
        numbers = [end.number for end in self._ends]
        if unknown := [number for number in numbers if number not in known]:
            wanted = (TRIALS.c.study_id == study_id) & TRIALS.c.number.in_(unknown)
            rows = connection.execute(select(TRIALS.c.number, TRIALS.c.trial_id).where(wanted))
            known = {**known, **{row.number: row.trial_id for row in rows}}
        ids = {number: known[number] for number in numbers if number in known}
        if missing := [number for number in numbers if number not in ids]:
            raise StudyError(f"trials {missing} cannot end: study {study_id} has none of these numbers")
        for state in dict.fromkeys(end.state for end in self._ends):
            some = [ids[end.number] for end in self._ends if end.state is state]
            running = TRIALS.c.trial_id.in_(some) & (TRIALS.c.state == TrialState.RUNNING)
            running &= TRIALS.c.study_id == study_id
            ended = {"state": state, "datetime_complete": self._now}
            if connection.execute(update(TRIALS).where(running).values(ended)).rowcount != len(some):
                raise StudyError(_why_not_running(connection, study_id, some))
        values = [(ids[n], *row) for n, rows in self._values.items() for row in rows]
        insert_rows(connection, VALUES, ("trial_id", "objective", "value", "value_type"), values)
        put_attrs(connection, USER_ATTRS, "trial_id", {ids[end.number]: end.user_attrs for end in self._ends})
        kept = {end.number: end.outcomes for end in self._ends if end.outcomes is not None}
        replace_outcomes(connection, study_id, kept)

    def found(self, connection: Connection, study_id: int) -> dict[int, int] | None:
        """What `store` returned, if the database holds what it would write: a commit's answer may have been lost.

        Args:
            connection: the transaction, which holds the study's row.
            study_id: the study's id in the database.
        """
        states = {n: TrialState.RUNNING for n in self._params} | {end.number: end.state for end in self._ends}
        trials = select(TRIALS.c.number, TRIALS.c.trial_id, TRIALS.c.state)
        trials = trials.where(TRIALS.c.study_id == study_id, TRIALS.c.number.in_(states))
        rows = connection.execute(trials).all()
        if {row.number: row.state for row in rows} != states:
            return None
        ids = {row.number: row.trial_id for row in rows}
        if not all(_same(connection, self, number, ids[number]) for number in states):
            return None
        return {number: ids[number] for number in self._params}

    def rows_of(self, number: int) -> tuple[set[tuple[Any, ...]] | None, set[tuple[Any, ...]] | None, dict[str, str]]:
        """The rows of a trial: parameters if it starts, values if it ends, and user attributes."""
        params = {tuple(row) for row in self._params[number]} if number in self._params else None
        values = (
            {(objective, value) for objective, value, _ in self._values[number]} if number in self._values else None
        )
        attrs = dict(self._attrs.get(number, {}))
        for end in self._ends:
            if end.number == number:
                attrs.update(_texts(end.user_attrs))
        return params, values, attrs


def _same(connection: Connection, batch: Batch, number: int, trial_id: int) -> bool:
    def stored(table: Any, *columns: str) -> Sequence[Row[Any]]:
        return connection.execute(select(*(table.c[n] for n in columns)).where(table.c.trial_id == trial_id)).all()

    params, values, attrs = batch.rows_of(number)
    if params is not None and {tuple(r) for r in stored(PARAMS, "param_name", "param_value", "distribution_json")} != (
        params
    ):
        return False
    if values is not None and {tuple(row) for row in stored(VALUES, "objective", "value")} != values:
        return False
    return attrs.items() <= {row.key: row.value_json for row in stored(USER_ATTRS, "key", "value_json")}.items()


def _check(end: End) -> None:
    trial, state, values = f"trial {end.number}", end.state, end.values
    if not state.is_finished():
        raise StudyError(f"{trial} cannot end as {state.name}: tell COMPLETE, PRUNED or FAIL")
    if values is None and state is TrialState.COMPLETE:
        raise StudyError(f"{trial} cannot end as COMPLETE without values: tell it as FAIL")
    if values is not None and (state is TrialState.FAIL or any(math.isnan(value) for value in values)):
        raise StudyError(f"{trial} cannot end as {state.name} with the values {list(values)}")


def _drawn(start: Start, texts: DistributionTexts) -> Iterator[tuple[str, float, str]]:
    params, distributions = start.params, start.distributions
    if params.keys() != distributions.keys():
        odd = ", ".join(sorted(params.keys() ^ distributions.keys()))
        raise StudyError(f"trial {start.number}: parameters and distributions differ in their names: {odd}")
    for name, value in params.items():
        distribution = distributions[name]
        yield name, float(distribution.to_internal_repr(value)), texts(distribution)


def _texts(attrs: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in attrs.items()}


def _values(end: End) -> Iterator[tuple[int, float | None, str]]:
    for objective, value in enumerate(end.values or ()):
        number, kind = models.TrialValueModel.value_to_stored_repr(float(value))
        yield objective, number, kind.name


def _why_not_running(connection: Connection, study_id: int, ids: Sequence[int]) -> str:
    connection.rollback()  # else those that were running look as if they were not
    one = select(TRIALS.c.number, TRIALS.c.state).where(TRIALS.c.study_id == study_id, TRIALS.c.trial_id.in_(ids))
    ended = connection.execute(one.where(TRIALS.c.state != TrialState.RUNNING).order_by(TRIALS.c.number)).first()
    if ended is None:
        return f"trials of study {study_id} are gone: was it deleted?"
    return f"trial {ended.number} is {ended.state.name}, not RUNNING: a trial is started once and told once"


def utc_now() -> datetime:
    """The time as Optuna stores it: in UTC, without saying so."""
    return datetime.now(UTC).replace(tzinfo=None)
