"""Longer absences, short grace, and what is missing at the end of a search: each at its worst moment."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from search.lease import holder
from search.storage import open_storage
from tests.faults.cluster import RayCluster
from tests.faults.conftest import Searching
from tests.faults.faults import FAKETIME, place_clock, take_database_away
from tests.faults.searching import INTERRUPTED, Search
from tests.searches import TRIALS

STORES = ("sqlite", "postgresql")
MINUTE = 60.0
slow = pytest.mark.slow


@slow
@pytest.mark.parametrize(
    ("store", "how", "said"),
    [
        ("sqlite", "lock", "does not answer (database is locked); trying again for up to"),
        ("postgresql", "stop", "nothing is lost meanwhile"),
        ("postgresql", "pause", ""),
    ],
)
def test_a_database_that_is_away_for_a_minute(
    searching: Searching, whole: Path, store: str, how: str, said: str
) -> None:
    search = searching(store)
    search.start()
    search.wait(lambda: search.told() >= 5)
    before = search.finished()
    take_database_away(search, MINUTE, how)
    assert search.ended() == 0, search.said()
    assert said in search.said()
    assert not said or "the database answers again after" in search.said()
    search.check_kept(before)
    search.check_equals(whole)


@slow
@pytest.mark.parametrize("store", STORES)
def test_a_grace_that_is_too_short(searching: Searching, whole: Path, cluster: RayCluster, store: str) -> None:
    changed = {"budget": {"trials": TRIALS, "grace": 2.0}}
    search = searching(store, workers=2, cluster=cluster, changed=changed)
    search.start()
    search.wait(lambda: search.told() >= 7)
    assert search.hold()
    before = search.finished()
    since = time.monotonic()
    os.kill(search.pid, signal.SIGTERM)
    assert search.ended() == INTERRUPTED
    assert 2.0 < time.monotonic() - since < 20
    assert "running candidates are finished first, for up to 2 s" in search.said()
    assert "were not finished in time; they are scored when the study goes on" in search.said()
    search.release()
    search.check_kept(before)
    assert search.count("select count(*) from trials where state = 'RUNNING'") > 0
    assert search.count("select count(*) from slimfront_lease") == 0
    search.finish()
    search.check_equals(whole)


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgresql", marks=slow)])
def test_a_cache_that_is_gone_before_the_test_scores_and_after_the_end(
    searching: Searching, whole: Path, store: str
) -> None:
    search = searching(store)
    search.start()
    search.wait(lambda: search.told() >= TRIALS - 3)
    if search.hold():
        shutil.rmtree(search.folder / "cache")
    search.release()
    assert search.ended() == 0, search.said()
    search.check_equals(whole)
    shutil.rmtree(search.folder / "cache")
    abandoned = search.folder / "cache" / "artifacts" / ".one.xyz"  # by a driver that was killed while it wrote
    abandoned.parent.mkdir(parents=True)
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    search.finish()
    search.check_equals(whole)
    assert search.leftovers() == []
    assert "packed files are not in the cache folder any more: making them again" in search.said()


@slow
@pytest.mark.skipif(not FAKETIME, reason="needs apt-get install faketime")
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("jump", ["+3600", "-3600", "-86400"])
def test_a_clock_that_jumps_moves_no_deadline_and_no_lease(
    searching: Searching, whole: Path, store: str, jump: str
) -> None:
    search = searching(store)
    place_clock(search)
    search.changed = {"budget": {"trials": TRIALS, "timeout": 8.0}}
    search.start()
    search.wait(lambda: search.told() >= 2)
    assert search.hold()
    (search.folder / "clock").write_text(jump)
    assert held(search)
    time.sleep(1)
    assert search.alive
    (search.folder / "held").unlink()
    since = time.monotonic()
    time.sleep(8)
    search.release()
    assert search.ended() == 0, search.said()
    assert "the time is up" in search.said()
    assert time.monotonic() - since < 60
    assert 2 <= search.told() < TRIALS
    search.changed = {}
    search.environment = {}
    search.finish()
    search.check_equals(whole)


def held(search: Search) -> bool:
    """Whether the study is seen to be searched."""
    storage = open_storage(search.url, create=False)
    try:
        found = holder(storage, 1)
        return found is not None and found.alive
    finally:
        storage.close()
