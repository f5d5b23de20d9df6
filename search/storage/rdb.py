"""Optuna's storage with set-based writes and reads."""

import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final, TypeVar

from optuna.exceptions import DuplicatedStudyError
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, column, delete, func, insert, inspect, or_, select, table
from sqlalchemy.exc import IntegrityError

from objectives.racing import Outcomes
from search.storage import documents, outcomes
from search.storage.inserting import put_attrs
from search.storage.patient import PatientStorage
from search.storage.reading import read_study_attrs
from search.storage.rows import DIRECTIONS, STUDIES, STUDY_ATTRS, STUDY_SYSTEM_ATTRS, TRIALS, read_frozen_trials
from search.storage.writing import Batch, DistributionTexts, End, Start
from spaces.errors import StudyError

T = TypeVar("T")

_OURS: Final = (outcomes.TABLE.name, documents.TABLE.name, "slimfront_lease")


def no_guard(connection: Connection) -> None:
    """Write whoever else does."""


class Storage(PatientStorage):
    """Optuna's RDB storage that stores trials a batch at a time, in one transaction of set-based statements.

    The rows are those that Optuna writes: `optuna.load_study`, Optuna Dashboard and any other reader work on
    them. Make one with `open_storage`, which explains what is wrong with a database.

    Example:
        >>> import optuna
        >>> from search.storage import End, Start, open_storage
        >>> storage = open_storage("sqlite:///example.db", create=True)
        >>> study_id = optuna.create_study(storage=storage, directions=["maximize", "minimize"])._study_id
        >>> start = Start(0, {}, {}, {"policy": "float"}, {})
        >>> end = End(0, optuna.trial.TrialState.COMPLETE, [0.98, 695360.0], {"rung": 0})
        >>> storage.write_trials(study_id, [start], [end])
        >>> storage.load_trials(study_id)[0].user_attrs
        {'policy': 'float', 'rung': 0}
        >>> storage.close()
    """

    def _remember(self, say: Callable[[str], None] | None) -> None:
        super()._remember(say)
        self._texts = DistributionTexts()
        self._running: dict[int, dict[int, int]] = {}  # ids of running trials, by study and number

    def __getstate__(self) -> dict[Any, Any]:
        return {key: value for key, value in super().__getstate__().items() if key not in ("_texts", "_running")}

    def write_trials(
        self,
        study_id: int,
        starts: Sequence[Start],
        ends: Sequence[End],
        guard: Callable[[Connection], None] = no_guard,
    ) -> None:
        """Stores trials that start and trials that end, all of them or none, once.

        Args:
            study_id: the study's id in the database.
            starts: by number, the first is the study's next one.
            ends: of running trials, some of which may start in the same call.
            guard: is called first, within the transaction; what it raises stops the write.

        Raises:
            StudyError: a number is not the next one, a trial that ends is not running, values do not fit a state, the
                guard refuses, or the database failed; nothing was stored.
        """
        batch = Batch(starts, ends, self._texts)
        known = self._running.setdefault(study_id, {})
        tried = False

        def work(connection: Connection) -> dict[int, int]:
            nonlocal tried
            again, tried = tried, True
            self.lock_study(connection, study_id)
            guard(connection)
            if again and (found := batch.found(connection, study_id)) is not None:
                return found
            return batch.store(connection, study_id, known)

        if starts or ends:
            known.update(self.run(batch.doing, work, write=True))
            for end in ends:
                known.pop(end.number, None)

    def make_outcomes(self, study_id: int, guard: Callable[[Connection], None] = no_guard) -> None:
        """Makes the table of outcomes where it is missing, empty for a study of which no trial was told.

        Ids of deleted studies are given again, and their outcomes may be there still.

        Args:
            study_id: the study's id in the database.
            guard: as for `write_trials`.

        Raises:
            StudyError: there is no such study, the guard refuses, or the database failed.
        """

        def forget(connection: Connection) -> None:
            self.lock_study(connection, study_id)
            guard(connection)
            outcomes.forget_outcomes(connection, study_id)

        self.make_table(outcomes.TABLE)
        self.run("forgetting outcomes", forget, write=True)

    def load_outcomes(self, study_id: int) -> dict[int, dict[int, Outcomes]]:
        """The outcomes of a study, by trial number and rung; losses as they were rounded when they were stored.

        Raises:
            StudyError: the database failed.
        """
        doing = f"loading the outcomes of study {study_id}"
        return self.run(doing, lambda connection: outcomes.read_outcomes(connection, study_id), write=False)

    def set_study_attrs(
        self, study_id: int, attrs: Mapping[str, Any], guard: Callable[[Connection], None] = no_guard
    ) -> None:
        """Puts JSON values into the study's user attributes, all of them or none.

        Args:
            study_id: the study's id in the database.
            attrs: JSON values by name, of 64 kB each at most on MySQL.
            guard: as for `write_trials`.

        Raises:
            StudyError: there is no such study, the guard refuses, or the database failed.
        """

        def put(connection: Connection) -> None:
            self.lock_study(connection, study_id)
            guard(connection)
            put_attrs(connection, STUDY_ATTRS, "study_id", {study_id: attrs})

        self.run("storing study attributes", put, write=True)

    def set_documents(
        self, study_id: int, values: Mapping[str, Any], guard: Callable[[Connection], None] = no_guard
    ) -> None:
        """Stores JSON values of any size with the study, all of them or none, in place of those of these names.

        Args:
            study_id: the study's id in the database.
            values: by name, of 64 characters at most.
            guard: as for `write_trials`.

        Raises:
            StudyError: there is no such study, the guard refuses, or the database failed.
        """

        def put(connection: Connection) -> None:
            self.lock_study(connection, study_id)
            guard(connection)
            documents.put_documents(connection, study_id, values)

        self.make_table(documents.TABLE)
        self.run("storing documents", put, write=True)

    def load_document(self, study_id: int, key: str) -> Any | None:
        """What `set_documents` stored under a name, None if nothing.

        Raises:
            StudyError: the database failed.
        """
        doing = f"loading {key} of study {study_id}"
        return self.run(doing, lambda c: documents.read_documents(c, study_id, [key]).get(key), write=False)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """As Optuna's, tried again while the database does not answer."""
        return self._read_study(study_id, "attributes", lambda c: read_study_attrs(c, study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """As Optuna's, tried again while the database does not answer."""
        rows = select(DIRECTIONS.c.direction).where(DIRECTIONS.c.study_id == study_id).order_by(DIRECTIONS.c.objective)
        return self._read_study(study_id, "directions", lambda c: list(c.scalars(rows)))

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        """As Optuna's, which loads them all to count them."""
        wanted = select(func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
        if state is not None:
            wanted = wanted.where(TRIALS.c.state.in_([state] if isinstance(state, TrialState) else state))
        return self._read_study(study_id, "number of trials", lambda c: c.execute(wanted).scalar_one())

    def _read_study(self, study_id: int, what: str, read: Callable[[Connection], T]) -> T:
        study = select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)

        def work(connection: Connection) -> T:
            found = read(connection)
            if not found and connection.scalar(study) is None:
                raise KeyError(models.NOT_FOUND_MSG)
            return found

        return self.run(f"loading the {what} of study {study_id}", work, write=False)

    def get_study_id_from_name(self, study_name: str) -> int:
        """As Optuna's, tried again while the database does not answer."""
        found = self.run(f"looking for study {study_name!r}", lambda c: _id_of(c, study_name), write=False)
        if found is None:
            raise KeyError(models.NOT_FOUND_MSG)
        return found

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """As Optuna's; what is left of a deleted study whose id is given again is forgotten with it."""
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}" if study_name is None else study_name

        def make(connection: Connection) -> int:
            if (found := _id_of(connection, name)) is not None:
                if study_name is None:  # made by the last attempt, whose answer was lost
                    return found
                raise DuplicatedStudyError
            try:
                connection.execute(insert(STUDIES), {"study_name": name})
            except IntegrityError as error:
                raise DuplicatedStudyError from error
            made = connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)).scalar_one()
            rows = [{"direction": one, "study_id": made, "objective": i} for i, one in enumerate(directions)]
            if rows:
                connection.execute(insert(DIRECTIONS), rows)
            _forget(connection, made)
            return int(made)

        study_id = self.run(f"making study {name!r}", make, write=True)
        self._running.pop(study_id, None)
        return study_id

    def name_objectives(self, study_id: int, names: Sequence[str]) -> None:
        """Names the objectives that have no names, as Optuna's `Study.set_metric_names`; several may do it at once.

        Raises:
            StudyError: there is no such study, or the database failed.
        """
        attrs, key = STUDY_SYSTEM_ATTRS, "study:metric_names"
        held = select(attrs.c.key).where(attrs.c.study_id == study_id, attrs.c.key == key)

        def put(connection: Connection) -> None:
            self.lock_study(connection, study_id)
            if connection.scalar(held) is None:
                put_attrs(connection, attrs, "study_id", {study_id: {key: list(names)}})

        self.run("naming the objectives", put, write=True)

    def delete_study(self, study_id: int) -> None:
        """As Optuna's; what we keep of the study beside Optuna's tables goes with it."""
        # First, for once the study is deleted its id may be another's.
        doing = f"forgetting what was kept of study {study_id}"
        self.run(doing, lambda connection: _forget(connection, study_id), write=True)
        self._running.pop(study_id, None)
        super().delete_study(study_id)

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
        return self._read_study(study_id, "trials", lambda connection: read_frozen_trials(connection, wanted))


def _id_of(connection: Connection, name: str) -> int | None:
    """The id of the study of this name."""
    return connection.scalar(select(STUDIES.c.study_id).where(STUDIES.c.study_name == name))


def _forget(connection: Connection, study_id: int) -> None:
    """Delete the rows of a study in our own tables."""
    look = inspect(connection)
    for name in _OURS:
        if look.has_table(name):
            connection.execute(delete(table(name, column("study_id"))).where(column("study_id") == study_id))
