"""Each fault at random moments, on SQLite and PostgreSQL: nothing told is lost, and the study is as without it."""

import time
from pathlib import Path
from random import Random

import pytest

from tests.faults.conftest import Searching
from tests.faults.faults import FAKETIME, FAULTS, Fault
from tests.faults.searching import Search
from tests.searches import TRIALS

STORES = ("sqlite", "postgresql")
QUICK = {
    ("driver killed", "sqlite", 0),
    ("driver killed", "postgresql", 1),
    ("driver terminated", "postgresql", 0),
    ("database restarted", "postgresql", 0),
    ("database paused", "sqlite", 0),
    ("cache removed", "sqlite", 0),
}
SEEDS = {"driver killed": 3, "database restarted": 2, "database paused": 2, "cache removed": 2, "clock jumped": 2}
CASES = [
    pytest.param(name, store, seed, marks=() if (name, store, seed) in QUICK else pytest.mark.slow)
    for name in FAULTS
    for store in STORES
    for seed in range(SEEDS.get(name, 1))
]


@pytest.mark.parametrize(("name", "store", "seed"), CASES)
def test_nothing_is_lost_and_the_study_is_equal(
    searching: Searching, whole: Path, request: pytest.FixtureRequest, name: str, store: str, seed: int
) -> None:
    fault, random = FAULTS[name], Random(f"{name} {store} {seed}")
    if name == "clock jumped" and not FAKETIME:
        pytest.skip("needs apt-get install faketime")
    cluster = request.getfixturevalue("cluster") if fault.workers else None
    search = searching(store, workers=fault.workers, cluster=cluster)
    if fault.place is not None:
        fault.place(search)
    for _ in range(random.randint(1, 3) if fault.ends else 1):
        if ended := disturb(search, fault, random):
            break
    if not ended:
        search.finish()
    search.check_equals(whole)
    if "killed" not in name:  # what the killed were writing is swept an hour later
        assert search.leftovers() == []


def disturb(search: Search, fault: Fault, random: Random) -> bool:
    """Launch, let a fault happen once more than it did, and look what became of the trials; whether it ended."""
    search.start()
    moment = random.randint(min(max(0, search.told()) + 1, TRIALS), TRIALS)
    if search.wait(lambda: search.told() >= moment):
        time.sleep(random.uniform(0, 0.3))
    before = search.finished()
    if search.alive:
        fault.act(search, random)
    code = search.ended()
    search.check_kept(before)
    assert code in (0, fault.ends), search.said()
    return code == 0
