"""Database URLs: bad ones are refused before anything is made, and passwords are hidden."""

import os
from pathlib import Path

import pytest

from search.address import check_storage_url, hide_password
from search.storage import open_storage
from spaces.errors import ConfigError, StudyError


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


BAD_URLS = [
    ("slimfront.db", "not a database URL"),
    ("postgresql://ann:secret@host:port/x", "not a database URL"),
    ("oracle://ann:secret@host/x", "'oracle'.*sqlite, postgresql, mysql"),
    ("sqlite://", "names no file"),
    ("sqlite:///:memory:", "names no file"),
    ("sqlite:///TMP/missing/study.db", "the folder .*missing does not exist"),
    ("sqlite:///TMP", "is not a file"),
    ("sqlite:///TMP/text.db", "is not an SQLite database"),
]


@pytest.mark.parametrize(("url", "expected"), BAD_URLS)
def test_bad_urls_are_refused(tmp_path: Path, url: str, expected: str) -> None:
    (tmp_path / "text.db").write_text("nothing of the kind, and longer than a header")
    url = url.replace("TMP", str(tmp_path))

    with pytest.raises(ConfigError, match=expected) as checked:
        check_storage_url(url)
    with pytest.raises(StudyError, match=expected):
        open_storage(url, create=True)

    assert "secret" not in str(checked.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text.db"]


def test_unwritable_places_are_refused(url: str, tmp_path: Path) -> None:
    open_storage(url, create=True).close()
    (tmp_path / "study.db").chmod(0o400)
    if os.access(tmp_path / "study.db", os.W_OK):
        pytest.skip("root may write everywhere: run the tests as a user")
    with pytest.raises(ConfigError, match=r"study\.db is not writable"):
        check_storage_url(url)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match=r"folder .* is not writable"):
            check_storage_url(url)
    finally:
        tmp_path.chmod(0o700)


def test_good_urls_pass_the_check_and_nothing_is_made(url: str, tmp_path: Path) -> None:
    check_storage_url(url)
    check_storage_url("postgresql://nobody:secret@nowhere.invalid/x")
    check_storage_url("mariadb://nobody@nowhere.invalid/x")
    assert list(tmp_path.iterdir()) == []

    open_storage(url, create=True).close()
    check_storage_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////data/study.db", "sqlite:////data/study.db"),
        ("postgresql://host/x", "postgresql://host/x"),
        ("postgresql://ann@host:5432/x", "postgresql://ann@host:5432/x"),
        ("postgresql+psycopg://ann:secret@host:5432/x", "postgresql+psycopg://ann:***@host:5432/x"),
        ("postgresql://ann:se@c/r?et@host/x", "postgresql://ann:***@host/x"),
        ("postgresql://ann@firm:secret@host/x", "postgresql://ann@firm:***@host/x"),
        ("postgresql:///x?user=ann&password=secret&host=/tmp", "postgresql:///x?user=ann&password=***&host=/tmp"),
        ("not a url://ann:secret@", "not a url://ann:***@"),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    assert hide_password(url) == shown
