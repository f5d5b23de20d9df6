"""One driver per study: a row in the database that says which process searches it, renewed while that process lives."""

import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    delete,
    extract,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from search.processes import machine_id, process_started
from search.progress import say
from search.storage import Storage
from spaces.errors import StudyError

_LOG = logging.getLogger(__name__)

EXPIRES_S: Final = 30.0
POLL_S: Final = 2.0
LITTLE_PATIENCE_S: Final = 5.0  # with a database, where what went wrong may be that it did not answer
JOB: Final = "SLIMFRONT_JOB"  # the environment variable that says which Ray job this process is

_TABLE: Final = Table(
    "slimfront_lease",
    MetaData(),
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("owner", String(32), nullable=False),
    Column("host", String(255), nullable=False),
    Column("machine", String(255), nullable=False),  # where a process id means the same process
    Column("pid", Integer, nullable=False),
    Column("process_started", String(64), nullable=False),
    Column("since", Float(53), nullable=False),  # database time, s since 1970, as is the next
    Column("heartbeat", Float(53), nullable=False),
    Column("stop", Integer),  # 1 once the holder was asked to stop
    Column("job", String(64)),  # the Ray job that it runs as, if it does
)


@dataclass(frozen=True)
class Holder:
    """The process that searches a study, or did when it was last heard of."""

    host: str
    pid: int
    alive: bool
    """Whether the process runs, if it is of this machine; else whether its heartbeat is young enough."""
    age_s: float
    """How long ago its last heartbeat was."""
    job: str | None = None
    """The Ray job that it runs as, if it does."""
    stopping: bool = False
    """Whether it was asked to stop."""


class Lease:
    """The right to search a study, held by one process at a time, for a `with` block.

    A holder of this machine is looked up by its process id and start time, so a killed one never stands in the way
    and a live one is never overrun. One of another machine is judged by its heartbeat, in the database's time.

    Args:
        storage: the study database.
        study_id: the study's id in it.
        takeover: whether to wait for a holder on another machine, until it ends or its heartbeat is too old.
        seconds: how old a heartbeat of another machine must be for its process to count as dead; ours is renewed
            three times as often.
    """

    def __init__(self, storage: Storage, study_id: int, *, takeover: bool = False, seconds: float = EXPIRES_S) -> None:
        self._storage = storage
        self._study_id = study_id
        self._takeover = takeover
        self._seconds = seconds
        self._owner = uuid.uuid4().hex
        self._ended, self._stop_asked = threading.Event(), False
        self._renewing = threading.Thread(target=self._renew, name="slimfront-lease", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lease.

        Raises:
            StudyError: another live process holds it.
        """
        self._storage.make_table(_TABLE)
        told = False
        while (refused := self._try()) is not None:
            if not told:
                say(f"waiting for {refused.host} (pid {refused.pid}), which searches this study")
                told = True
            time.sleep(min(1.0, self._seconds / 4))
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the lease back, if it is still ours."""
        self._ended.set()
        self._renewing.join()
        mine = delete(_TABLE).where(self._ours())
        patience = self._storage.patience if error is None else min(self._storage.patience, LITTLE_PATIENCE_S)
        try:
            self._storage.run(
                "giving back the lease", lambda connection: connection.execute(mine), write=True, patience=patience
            )
        except StudyError:
            if error is None:  # else what happened first matters more; the lease ends with the process
                raise

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked this process to stop, as far as was last seen; at most 2 s ago while all is well."""
        return self._stop_asked

    def guard(self, connection: Connection) -> None:
        """Makes sure that the study is ours until the transaction ends: every write of a search begins with it.

        Raises:
            StudyError: another process took it over.
        """
        columns = (_TABLE.c.owner, _TABLE.c.host, _TABLE.c.pid, _TABLE.c.stop)
        row = connection.execute(
            select(*columns).where(_TABLE.c.study_id == self._study_id).with_for_update()
        ).one_or_none()
        if row is None or row.owner != self._owner:
            by = "was given back" if row is None else f"was taken over by process {row.pid} on {row.host}"
            raise StudyError(f"the lease on study {self._study_id} {by}: this process stops; nothing told is lost")
        self._stop_asked = bool(row.stop)

    def _try(self) -> Holder | None:
        """Takes the lease, or says whom to wait for."""
        return self._storage.run("taking the lease", self._take, write=True)

    def _take(self, connection: Connection) -> Holder | None:
        self._storage.lock_study(connection, self._study_id)
        row, now = _read(connection, self._study_id)
        if row is not None and row.owner != self._owner:  # ours: the answer to the last attempt was lost
            current = _holder(row, now, self._seconds)
            if current.alive:
                if self._takeover and row.machine != machine_id():
                    return current
                raise StudyError(_refusal(row, current))
        connection.execute(delete(_TABLE).where(_TABLE.c.study_id == self._study_id))
        mine = {
            "study_id": self._study_id,
            "owner": self._owner,
            "host": socket.gethostname(),
            "machine": machine_id(),
            "pid": os.getpid(),
            "process_started": process_started(os.getpid()) or "",
            "since": now,
            "heartbeat": now,
            "stop": 0,
            "job": os.environ.get(JOB) or None,
        }
        connection.execute(insert(_TABLE), mine)
        return None

    def _renew(self) -> None:
        """Renews the heartbeat, and between the renewals looks whether somebody asked this process to stop."""
        period, renewed = self._seconds / 3, time.monotonic()
        while not self._ended.wait(min(POLL_S, period)):
            due = time.monotonic() - renewed >= period - POLL_S / 2
            try:  # without patience: the next time comes soon, and giving the lease back waits for this thread
                if not self._storage.run(
                    "renewing the lease", self._beat if due else self._look, write=due, patience=0
                ):
                    return
            except StudyError as error:  # the driver meets it too, and waits or stops
                _LOG.info("%s", error)
                continue
            renewed = time.monotonic() if due else renewed

    def _beat(self, connection: Connection) -> bool:
        now = {"heartbeat": _clock(connection)}
        return connection.execute(update(_TABLE).where(self._ours()).values(now)).rowcount > 0 and self._look(
            connection
        )

    def _look(self, connection: Connection) -> bool:
        """Whether the lease is ours."""
        asked = connection.execute(select(_TABLE.c.stop).where(self._ours())).one_or_none()
        if asked is not None:
            self._stop_asked = bool(asked.stop)
        return asked is not None

    def _ours(self) -> ColumnElement[bool]:
        return (_TABLE.c.study_id == self._study_id) & (_TABLE.c.owner == self._owner)


def holder(storage: Storage, study_id: int, *, seconds: float = EXPIRES_S) -> Holder | None:
    """Who searches a study, None if nobody does; a holder that is not alive was killed and will not come back.

    Raises:
        StudyError: the database failed.
    """

    def look(connection: Connection) -> Holder | None:
        row, now = _read_if_made(connection, study_id)
        return None if row is None else _holder(row, now, seconds)

    return storage.run("looking up the lease", look, write=False)


def refuse_held(storage: Storage, study_id: int, *, takeover: bool = False, seconds: float = EXPIRES_S) -> None:
    """Says at once what taking the lease would come to.

    Args:
        storage: the study database.
        study_id: the study's id in it.
        takeover: as that of a `Lease`; who is waited for is not refused.
        seconds: as those of a `Lease`.

    Raises:
        StudyError: another live process holds it, or the database failed.
    """

    def look(connection: Connection) -> None:
        row, now = _read_if_made(connection, study_id)
        if row is None or (takeover and row.machine != machine_id()):
            return
        if (current := _holder(row, now, seconds)).alive:
            raise StudyError(_refusal(row, current))

    storage.run("looking up the lease", look, write=False)


def ask_to_stop(storage: Storage, study_id: int, *, seconds: float = EXPIRES_S) -> Holder | None:
    """Asks whoever searches a study to finish what runs and end; it sees that within seconds.

    Returns:
        Who was asked, None if nobody searches the study; one that is not alive will not answer.

    Raises:
        StudyError: the database failed.
    """

    def ask(connection: Connection) -> Holder | None:
        row, now = _read(connection, study_id)
        if row is None:
            return None
        connection.execute(update(_TABLE).where(_TABLE.c.study_id == study_id).values(stop=1))
        return _holder(row, now, seconds)

    if holder(storage, study_id) is None:  # also where the table was never made
        return None
    storage.make_table(_TABLE)
    return storage.run("asking the search to stop", ask, write=True)


def _read(connection: Connection, study_id: int) -> tuple[Row[Any] | None, float]:
    """The lease's row, and the database's time."""
    row = connection.execute(select(_TABLE).where(_TABLE.c.study_id == study_id)).one_or_none()
    return row, float(connection.execute(select(_clock(connection))).scalar_one())


def _read_if_made(connection: Connection, study_id: int) -> tuple[Row[Any] | None, float]:
    """As `_read`; no row where the table is not made yet, or was by an earlier version, without our columns."""
    found = inspect(connection)
    if not found.has_table(_TABLE.name) or len(found.get_columns(_TABLE.name)) < len(_TABLE.columns):
        return None, 0.0
    return _read(connection, study_id)


def _holder(row: Row[Any], now: float, seconds: float) -> Holder:
    age_s = now - row.heartbeat
    if row.machine == machine_id():
        started = process_started(row.pid)
        alive = started is not None and (started == row.process_started or "" in (started, row.process_started))
    else:
        alive = age_s < seconds
    return Holder(row.host, row.pid, alive, age_s, row.job, bool(row.stop))


def _refusal(row: Row[Any], current: Holder) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.since))
    who = f"study {row.study_id} is being searched by process {row.pid} on {row.host} since {since}"
    if row.machine == machine_id():
        return f"{who}: wait for it, or end it with `slimfront stop`"
    return (
        f"{who}, heard of {current.age_s:.0f} s ago: wait for it, or end it with `slimfront stop`; `--takeover` waits "
        "for it"
    )


def _clock(connection: Connection) -> ColumnElement[Any]:
    """The database's time, s since 1970: the machines' own clocks need not agree."""
    match connection.dialect.name:
        case "sqlite":
            return (func.julianday("now") - 2440587.5) * 86400.0
        case "postgresql":
            return extract("epoch", func.clock_timestamp())
        case _:
            return func.unix_timestamp(func.now(6))
