"""A database that does not answer for a while: which failures pass, and how long to wait for that."""

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from search.address import hide_password
from search.storage.connecting import first_cause, reason

_LOG = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0

# SQLite's primary result codes: busy, locked, input/output error, full.
_SQLITE_PASSING: Final = {5, 6, 10, 13}
_SQLITE_DAMAGED: Final = {11, 26}  # corrupt, not a database

# PostgreSQL's SQLSTATE classes and codes: connection, transaction rollback (deadlock), insufficient resources (disk
# full), lock not available, query canceled by a time limit, shut down or starting, input/output error.
_POSTGRES_PASSING: Final = ("08", "40", "53", "55P03", "57014", "57P", "25P03", "58030")
_POSTGRES_LASTING: Final = ("57P04",)  # the database was dropped

# What PostgreSQL says where no connection comes about and waiting is no help: such errors carry no code.
_POSTGRES_REFUSALS: Final = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "permission denied",
    "not accepting connections",
    "invalid ",
    "certificate",
)

# MySQL's and MariaDB's: disk full (3, 28, 1021, 1026, 1114), too many connections, out of memory, shutdown, locks,
# connection lost; 0 is PyMySQL's own for a connection that is closed.
_MYSQL_PASSING: Final = {
    0, 3, 28, 1021, 1026, 1028, 1037, 1040, 1041, 1053, 1077, 1079, 1114, 1152, 1158, 1159, 1160, 1161, 1184, 1203,
    1205, 1213, 1226, 1927, 2002, 2003, 2006, 2013, 2014, 2055, 4031,
}  # fmt: skip


def passes(error: Exception) -> bool:
    """Whether a failure is one that ends by itself, or as soon as somebody starts the database again.

    Args:
        error: what SQLAlchemy or the database's driver raised.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    cause = first_cause(error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_PASSING
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if type(cause).__module__.startswith("pymysql"):
        return bool(cause.args) and cause.args[0] in _MYSQL_PASSING
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if code is not None:
        return code.startswith(_POSTGRES_PASSING) and code not in _POSTGRES_LASTING
    lost = type(cause).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")
    return lost and not any(words in str(cause) for words in _POSTGRES_REFUSALS)


def is_damaged(error: Exception) -> bool:
    """Whether SQLite says that the database file is not what SQLite wrote."""
    cause = first_cause(error)
    return isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_DAMAGED


class Outage:
    """Whether the database answers, as all threads of a process know it; it is said once when that changes.

    Args:
        url: of the database.
        say: where it is said; a log warning if None.
    """

    def __init__(self, url: str, say: Callable[[str], None] | None) -> None:
        self._url, self._say = url, say or _LOG.warning
        self._lock, self._since = threading.Lock(), 0.0

    def begins(self, doing: str, error: Exception, patience_s: float) -> None:
        """A thread found that the database does not answer, and waits for it."""
        with self._lock:
            if self._since:
                return
            self._since = time.monotonic()
        self._say(
            f"{doing}: the database {hide_password(self._url)} does not answer ({reason(error, self._url)}); "
            f"trying again for up to {patience_s:.0f} s, nothing is lost meanwhile"
        )

    def ends(self) -> None:
        """A thread got an answer."""
        if not self._since:
            return
        with self._lock:
            since, self._since = self._since, 0.0
        if since:
            self._say(f"the database answers again after {time.monotonic() - since:.0f} s: going on")


def pause_s(attempt: int) -> float:
    """How long to wait before the next attempt, the first is 0: twice as long each time, less a random part."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # drivers of one database shall not come in step


class DatabaseFile:
    """The file of an SQLite database: deleted or exchanged, SQLite would go on writing to what nobody can open.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[int, int] | None = self._identity()

    def problem(self) -> str | None:
        """What happened to the file since it was opened, if anything did."""
        now = self._identity()
        if now == self._known:
            return None
        if self._known is None:
            self._known = now
            return None
        what = "was deleted or moved away" if now is None else "is not the file that was opened: it was exchanged"
        return f"the database file {self._path} {what}; put it back, or a copy of it, and start again"

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
