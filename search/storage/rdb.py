"""Optuna's storage with set-based writes and reads."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Table, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from objectives.racing import Outcomes
from search.address import full_address, hide_password, sqlite_file
from search.storage.connecting import WalConnection, reason
from search.storage.outcomes import TABLE, forget_outcomes, read_outcomes, replace_outcomes
from search.storage.rows import (
    PARAMS,
    STUDIES,
    STUDY_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    put_attrs,
    read_trials,
    utc_now,
    why_not_running,
)
from spaces.errors import StudyError

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Storage(RDBStorage):
    """Optuna's RDB storage whose trial start and trial end are one transaction of set-based statements each.

    The rows are those that Optuna writes: `optuna.load_study`, Optuna Dashboard and any other reader work on
    them. Make one with `open_storage`, which explains what is wrong with a database.

    Example:
        >>> import optuna
        >>> from search.storage import open_storage
        >>> storage = open_storage("sqlite:///example.db", create=True)
        >>> study_id = optuna.create_study(storage=storage, directions=["maximize", "minimize"])._study_id
        >>> trial_id = storage.start_trial(study_id, 0, {}, {}, {"policy": "float"}, {})
        >>> storage.finish_trial(trial_id, optuna.trial.TrialState.COMPLETE, [0.98, 695360.0], {"rung": 0})
        >>> storage.load_trials(study_id)[0].user_attrs
        {'policy': 'float', 'rung': 0}
        >>> storage.close()
    """

    def __init__(self, url: str) -> None:
        address = full_address(url)
        whole = address.render_as_string(hide_password=False)
        on_sqlite = sqlite_file(address) is not None
        try:
            super().__init__(
                whole.replace("{", "{{").replace("}", "}}"),  # Optuna formats it
                {"connect_args": {"factory": WalConnection}} if on_sqlite else {"pool_pre_ping": True},
            )
        except Exception:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise

    def close(self) -> None:
        """Closes this thread's session and all idle connections; using the storage again opens new ones."""
        self.remove_session()
        self.engine.dispose()

    @contextmanager
    def transaction(self, doing: str, *, write: bool) -> Iterator[Connection]:
        """One transaction, committed at the end of the block; what it reads is one snapshot.

        Args:
            doing: what the block does, for the message: "starting trial 7".
            write: whether it writes; on SQLite it then takes the write lock at once, so that it never has to
                give up halfway because another process wrote in between.

        Raises:
            StudyError: the database failed; nothing of the block was stored.
        """
        try:
            with self.engine.connect() as connection:
                if connection.dialect.name == "sqlite":  # Python's driver opens none before the first INSERT
                    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
                elif not write:
                    connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection
                connection.commit()
        except SQLAlchemyError as error:
            raise StudyError(
                f"{doing} failed, {hide_password(self.url)} says: {reason(error, self.url)}; "
                f"what was told before is kept: see that the database answers, then start again"
            ) from error

    def lock_study(self, connection: Connection, study_id: int) -> None:
        """Holds the study's row until the transaction ends: numbers and leases are given out one by one.

        Raises:
            StudyError: there is no such study.
        """
        study = select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
        if connection.scalar(study.with_for_update()) is None:
            raise StudyError(self._no_study(study_id))

    def start_trial(
        self,
        study_id: int,
        number: int,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        user_attrs: Mapping[str, Any],
        system_attrs: Mapping[str, Any],
        study_attrs: Mapping[str, Any] = _NONE,
    ) -> int:
        """Stores a RUNNING trial with its parameters and attributes, and study attributes with it.

        Args:
            study_id: the study's id in the database.
            number: the trial's number, from 0; it must be the next one.
            params: parameter name to value, as a user sees it (a choice, not its index).
            distributions: the same names to what they were drawn from.
            user_attrs: JSON values by name, of the trial.
            system_attrs: JSON values by name, of the trial; samplers keep their state here.
            study_attrs: JSON values by name, put into the study's user attributes in the same transaction.

        Returns:
            The trial's id in the database.

        Raises:
            StudyError: the number is not the next one, or the database failed; nothing was stored.
        """
        if params.keys() != distributions.keys():
            odd = ", ".join(sorted(params.keys() ^ distributions.keys()))
            raise StudyError(f"trial {number}: parameters and distributions differ in their names: {odd}")
        drawn = [
            {
                "param_name": name,
                "param_value": distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(distributions[name]),
            }
            for name, value in params.items()
        ]
        started = utc_now()
        trial = {"study_id": study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": started}
        with self.transaction(f"starting trial {number}", write=True) as connection:
            self.lock_study(connection, study_id)
            count = select(func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
            if (held := connection.scalar(count)) != number:
                raise StudyError(
                    f"trial {number} cannot start: study {study_id} has {held} trials, so the next number is "
                    f"{held}; if another process writes to this study, stop it, and start again"
                )
            made = connection.execute(insert(TRIALS), trial).inserted_primary_key
            assert made is not None  # noqa: S101  # it is None only for statements of many rows
            trial_id = int(made[0])
            if drawn:
                connection.execute(insert(PARAMS), [{"trial_id": trial_id, **row} for row in drawn])
            put_attrs(connection, USER_ATTRS, "trial_id", trial_id, user_attrs)
            put_attrs(connection, SYSTEM_ATTRS, "trial_id", trial_id, system_attrs)
            put_attrs(connection, STUDY_ATTRS, "study_id", study_id, study_attrs)
        return trial_id

    def finish_trial(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
        user_attrs: Mapping[str, Any],
        study_attrs: Mapping[str, Any] = _NONE,
        outcomes: Mapping[int, Outcomes] | None = None,
    ) -> None:
        """Stores how a RUNNING trial ended, once.

        Args:
            trial_id: what `start_trial` returned.
            state: COMPLETE, PRUNED or FAIL.
            values: one number per objective, infinite ones allowed; COMPLETE needs them, FAIL has None.
            user_attrs: JSON values by name, added to the trial's.
            study_attrs: JSON values by name, put into the study's user attributes in the same transaction.
            outcomes: per sample, by rung, stored in the same transaction; `make_outcomes` was called before. None
                leaves those that are there alone.

        Raises:
            StudyError: the trial is not running, the values do not fit the state, or the database failed;
                nothing was stored.
        """
        trial = f"the trial with id {trial_id}"
        if not state.is_finished():
            raise StudyError(f"{trial} cannot end as {state.name}: tell COMPLETE, PRUNED or FAIL")
        if values is None and state is TrialState.COMPLETE:
            raise StudyError(f"{trial} cannot end as COMPLETE without values: tell it as FAIL")
        if values is not None and (state is TrialState.FAIL or any(math.isnan(value) for value in values)):
            raise StudyError(f"{trial} cannot end as {state.name} with the values {list(values)}")
        stored = [
            {"trial_id": trial_id, "objective": objective, "value": number, "value_type": kind}
            for objective, value in enumerate(values or ())
            for number, kind in [models.TrialValueModel.value_to_stored_repr(float(value))]
        ]
        with self.transaction(f"telling {trial}", write=True) as connection:
            running = (TRIALS.c.trial_id == trial_id) & (TRIALS.c.state == TrialState.RUNNING)
            ended = {"state": state, "datetime_complete": utc_now()}
            if connection.execute(update(TRIALS).where(running).values(ended)).rowcount != 1:
                raise StudyError(why_not_running(connection, trial_id))
            if stored:
                connection.execute(insert(VALUES), stored)
            put_attrs(connection, USER_ATTRS, "trial_id", trial_id, user_attrs)
            if study_attrs or outcomes is not None:
                owner = select(TRIALS.c.study_id, TRIALS.c.number).where(TRIALS.c.trial_id == trial_id)
                study_id, number = connection.execute(owner).one()
                put_attrs(connection, STUDY_ATTRS, "study_id", study_id, study_attrs)
                if outcomes is not None:
                    replace_outcomes(connection, study_id, number, outcomes)

    def make_table(self, table: Table) -> None:
        """Makes a table of ours where it is missing.

        Raises:
            StudyError: the database failed.
        """
        for last in (False, True):
            try:
                with self.transaction(f"making the table {table.name}", write=True) as connection:
                    table.create(connection, checkfirst=True)
                return
            except StudyError:  # another process may have made it in between
                if last:
                    raise

    def make_outcomes(self, study_id: int, *, anew: bool) -> None:
        """Makes the table of outcomes where it is missing.

        Args:
            study_id: the study's id in the database.
            anew: forget what is there of this study; ids of deleted studies are given again.

        Raises:
            StudyError: the database failed.
        """
        self.make_table(TABLE)
        if anew:
            with self.transaction("forgetting outcomes", write=True) as connection:
                forget_outcomes(connection, study_id)

    def load_outcomes(self, study_id: int) -> dict[int, dict[int, Outcomes]]:
        """The outcomes of a study, by trial number and rung; losses as they were rounded when they were stored.

        Raises:
            StudyError: the database failed.
        """
        with self.transaction(f"loading the outcomes of study {study_id}", write=False) as connection:
            return read_outcomes(connection, study_id)

    def set_study_attrs(self, study_id: int, attrs: Mapping[str, Any]) -> None:
        """Puts JSON values into the study's user attributes, all of them or none.

        Raises:
            StudyError: there is no such study, or the database failed.
        """
        with self.transaction("storing study attributes", write=True) as connection:
            self.lock_study(connection, study_id)
            put_attrs(connection, STUDY_ATTRS, "study_id", study_id, attrs)

    def load_trials(self, study_id: int) -> list[FrozenTrial]:
        """All trials by number, as `get_all_trials` gives them, in a fixed number of statements.

        Raises:
            StudyError: there is no such study, or the database failed.
        """
        try:
            return sorted(self._get_trials(study_id, None, set(), -1), key=lambda trial: trial.number)
        except KeyError as error:
            raise StudyError(self._no_study(study_id)) from error

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """What Optuna's readers come down to: `get_all_trials`, and the cache that `load_study` adds."""
        wanted = TRIALS.c.study_id == study_id
        if states is not None:
            wanted &= TRIALS.c.state.in_([state for state in TrialState if state in states])
        if trial_id_greater_than > -1:
            older = [trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than]
            wanted &= or_(TRIALS.c.trial_id > trial_id_greater_than, TRIALS.c.trial_id.in_(older))
        with self.transaction(f"loading the trials of study {study_id}", write=False) as connection:
            trials = read_trials(connection, wanted)
            study = select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
            if not trials and connection.scalar(study) is None:
                raise KeyError(models.NOT_FOUND_MSG)
        return trials

    def _no_study(self, study_id: int) -> str:
        return f"no study has the id {study_id} in {hide_password(self.url)}: was it deleted?"
