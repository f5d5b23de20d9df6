"""Opening a study database, and saying what is wrong with it."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import URL, create_engine, inspect
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from search.address import full_address, hide_password, sqlite_file, url_problem
from search.storage.connecting import reason
from search.storage.rdb import Storage
from search.storage.schema import optuna_problem
from spaces.errors import StudyError

_NAMES: Final = {"studies", "trials"}  # Optuna's, and what another program might call its own
_TRIES: Final = 10
_PAUSE_S: Final = 0.2


class MissingStoreError(StudyError):
    """There is no study database at this URL yet."""


def open_storage(url: str, *, create: bool, patience: float = 0.0, say: Callable[[str], None] | None = None) -> Storage:
    """Opens a study database and says what is wrong with it, if anything is.

    Args:
        url: a database URL; postgresql and mysql without a driver get psycopg 3 and PyMySQL.
        create: whether to make the database file and the tables where they are missing.
        patience: how long the opened storage waits for a database that no longer answers, in seconds. One that
            does not answer at all is not waited for: the URL may be wrong.
        say: where it is said that it waits, and that it goes on; a log warning if None.

    Returns:
        The storage; it holds a connection until it is closed.

    Raises:
        MissingStoreError: there is none, and none is to be made.
        StudyError: wrong URL, missing driver, no answer, or not a database of this Optuna.
    """
    if (problem := url_problem(url) or optuna_problem()) is not None:
        raise StudyError(problem)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # "A new study created in RDB" is not for our users
    address, shown = full_address(url), hide_password(url)
    missing = f"no study database at {shown}: run `slimfront launch CONFIG` first, or name it with --storage"
    file = sqlite_file(address)
    if file is not None and not file.exists() and not create:
        raise MissingStoreError(missing)
    try:
        tables, theirs = _tables(address)
        if theirs:
            raise StudyError(f"{shown} is another program's, it has its own tables {theirs}: name another database")
        if "version_info" not in tables and not create:
            raise MissingStoreError(missing)
        return _opened(url, patience, say)
    except (ImportError, NoSuchModuleError) as error:
        extra = "postgres" if address.get_backend_name() == "postgresql" else "mysql"
        raise StudyError(f"{shown} needs a driver: pip install 'slimfront[{extra}]' ({error})") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        said = reason(error, url)
        raise StudyError(
            f"cannot open the study database {shown}: {said}; see that it runs and that the URL is right"
        ) from error
    except RuntimeError as error:  # not Optuna's own words: for a newer one's tables it advises what we do not admit
        older = "storage upgrade" in str(error)
        fix = "copy it, then run `optuna storage upgrade --storage URL`" if older else "pip install -U slimfront"
        raise StudyError(
            f"cannot use the study database {shown}: its tables are those of {'an older' if older else 'a newer'} "
            f"Optuna than {version('optuna')}, which is installed: {fix}"
        ) from error


# Several processes may make the tables at once, and Optuna takes no lock for it: whoever meets another's half-made
# tables looks again. Where the other one was killed meanwhile, what is missing is made.


def _tables(address: URL) -> tuple[set[str], list[str]]:
    """The names of all tables, and of those that are called like Optuna's and are not."""
    engine = create_engine(address, poolclass=NullPool)  # not a storage's: looking must not change the file
    optunas = BaseModel.metadata.tables
    for _ in range(_TRIES):
        with engine.connect() as connection:
            look = inspect(connection)
            tables = set(look.get_table_names())
            if "version_info" in tables:
                return tables, []
            columns = {name: {one["name"] for one in look.get_columns(name)} for name in sorted(tables & _NAMES)}
        theirs = [name for name, own in columns.items() if own != set(optunas[name].columns.keys())]
        if theirs or not columns:
            break
        time.sleep(_PAUSE_S)
    return tables, theirs


def _opened(url: str, patience: float, say: Callable[[str], None] | None) -> Storage:
    for _ in range(_TRIES - 1):
        try:
            return Storage(url, patience=patience, say=say)
        except (SQLAlchemyError, StorageInternalError):
            time.sleep(_PAUSE_S)
    return Storage(url, patience=patience, say=say)
