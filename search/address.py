"""Database URLs: what is wrong with one before it is opened, and how to show one without its password."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spaces.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import URL

_DRIVERS: Final = {  # what a URL that names no driver gets
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",  # Optuna knows this dialect by its older name
}
_FORMS: Final = "sqlite:///FILE.db or postgresql://USER:PASSWORD@HOST/DATABASE"
_SQLITE_HEADER: Final = b"SQLite format 3\0"

# Greedy: a password that should have been percent-encoded is hidden to its last character all the same.
_PASSWORD: Final = re.compile(r"(://[^:/]*:).*@")
_PASSWORD_IN_QUERY: Final = re.compile(r"([?&][^=&]*pass[^=&]*=)[^&]*", re.IGNORECASE)


def hide_password(url: str) -> str:
    """The URL as it may be printed; it works on what is not a valid URL, too.

    Example:
        >>> hide_password("postgresql://ann:secret@db.example/slimfront")
        'postgresql://ann:***@db.example/slimfront'
    """
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1***@", url))


def check_storage_url(url: str) -> None:
    """Checks a database URL without connecting, writing anything or making the file.

    Raises:
        ConfigError: it is no URL, names a kind of database that is not supported, or an SQLite file that
            cannot be written or is something else.
    """
    if (problem := url_problem(url)) is not None:
        raise ConfigError(f"storage: {problem}")


def url_problem(url: str) -> str | None:
    """What is wrong with a database URL and how to put it right, or None."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    shown = hide_password(url)
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        return f"{shown!r} is not a database URL: write {_FORMS}"
    backend = address.get_backend_name()
    if backend not in _DRIVERS:
        return f"{shown!r} names {backend!r}, but studies are kept in {', '.join(_DRIVERS)}: write {_FORMS}"
    if backend == "sqlite":
        return _file_problem(shown, address.database)
    return None


def full_address(url: str) -> "URL":
    """The parsed URL, with the driver that Slimfront uses where it names none."""
    from sqlalchemy import make_url

    address = make_url(url)
    return address.set(drivername=_DRIVERS.get(address.drivername, address.drivername))


def sqlite_file(address: "URL") -> Path | None:
    """The database file of an SQLite URL, None for a server's."""
    return Path(address.database or "") if address.get_backend_name() == "sqlite" else None


def _file_problem(shown: str, database: str | None) -> str | None:
    if not database or database == ":memory:" or database.startswith("file:"):
        return f"{shown!r} names no file, and a study must outlive the process: write sqlite:///FILE.db"
    path = Path(database)
    folder = path.parent
    if not folder.is_dir():
        return f"{shown!r} cannot be made: the folder {folder} does not exist, make it or choose another"
    if path.exists() and not path.is_file():
        return f"{shown!r} cannot be used: {path} is not a file, name a file in it"
    if not os.access(folder, os.W_OK | os.X_OK):  # SQLite writes its journal beside the file
        return f"{shown!r} cannot be written: the folder {folder} is not writable for you, choose another"
    if not path.exists():
        return None
    if not os.access(path, os.R_OK | os.W_OK):
        return f"{shown!r} cannot be written: {path} is not writable for you, see its permissions"
    with path.open("rb") as file:
        header = file.read(len(_SQLITE_HEADER))
    if header not in (b"", _SQLITE_HEADER):
        return f"{shown!r} cannot be used: {path} is not an SQLite database, choose another file name"
    return None
