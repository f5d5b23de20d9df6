"""How SQLite is connected to, and what a database that fails says."""

import sqlite3
from typing import Any

from search.address import full_address


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


def reason(error: Exception, url: str) -> str:
    """The first line of what the database said, without SQL and without the URL's password."""
    first: BaseException = error
    while first.__cause__ is not None:  # Optuna and SQLAlchemy wrap the driver's
        first = first.__cause__
    line = next(iter(str(first).strip().splitlines()), type(first).__name__)
    password = full_address(url).password
    return line.replace(str(password), "***") if password else line
