"""Opening a study database: it is made once, left alone if it is not ours, and errors never show the password."""

import sqlite3
import traceback
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from search.cli import app
from search.storage import hide_password, open_storage
from spaces.errors import StudyError
from tests.postgres import fresh_database


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def test_sqlite_writes_ahead(url: str, tmp_path: Path) -> None:
    storage = open_storage(url, create=True)
    with storage.engine.connect() as connection:
        modes = [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "busy_timeout")]
    storage.close()

    assert modes == ["wal", 1, 30000]
    assert (tmp_path / "study.db").exists()


@pytest.mark.parametrize("name", ["per%cent.db", "{braces}.db", "space and ü.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    url = f"sqlite:///{tmp_path}/{name.replace('%', '%25')}"
    open_storage(url, create=True).close()
    open_storage(url, create=False).close()

    assert (tmp_path / name).exists()


def test_a_missing_database_is_not_made(url: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no study database at sqlite:.*slimfront launch CONFIG.*--storage"):
        open_storage(url, create=False)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "study.db").touch()
    with pytest.raises(StudyError, match="no study database at"):
        open_storage(url, create=False)
    assert (tmp_path / "study.db").stat().st_size == 0

    empty = fresh_database()
    with pytest.raises(StudyError, match="no study database at"):
        open_storage(empty, create=False)


def test_another_programs_database_is_left_alone(url: str, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table trials (court text)")
    connection.close()
    before = file.read_bytes()

    with pytest.raises(StudyError, match=r"another program's.*\['trials'\]"):
        open_storage(url, create=True)

    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("version", "fix"), [("v3.0.0.a", "optuna storage upgrade"), ("v99", "pip install -U slimfront")]
)
def test_another_optunas_tables_are_refused(url: str, tmp_path: Path, version: str, fix: str) -> None:
    open_storage(url, create=True).close()
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("update alembic_version set version_num = ?", (version,))
    connection.close()

    with pytest.raises(StudyError, match=f"cannot use the study database.*{fix}") as caught:
        open_storage(url, create=False)
    assert caught.value.__cause__ is not None
    done = CliRunner().invoke(app, ["status", "--storage", url])
    assert (done.exit_code, fix in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://ann:secret@127.0.0.1:1/x", "127.0.0.1"),
        ("postgresql://127.0.0.1:1/x?user=ann&password=secret", "127.0.0.1"),
        ("mysql+mysqldb://ann:secret@127.0.0.1/x", r"pip install 'slimfront\[mysql\]'"),
        ("postgresql+psycopg2://ann:secret@127.0.0.1/x", r"pip install 'slimfront\[postgres\]'"),
        ("postgresql+nothing://ann:secret@127.0.0.1/x", r"pip install 'slimfront\[postgres\]'"),
    ],
)
def test_a_server_that_does_not_answer_is_named_without_the_password(url: str, expected: str) -> None:
    with pytest.raises(StudyError, match=expected) as caught:
        open_storage(url, create=True)

    assert hide_password(url) in str(caught.value)
    assert caught.value.__cause__ is not None
    assert "secret" not in "".join(traceback.format_exception(caught.value))
