"""How databases are connected to, and what a database that fails says."""

import math
import sqlite3
import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import URL, Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from search.address import full_address

# A server that vanished without a word is noticed after a minute, not after the system's hours.
_PSYCOPG: Final[Mapping[str, Any]] = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 4,
    "tcp_user_timeout": 60_000,  # ms
}
# And by the server, which else goes on to hold the locks of a driver that vanished, for hours.
_POSTGRES_OPTIONS: Final = (
    "-c idle_in_transaction_session_timeout=60s -c lock_timeout=30s "
    "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=4"
)
_IDLE_S: Final = 1.0
_PYMYSQL: Final[Mapping[str, Any]] = {"connect_timeout": 10, "read_timeout": 120, "write_timeout": 120}


class WalConnection(sqlite3.Connection):
    """A connection in write-ahead mode: readers never wait for the driver; a killed process loses nothing.

    A connection class, not an engine event, because the storage's constructor both makes the engine and
    connects, and because unpickling a storage makes its engine again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA busy_timeout = 30000")  # ms
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = NORMAL")


def engine_options(address: URL) -> dict[str, Any]:
    """What the engine of a study database is made with; what the URL itself says is left to it.

    Args:
        address: with a driver, as `full_address` gives it.
    """
    if address.get_backend_name() == "sqlite":
        return {"connect_args": {"factory": WalConnection}}
    driver = address.get_driver_name()
    ours = {"psycopg": _PSYCOPG, "pymysql": _PYMYSQL}.get(driver, {})
    given = {name: value for name, value in ours.items() if name not in address.query}
    if driver == "psycopg":  # of an option that is said twice the last counts: the URL's
        given["options"] = " ".join([_POSTGRES_OPTIONS, *address.normalized_query.get("options", ())])
    return {"pool_pre_ping": False, "connect_args": given}  # see `check_idle`


def check_idle(engine: Engine) -> None:
    """Let an engine ask the server for an answer before it uses a connection again that lay idle for a while.

    As `pool_pre_ping` does, which asks each time and so costs a transaction one more way there and back.
    """
    ping = engine.dialect.do_ping

    def used(raw: Any, record: ConnectionPoolEntry) -> None:
        record.info["used"] = time.monotonic()

    def check(raw: Any, record: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if time.monotonic() - record.info.get("used", math.inf) > _IDLE_S and not alive(raw):
            raise DisconnectionError

    def alive(raw: Any) -> bool:
        try:
            return ping(raw)
        except engine.dialect.loaded_dbapi.Error:
            return False

    if engine.dialect.name != "sqlite":
        event.listen(engine, "checkin", used)
        event.listen(engine, "checkout", check)


def first_cause(error: BaseException) -> BaseException:
    """What the database's driver raised: Optuna and SQLAlchemy wrap it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: Exception, url: str) -> str:
    """The first line of what the database said, without SQL and without the URL's password."""
    first = first_cause(error)
    text = str(first.args[1]) if type(first).__module__.startswith("pymysql") and len(first.args) > 1 else str(first)
    line = next(iter(text.strip().splitlines()), type(first).__name__)
    password = full_address(url).password
    return line.replace(str(password), "***") if password else line
