"""Optuna's storage, whose transactions are tried again while the database does not answer."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.storages import RDBStorage
from sqlalchemy import Connection, Table, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from search.address import full_address, hide_password, sqlite_file
from search.storage.connecting import check_idle, engine_options, reason
from search.storage.rows import STUDIES
from search.storage.waiting import DatabaseFile, Outage, is_damaged, passes, pause_s
from spaces.errors import StudyError

T = TypeVar("T")


class PatientStorage(RDBStorage):
    """Optuna's RDB storage that also does work of ours, in one transaction, and waits for its database.

    Args:
        url: of the database.
        patience: how long to wait for a database that does not answer, in seconds; it may be changed at any time, also
            to end a wait.
        say: where it is said, once each, that it waits and that it goes on; a log warning if None.
    """

    def __init__(self, url: str, *, patience: float = 0.0, say: Callable[[str], None] | None = None) -> None:
        address = full_address(url)
        whole = address.render_as_string(hide_password=False)
        self.patience = patience
        try:
            super().__init__(whole.replace("{", "{{").replace("}", "}}"), engine_options(address))  # Optuna formats it
        except Exception:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise
        self._remember(say)

    def _remember(self, say: Callable[[str], None] | None) -> None:
        check_idle(self.engine)
        file = sqlite_file(full_address(self.url))
        self._file = None if file is None else DatabaseFile(file)
        self._outage = Outage(self.url, say)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {key: value for key, value in state.items() if key not in ("_file", "_outage")}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._remember(None)

    def close(self) -> None:
        """Closes this thread's session and all idle connections; using the storage again opens new ones."""
        self.remove_session()
        self.engine.dispose()

    def run(self, doing: str, work: Callable[[Connection], T], *, write: bool, patience: float | None = None) -> T:
        """Does some work in one transaction, again and again while the database does not answer.

        Args:
            doing: what the work is, for messages: "starting trial 7".
            work: gets the transaction's connection, and may be called several times. Where a commit's answer was
                lost it is called again although it was done, so doing it twice must be the same as once.
            write: whether it writes; on SQLite it then takes the write lock at once, so that it never has to
                give up halfway because another process wrote in between.
            patience: other than the storage's, in seconds.

        Returns:
            What the work returns. What it reads is one snapshot, if it does not write.

        Raises:
            StudyError: the database failed, or did not answer for too long; nothing of the work was stored.
        """
        began, attempt = time.monotonic(), 0
        while True:
            try:
                done = self._once(work, write)
            except (SQLAlchemyError, self._driver_error) as error:
                left = (self.patience if patience is None else patience) - (time.monotonic() - began)
                if left <= 0 or not passes(error):
                    raise StudyError(self._failed(doing, error)) from error
                self._outage.begins(doing, error, left)
                time.sleep(min(pause_s(attempt), left))
                attempt += 1
            else:
                self._outage.ends()
                return done

    def _once(self, work: Callable[[Connection], T], write: bool) -> T:
        """Does some work in one transaction, once."""
        if self._file is not None and (problem := self._file.problem()) is not None:
            raise StudyError(problem)
        with self.engine.connect() as connection:
            if connection.dialect.name == "sqlite":  # Python's driver opens none before the first INSERT
                connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
            elif not write:
                connection.execution_options(isolation_level="REPEATABLE READ")
            done = work(connection)
            connection.commit()
        return done

    @property
    def _driver_error(self) -> type[Exception]:
        dbapi = self.engine.dialect.loaded_dbapi
        found: type[Exception] = dbapi.Error
        return found

    def _failed(self, doing: str, error: Exception) -> str:
        said = f"{doing} failed, {hide_password(self.url)} says: {reason(error, self.url)}; "
        if is_damaged(error):
            return said + (
                "the file is damaged: put a copy of it in its place, or save what is left with "
                "`sqlite3 OLD.db .recover | sqlite3 NEW.db`"
            )
        return said + "what was told before is kept: see that the database answers, then start again"

    def lock_study(self, connection: Connection, study_id: int) -> None:
        """Holds the study's row until the transaction ends: numbers and leases are given out one by one.

        Raises:
            StudyError: there is no such study.
        """
        study = select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
        if connection.scalar(study.with_for_update()) is None:
            raise StudyError(self._no_study(study_id))

    def make_table(self, ours: Table) -> None:
        """Makes a table of ours where it is missing, and its columns that an earlier version did not have.

        Raises:
            StudyError: the database failed.
        """

        def make(connection: Connection) -> None:
            look = inspect(connection)
            if not look.has_table(ours.name):
                ours.create(connection, checkfirst=True)
                return
            held = {one["name"] for one in look.get_columns(ours.name)}
            for one in ours.columns:
                if one.name not in held:
                    kind = one.type.compile(connection.dialect)
                    connection.execute(text(f"ALTER TABLE {ours.name} ADD COLUMN {one.name} {kind}"))

        for last in (False, True):
            try:
                self.run(f"making the table {ours.name}", make, write=True)
                return
            except StudyError:  # another process may have made it in between
                if last:
                    raise

    def _no_study(self, study_id: int) -> str:
        return f"no study has the id {study_id} in {hide_password(self.url)}: was it deleted?"
