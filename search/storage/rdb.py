"""Optuna's storage with set-based writes and reads."""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, column, delete, inspect, or_, select, table

from objectives.racing import Outcomes
from search.storage import documents, outcomes
from search.storage.inserting import put_attrs
from search.storage.patient import PatientStorage
from search.storage.rows import STUDIES, STUDY_ATTRS, TRIALS, read_trials
from search.storage.writing import Batch, DistributionTexts, End, Start
from spaces.errors import StudyError

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

    def make_outcomes(self, study_id: int, *, anew: bool) -> None:
        """Makes the table of outcomes where it is missing.

        Args:
            study_id: the study's id in the database.
            anew: forget what is there of this study; ids of deleted studies are given again.

        Raises:
            StudyError: the database failed.
        """
        self.make_table(outcomes.TABLE)
        if anew:
            self.run("forgetting outcomes", lambda c: outcomes.forget_outcomes(c, study_id), write=True)

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
        return self.run(doing, lambda connection: documents.read_document(connection, study_id, key), write=False)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """As Optuna's, tried again while the database does not answer."""
        return self.run(
            f"loading the attributes of study {study_id}", lambda c: self._study_attrs(c, study_id), write=False
        )

    def _study_attrs(self, connection: Connection, study_id: int) -> dict[str, Any]:
        rows = select(STUDY_ATTRS.c.key, STUDY_ATTRS.c.value_json).where(STUDY_ATTRS.c.study_id == study_id)
        found = {key: json.loads(value) for key, value in connection.execute(rows)}
        if not found and connection.scalar(select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)) is None:
            raise KeyError(models.NOT_FOUND_MSG)
        return found

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """As Optuna's; what is left of a deleted study whose id is given again is forgotten."""
        study_id = super().create_new_study(directions, study_name)
        self._forget(study_id)
        return study_id

    def delete_study(self, study_id: int) -> None:
        """As Optuna's; what we keep of the study beside Optuna's tables goes with it."""
        super().delete_study(study_id)
        self._forget(study_id)

    def _forget(self, study_id: int) -> None:
        def forget(connection: Connection) -> None:
            look = inspect(connection)
            for name in _OURS:
                if look.has_table(name):
                    connection.execute(delete(table(name, column("study_id"))).where(column("study_id") == study_id))

        self._running.pop(study_id, None)
        self.run(f"forgetting what was kept of study {study_id}", forget, write=True)

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
        study = select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)

        def read(connection: Connection) -> list[FrozenTrial]:
            trials = read_trials(connection, wanted)
            if not trials and connection.scalar(study) is None:
                raise KeyError(models.NOT_FOUND_MSG)
            return trials

        return self.run(f"loading the trials of study {study_id}", read, write=False)
