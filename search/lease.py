"""One driver per study: a row in the database that says which process searches it, renewed while that process lives."""

import logging
import os
import socket
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
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

from search.storage import Storage
from spaces.errors import StudyError

_LOG = logging.getLogger(__name__)

EXPIRES_S: Final = 30.0

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
        self._ended = threading.Event()
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
                _LOG.warning("waiting for %s (pid %d), which searches this study", refused.host, refused.pid)
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
        try:
            with self._storage.transaction("giving back the lease", write=True) as connection:
                connection.execute(delete(_TABLE).where(self._ours()))
        except StudyError:
            if error is None:  # else what happened first matters more; the lease ends with the process
                raise

    def check(self) -> None:
        """Makes sure that the study is still ours.

        Raises:
            StudyError: another process took it over, or the database failed.
        """
        with self._storage.transaction("checking the lease", write=False) as connection:
            row, _ = _read(connection, self._study_id)
        if row is None or row.owner != self._owner:
            by = "was given back" if row is None else f"was taken over by process {row.pid} on {row.host}"
            raise StudyError(f"the lease on study {self._study_id} {by}: this process stops; nothing told is lost")

    def _try(self) -> Holder | None:
        """Takes the lease, or says whom to wait for."""
        with self._storage.transaction("taking the lease", write=True) as connection:
            self._storage.lock_study(connection, self._study_id)
            row, now = _read(connection, self._study_id)
            if row is not None:
                current = _holder(row, now, self._seconds)
                if current.alive and self._takeover and row.machine != _machine():
                    return current
                if current.alive:
                    raise StudyError(self._refusal(row, current))
                connection.execute(delete(_TABLE).where(_TABLE.c.study_id == self._study_id))
            mine = {
                "study_id": self._study_id,
                "owner": self._owner,
                "host": socket.gethostname(),
                "machine": _machine(),
                "pid": os.getpid(),
                "process_started": process_started(os.getpid()) or "",
                "since": now,
                "heartbeat": now,
            }
            connection.execute(insert(_TABLE), mine)
        return None

    def _refusal(self, row: Row[Any], current: Holder) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.since))
        who = f"study {self._study_id} is being searched by process {row.pid} on {row.host} since {since}"
        if row.machine == _machine():
            return f"{who}: wait for it, or stop it"
        return f"{who}, heard of {current.age_s:.0f} s ago: wait for it, or stop it there; `--takeover` waits for it"

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            try:
                with self._storage.transaction("renewing the lease", write=True) as connection:
                    now = {"heartbeat": _clock(connection)}
                    kept = connection.execute(update(_TABLE).where(self._ours()).values(now)).rowcount
            except StudyError as error:  # the driver meets it too, and can stop; a hiccup is over by the next time
                _LOG.warning("%s", error)
                continue
            if not kept:
                return

    def _ours(self) -> ColumnElement[bool]:
        return (_TABLE.c.study_id == self._study_id) & (_TABLE.c.owner == self._owner)


def holder(storage: Storage, study_id: int, *, seconds: float = EXPIRES_S) -> Holder | None:
    """Who searches a study, None if nobody does; a holder that is not alive was killed and will not come back.

    Raises:
        StudyError: the database failed.
    """
    with storage.transaction("looking up the lease", write=False) as connection:
        if not inspect(connection).has_table(_TABLE.name):
            return None
        row, now = _read(connection, study_id)
    return None if row is None else _holder(row, now, seconds)


def process_started(pid: int) -> str | None:
    """When a process of this machine started, in the system's own terms; "" if it hides that; None if it is dead.

    A process that has ended and was not yet waited for by its parent is dead. Two processes that get the same id
    differ in this.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    if not Path("/proc/self/stat").exists():
        return _started_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # hidden from us
        return ""
    fields = stat[stat.rindex(")") + 2 :].split()  # behind the name, which may hold anything
    return None if fields[0] in "ZX" else fields[19]  # state; start time in clock ticks since boot


def _started_by_ps(pid: int) -> str | None:
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    plain = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    said = subprocess.run(command, capture_output=True, text=True, env=plain, check=False)  # noqa: S603
    state, _, started = said.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _machine() -> str:
    """The host, this boot of it, and the process id namespace, for containers that share a host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _read(connection: Connection, study_id: int) -> tuple[Row[Any] | None, float]:
    """The lease's row, and the database's time."""
    row = connection.execute(select(_TABLE).where(_TABLE.c.study_id == study_id)).one_or_none()
    return row, float(connection.execute(select(_clock(connection))).scalar_one())


def _holder(row: Row[Any], now: float, seconds: float) -> Holder:
    age_s = now - row.heartbeat
    if row.machine == _machine():
        started = process_started(row.pid)
        alive = started is not None and (started == row.process_started or "" in (started, row.process_started))
    else:
        alive = age_s < seconds
    return Holder(host=row.host, pid=row.pid, alive=alive, age_s=age_s)


def _clock(connection: Connection) -> ColumnElement[Any]:
    """The database's time, s since 1970: the machines' own clocks need not agree."""
    match connection.dialect.name:
        case "sqlite":
            return (func.julianday("now") - 2440587.5) * 86400.0
        case "postgresql":
            return extract("epoch", func.clock_timestamp())
        case _:
            return func.unix_timestamp(func.now(6))
