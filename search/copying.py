"""Moving house: a study copied to another database, in batches that are each there whole or not at all."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from sqlalchemy import Connection

from search.address import full_address, hide_password, sqlite_file
from search.lease import Lease
from search.storage import Storage, batches, open_storage
from search.storage.batches import MARK, Head, TrialRows
from search.storage.documents import TABLE as DOCUMENTS
from search.storage.outcomes import TABLE as OUTCOMES
from search.stored import pick_study
from spaces.errors import StudyError

PATIENCE_S: Final = 60.0
_BATCH: Final = 250  # trials in a transaction
_SAY_EVERY_S: Final = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Copied:
    """A copy that was compared with its source.

    Attributes:
        study: its name.
        copied: trials that this call wrote; the others were there.
        trials: trials that both have.
        compared: how many rows of each kind are the same in both.
        caches: the folders that hold the study's packed files, the latest first.
    """

    study: str
    copied: int
    trials: int
    compared: Mapping[str, int]
    caches: tuple[Path, ...]


def copy(
    study: str | None, source: str, target: str, say: Say, *, batch: int = _BATCH, stop: Event | None = None
) -> Copied:
    """Copy a study to another database, where it then goes on; an interrupted copy goes on where it was.

    While it runs it holds the study's lease in both, so that nobody searches it. Until it is all there, the copy has
    one attribute only, which says so: it is no study that could be launched or shown.

    Args:
        study: its name; None is the only one of the source.
        source: the URL of its database.
        target: the URL of the database it shall be in; made if it is a file that is missing.
        say: takes a line for people.
        batch: trials in a transaction.
        stop: ends the copy between two of them once it is set; so does `slimfront stop`.

    Raises:
        KeyboardInterrupt: it was stopped.
        StudyError: a database does not answer, the study is being searched, the target holds another one of this name
            or one that has gone on since, or what was copied differs from its source.
    """
    _refuse_same(source, target)
    with ExitStack() as opened:
        here = opened.enter_context(closing(open_storage(source, create=False, patience=PATIENCE_S, say=say)))
        found = pick_study(here, study)
        there = opened.enter_context(closing(open_storage(target, create=True, patience=PATIENCE_S, say=say)))
        for table in (OUTCOMES, DOCUMENTS):
            there.make_table(table)
        mine = _Side(here, found.id, hide_password(source), opened.enter_context(Lease(here, found.id)))
        unfinished = mine.head().unfinished(mine.shown)
        study_id = there.run(
            "making the study", lambda connection: batches.study_named(connection, found.name, unfinished), write=True
        )
        theirs = _Side(there, study_id, hide_password(target), opened.enter_context(Lease(there, study_id)))
        return _Copy(found.name, mine, theirs, say, batch, stop or Event()).run()


def _refuse_same(source: str, target: str) -> None:
    """One that is named in two ways is met later: this process then holds the lease already that it asks for."""
    mine, theirs = full_address(source), full_address(target)
    files = [file.resolve() for file in (sqlite_file(mine), sqlite_file(theirs)) if file is not None]
    if mine.set(password=None) == theirs.set(password=None) or (len(files) == 2 and files[0] == files[1]):
        raise StudyError(f"--from and --to are the same database, {hide_password(target)}: copy to another one")


@dataclass(frozen=True)
class _Side:
    """A study in one of the two databases, whose lease is held."""

    storage: Storage
    study_id: int
    shown: str
    lease: Lease

    def read(self, low: int, high: int) -> list[TrialRows]:
        """The trials numbered from `low` up to, and without, `high`."""
        doing = f"reading trials {low} to {high - 1}"
        return self.storage.run(doing, lambda to: batches.read_trials(to, self.study_id, low, high), write=False)

    def count(self) -> int:
        """How many trials it has."""
        return self.storage.run("counting trials", lambda to: batches.trials_of(to, self.study_id), write=False)

    def head(self) -> Head:
        """What the study says about itself."""
        return self.storage.run("reading the study", lambda to: batches.read_head(to, self.study_id), write=False)

    def write(self, doing: str, work: Callable[[Connection, int], None]) -> None:
        """A transaction on the study, which must still be ours."""

        def guarded(connection: Connection) -> None:
            self.lease.guard(connection)
            work(connection, self.study_id)

        self.storage.run(doing, guarded, write=True)


class _Copy:
    def __init__(self, name: str, source: _Side, target: _Side, say: Say, batch: int, stop: Event) -> None:
        self._name, self._source, self._target = name, source, target
        self._head, self._trials = source.head(), source.count()
        self._coarse = any(full_address(one.storage.url).get_backend_name() == "mysql" for one in (source, target))
        self._say, self._batch, self._stop = say, batch, stop
        self._said = time.monotonic()

    def run(self) -> Copied:
        """Copy what is missing, compare, and only then make the copy a study."""
        held, there = self._target.count(), self._target.head()
        begun = there.attrs.get(MARK) == {"from": self._source.shown}
        self._refuse_another(there, held)
        same = self._same(held, begun)
        if (same, held) != (self._trials, self._trials) or there != self._head:
            if same:
                self._say(f"{same} of {self._trials} trials are there already")
            self._target.write("preparing the copy", lambda to, study_id: self._prepare(to, study_id, same))
            for low in range(same, self._trials, self._batch):
                if self._stop.is_set() or self._source.lease.stop_asked or self._target.lease.stop_asked:
                    raise KeyboardInterrupt
                self._write(low, min(low + self._batch, self._trials))
        compared = self._compare()
        self._target.write("finishing the copy", self._finish)
        attrs = self._head.attrs
        caches = (attrs.get("cache"), *attrs.get("earlier_caches", ()))
        return Copied(
            self._name, self._trials - same, self._trials, compared, tuple(Path(one) for one in caches if one)
        )

    def _refuse_another(self, there: Head, held: int) -> None:
        """The target's study must be unfinished, of the same search, or one in which nothing was ever written."""
        if MARK in there.attrs or not (held or there.attrs):
            return
        settings = there.attrs.get("fingerprint")
        if settings is None or settings != self._head.attrs.get("fingerprint"):
            raise StudyError(
                f"{self._target.shown} holds another study {self._name!r}, of other settings: delete it there, or copy "
                "to another database"
            )

    def _same(self, held: int, begun: bool) -> int:
        """How many trials, from the first one on, are the same in both.

        The target's others must be older states of the source's, unless it is this copy that has begun: then whatever
        they are, they are written again.
        """
        if held > self._trials and not begun:
            raise StudyError(
                f"study {self._name!r} has gone on in {self._target.shown}: it has {held} trials there and "
                f"{self._trials} in {self._source.shown}; go on there, too"
            )
        same = held = min(held, self._trials)
        for low in range(0, held, self._batch):
            high = min(low + self._batch, held)
            for ours, copied in self._both(low, high):
                if ours != copied:
                    if begun:
                        return copied.own[0]
                    self._refuse_newer(ours, copied)
                    same = min(same, copied.own[0])
            self._progress("looked at", high, held)
        return same

    def _refuse_newer(self, ours: TrialRows, copied: TrialRows) -> None:
        """A trial that differs may be an older state of the source's, which has been told since."""
        number, where, here = copied.own[0], self._target.shown, self._source.shown
        if ours.asked == copied.asked and copied.running:
            return
        if ours.asked != copied.asked and number == 0:
            raise StudyError(
                f"{where} holds another study {self._name!r}: its trial 0 is not that of {here}; delete it there, or "
                "copy to another database"
            )
        raise StudyError(
            f"study {self._name!r} has gone on in {where} since it was copied: trial {number} is "
            f"{copied.own[1].name} there, and not the same in {here}; go on there, too"
        )

    def _prepare(self, connection: Connection, study_id: int, same: int) -> None:
        """Make the target's study one that is not all there: the trials that are the same, and the mark."""
        batches.delete_trials(connection, study_id, same)
        batches.write_head(connection, study_id, self._head.unfinished(self._source.shown))

    def _write(self, low: int, high: int) -> None:
        """Copy some trials in one transaction; done already if it was committed and the answer was lost."""
        rows = self._read(self._source, low, high)

        def write(connection: Connection, study_id: int) -> None:
            if batches.trials_of(connection, study_id) == low:
                batches.write_trials(connection, study_id, rows)

        self._target.write(f"copying trials {low} to {high - 1}", write)
        self._progress("copied", high, self._trials)

    def _compare(self) -> dict[str, int]:
        """Read all trials again, in both databases; how many rows of each kind are the same."""
        if (held := self._target.count()) != self._trials:
            raise self._differs(f"it has {held} trials, not {self._trials}")
        compared = Counter({kind: 0 for kind in batches.KINDS})
        for low in range(0, self._trials, self._batch):
            high = min(low + self._batch, self._trials)
            for ours, copied in self._both(low, high):
                if ours != copied:
                    kinds = [kind for kind, rows in ours.owned.items() if rows != copied.owned[kind]]
                    raise self._differs(f"trial {copied.own[0]} has other {', '.join(kinds) or 'state or times'}")
                compared.update({kind: len(rows) for kind, rows in ours.owned.items()})
            self._progress("compared", high, self._trials)
        attributes = len(self._head.user_attrs) + len(self._head.system_attrs)
        return {**compared, "study attributes": attributes, "documents": len(self._head.documents)}

    def _finish(self, connection: Connection, study_id: int) -> None:
        """Write the study's attributes and documents, which make it one, and look at them."""
        batches.write_head(connection, study_id, self._head)
        if batches.read_head(connection, study_id) != self._head:
            raise self._differs("other attributes or documents of the study")

    def _differs(self, how: str) -> StudyError:
        return StudyError(
            f"the copy of study {self._name!r} in {self._target.shown} is not what {self._source.shown} holds: {how}; "
            "it stays unfinished: see that nobody else writes there, then copy again"
        )

    def _both(self, low: int, high: int) -> list[tuple[TrialRows, TrialRows]]:
        """These trials in the source and in the target."""
        return list(zip(self._read(self._source, low, high), self._read(self._target, low, high), strict=True))

    def _read(self, side: _Side, low: int, high: int) -> list[TrialRows]:
        rows = side.read(low, high)
        if [one.own[0] for one in rows] != list(range(low, high)):
            raise StudyError(
                f"study {self._name!r} in {side.shown} has not every trial from {low} to {high - 1}: another program "
                "than Slimfront wrote it"
            )
        return [one.in_seconds() for one in rows] if self._coarse else rows

    def _progress(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            self._say(f"{what} {done:,} of {total:,} trials")
