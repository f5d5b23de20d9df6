"""Disks that are full: of the cache folder, of an SQLite file, of a PostgreSQL database; the search waits for room."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from subprocess import CalledProcessError

import pytest
from sqlalchemy import make_url

from tests.faults.conftest import Searching
from tests.faults.faults import fill, small_disk
from tests.faults.searching import Search
from tests.postgres import PostgresServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to mount a small file system"),
]


@pytest.fixture
def disks() -> Iterator[ExitStack]:
    """Small disks, taken away after the test."""
    with ExitStack() as made:
        yield made


def mount(disks: ExitStack, folder: Path, megabytes: int, user: int = 0) -> Path:
    try:
        disks.enter_context(small_disk(folder, megabytes, user))
    except CalledProcessError as error:
        pytest.skip(f"needs leave to mount a small file system: {error.stderr}")
    return folder


def search_until_full(search: Search, folder: Path, random: Random, whole: Path) -> None:
    """Fill the disk at a random moment, and make room when the search says that it waits."""
    search.start()
    moment = random.randint(1, 12)
    search.wait(lambda: search.told() >= moment)
    before = search.finished()
    fill(search, folder, random.uniform(0, 3))
    assert search.ended() == 0, search.said()
    search.check_kept(before)
    search.check_equals(whole)


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_of_the_cache(searching: Searching, whole: Path, tmp_path: Path, disks: ExitStack, store: str) -> None:
    folder = mount(disks, tmp_path / "cache", 2)
    search = searching(store)
    search_until_full(search, folder, Random(f"cache {store}"), whole)
    assert f"the cache folder {folder} cannot be written: [Errno 28] No space left on device" in search.said()
    assert "the cache folder can be written again: the search goes on" in search.said()
    assert search.leftovers() == []
    search.close()


@pytest.mark.parametrize("seed", range(2))
def test_of_an_sqlite_file(searching: Searching, whole: Path, tmp_path: Path, disks: ExitStack, seed: int) -> None:
    folder = mount(disks, tmp_path / "disk", 4)
    search = searching(url=f"sqlite:///{folder}/tiny.db")
    search_until_full(search, folder, Random(f"file {seed}"), whole)
    assert "does not answer (database or disk is full); trying again for up to " in search.said()
    assert "the database answers again after" in search.said()


@pytest.mark.parametrize("seed", range(2))
def test_of_a_postgresql_database(
    searching: Searching, server: PostgresServer, whole: Path, disks: ExitStack, seed: int
) -> None:
    place = Path(server.ask("show data_directory").split()[2]).parent / f"small-{seed}"
    folder = mount(disks, place, 16, server.user)
    search = searching("postgresql")
    name = make_url(search.url).database
    server.ask(f"create tablespace small_{seed} location '{folder}/'")
    disks.callback(server.ask, f"drop tablespace small_{seed}")
    server.ask(f"alter database {name} set tablespace small_{seed}")
    disks.callback(server.ask, f"drop database {name} with (force)")
    search_until_full(search, folder, Random(f"database {seed}"), whole)
    assert "No space left on device); trying again for up to " in search.said()
    assert "the database answers again after" in search.said()
