"""A study database as somebody who watches it needs it: ended trials stay in memory, and only what is new is read."""

import copy
import json
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, func, or_, select, true, update

from search.storage.rdb import Storage
from search.storage.rows import STUDIES, TRIALS, read_frozen_trials

_ATTRS = (models.StudyUserAttributeModel.__table__, models.StudySystemAttributeModel.__table__)
_DIRECTIONS = models.StudyDirectionModel.__table__


@dataclass(frozen=True)
class Watched:
    """The trials of a study at one moment. All who ask share them, so nobody changes them.

    Attributes:
        making: another number than before: the study was deleted and made anew, and nothing of before holds.
        trials: all of them, by number.
        ended: the finished ones, in the order in which they were seen finished; it only grows at its end.
    """

    making: int
    trials: Sequence[FrozenTrial] = ()
    ended: Sequence[FrozenTrial] = ()


@dataclass(frozen=True)
class _Seen:
    """What is in memory of one study.

    `marks` are rows of two ended trials, which are there unchanged as long as the study is the same.
    """

    watched: Watched
    by_id: Mapping[int, FrozenTrial]
    unfinished: frozenset[int] = frozenset()
    marks: frozenset[tuple[Any, ...]] = frozenset()


@dataclass
class _Watch:
    """A study that is watched; one thread at a time looks for what is new."""

    seen: _Seen | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class WatchingStorage(BaseStorage):
    """Optuna's storage for a dashboard: an ended trial, which never changes, is read once.

    It reads snapshots, for which no writer waits, and many threads may use it. What is written through it goes to
    the database at once.

    Args:
        storage: the database; who opened it closes it.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._watches: dict[int, _Watch] = {}
        self._makings = 0
        self._distributions: dict[str, BaseDistribution] = {}

    def __reduce__(self) -> tuple[type["WatchingStorage"], tuple[Storage]]:
        return WatchingStorage, (self._storage,)

    def watch(self, study_id: int) -> Watched:
        """The trials of a study as they are in the database now.

        Raises:
            KeyError: there is no such study.
            StudyError: the database failed.
        """
        with self._lock:
            watch = self._watches.setdefault(study_id, _Watch())
        with watch.lock:
            try:
                watch.seen = self._storage.run(
                    f"reading study {study_id}",
                    lambda connection: self._look(connection, study_id, watch.seen),
                    write=False,
                )
            except KeyError:
                watch.seen = None
                raise
            return watch.seen.watched

    def _look(self, connection: Connection, study_id: int, seen: _Seen | None) -> _Seen:
        count = (
            select(func.count(TRIALS.c.trial_id))
            .select_from(STUDIES.outerjoin(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id))
            .where(STUDIES.c.study_id == study_id)
            .group_by(STUDIES.c.study_id)
        )
        if (trials := connection.scalar(count)) is None:
            raise KeyError(models.NOT_FOUND_MSG)
        of_study = TRIALS.c.study_id == study_id
        if seen is not None and seen.marks == _marks(connection, [mark[0] for mark in seen.marks]):
            last = max(seen.by_id, default=-1)
            open_ones = TRIALS.c.trial_id.in_(sorted(seen.unfinished))
            read = self._read(connection, of_study & or_(TRIALS.c.trial_id > last, open_ones))
            if len(seen.by_id) + sum(trial._trial_id > last for trial in read) == trials:
                return _with(connection, seen, read) if read else seen
        # Nothing is known, the study was made anew, or a trial was deleted or got its id before others and came after.
        with self._lock:
            self._makings += 1
            fresh = _Seen(Watched(self._makings), {})
        return _with(connection, fresh, self._read(connection, of_study))

    def _read(self, connection: Connection, wanted: ColumnElement[bool]) -> list[FrozenTrial]:
        """Trials by id, whose distributions are the same objects as those of trials that were read before."""
        read = read_frozen_trials(connection, wanted)
        known: dict[int, BaseDistribution] = {}
        for trial in read:
            for name, distribution in trial.distributions.items():
                if (one := known.get(id(distribution))) is None:
                    text = distribution_to_json(distribution)
                    with self._lock:
                        one = known[id(distribution)] = self._distributions.setdefault(text, distribution)
                trial.distributions[name] = one
        return read

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials by number; with `deepcopy` the caller may change what it gets."""
        found = [trial for trial in self.watch(study_id).trials if states is None or trial.state in states]
        return [_own(trial) for trial in found] if deepcopy else found

    def study(self, study_id: int) -> FrozenStudy | None:
        """A study with its attributes, None where there is none.

        Raises:
            StudyError: the database failed.
        """
        wanted = STUDIES.c.study_id == study_id
        found = self._storage.run(
            f"reading study {study_id}", lambda connection: _read_studies(connection, wanted), write=False
        )
        return found[0] if found else None

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies by id, with their attributes."""
        return self._storage.run(
            "reading the studies", lambda connection: _read_studies(connection, true()), write=False
        )

    def rename(self, study_id: int, name: str) -> bool:
        """Gives a study another name; its id, its trials and all else that is stored of it stay.

        Returns:
            Whether it has the name now; not if another study has it.

        Raises:
            KeyError: there is no such study.
            StudyError: the database failed.
        """

        def work(connection: Connection) -> bool:
            stored = connection.execute(select(STUDIES.c.study_id, STUDIES.c.study_name))
            names = {one: called for one, called in stored}
            if study_id not in names:
                raise KeyError(models.NOT_FOUND_MSG)
            if name in names.values():
                return bool(names[study_id] == name)
            connection.execute(update(STUDIES).where(STUDIES.c.study_id == study_id).values(study_name=name))
            return True

        return self._storage.run(f"renaming study {study_id}", work, write=True)

    # What follows only passes on.

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Makes a study, see Optuna."""
        return self._storage.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Deletes a study, see Optuna."""
        self._storage.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Stores a study's attribute, see Optuna."""
        self._storage.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Stores a study's attribute of Optuna or its dashboard, see Optuna."""
        self._storage.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """The id of a study, see Optuna."""
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """The name of a study, see Optuna."""
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """The directions of a study's objectives, see Optuna."""
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """A study's attributes, see Optuna."""
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """A study's attributes of Optuna and its dashboard, see Optuna."""
        return self._storage.get_study_system_attrs(study_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Makes a trial, see Optuna."""
        return self._storage.create_new_trial(study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Stores a trial's parameter, see Optuna."""
        self._storage.set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Stores a trial's state, see Optuna."""
        return self._storage.set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Stores a trial's value at a step, see Optuna."""
        self._storage.set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Stores a trial's attribute, see Optuna."""
        self._storage.set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Stores a trial's attribute of Optuna or its dashboard, see Optuna."""
        self._storage.set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial, see Optuna."""
        return self._storage.get_trial(trial_id)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """The id of a trial, see Optuna."""
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def remove_session(self) -> None:
        """Closes this thread's session, see Optuna."""
        self._storage.remove_session()


def _with(connection: Connection, seen: _Seen, read: Sequence[FrozenTrial]) -> _Seen:
    """What is seen once these trials were read; those that were known are replaced."""
    new = {trial._trial_id: trial for trial in read}
    by_id = {**seen.by_id, **new}
    ended = [trial for trial in read if trial.state.is_finished()]
    watched = Watched(
        seen.watched.making,
        sorted(by_id.values(), key=lambda trial: trial.number),
        [*seen.watched.ended, *ended],
    )
    marked = {trial._trial_id for trial in (*watched.ended[:1], *watched.ended[-1:])}
    unfinished = (seen.unfinished | new.keys()) - {trial._trial_id for trial in ended}
    return _Seen(watched, by_id, unfinished, _marks(connection, marked))


def _marks(connection: Connection, ids: Iterable[int]) -> frozenset[tuple[Any, ...]]:
    columns = TRIALS.c.trial_id, TRIALS.c.study_id, TRIALS.c.number, TRIALS.c.datetime_start, TRIALS.c.datetime_complete
    return frozenset(tuple(row) for row in connection.execute(select(*columns).where(TRIALS.c.trial_id.in_(list(ids)))))


def _read_studies(connection: Connection, wanted: ColumnElement[bool]) -> list[FrozenStudy]:
    """The wanted studies by id, in four statements."""
    names = select(STUDIES.c.study_id, STUDIES.c.study_name).where(wanted).order_by(STUDIES.c.study_id)
    studies = [tuple(row) for row in connection.execute(names)]
    ids = select(STUDIES.c.study_id).where(wanted)
    directions: dict[int, list[StudyDirection]] = {study_id: [] for study_id, _ in studies}
    along = select(_DIRECTIONS.c.study_id, _DIRECTIONS.c.direction).where(_DIRECTIONS.c.study_id.in_(ids))
    for study_id, direction in connection.execute(along.order_by(_DIRECTIONS.c.objective)):
        directions[study_id].append(direction)
    attrs: list[dict[int, dict[str, Any]]] = []
    for table in _ATTRS:
        by_study: dict[int, dict[str, Any]] = {study_id: {} for study_id, _ in studies}
        stored = select(table.c.study_id, table.c.key, table.c.value_json).where(table.c.study_id.in_(ids))
        for study_id, key, text in connection.execute(stored.order_by(*table.primary_key)):
            by_study[study_id][key] = json.loads(text)
        attrs.append(by_study)
    return [
        FrozenStudy(name, None, attrs[0][study_id], attrs[1][study_id], study_id, directions=directions[study_id])
        for study_id, name in studies
    ]


def _own(trial: FrozenTrial) -> FrozenTrial:
    """A trial of which nothing that can be changed is shared; `copy.deepcopy` takes ten times as long."""
    own = copy.copy(trial)
    own.params, own.distributions = dict(trial.params), dict(trial.distributions)
    own.user_attrs, own.system_attrs = copy.deepcopy(trial.user_attrs), copy.deepcopy(trial.system_attrs)
    own.intermediate_values, own.values = dict(trial.intermediate_values), trial.values  # its setter makes a list
    return own
