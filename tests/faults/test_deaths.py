"""Candidates that kill their workers, and nodes that take candidates with them: only the former are given up."""

from pathlib import Path

import pytest

from tests.faults.cluster import RayCluster
from tests.faults.conftest import Searching
from tests.faults.searching import Search
from tests.searches import Row, rows_of

pytestmark = pytest.mark.slow
TRIALS = {"budget": {"trials": 9}}
NODES_LOST = 3


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The trials of a search whose metric refuses a candidate: another reason, and else the same."""
    folder = tmp_path_factory.mktemp("refused")
    Search(folder, f"sqlite:///{folder}/tiny.db", workload="refusing", changed=TRIALS).finish()
    rows = rows_of(folder)
    assert 1 <= len(errors(rows)) <= 2
    return rows


def errors(rows: list[Row]) -> list[str]:
    """Why trials failed."""
    return [row.attrs["error"] for row in rows if row.state == "FAIL"]


def without_errors(rows: list[Row]) -> list[Row]:
    for row in rows:
        row.attrs.pop("error", None)
    return rows


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        ("crashing", "it killed its worker 3 times, the last time: its process crashed or was killed"),
        ("hungry", "failed 3 times, the last time: the metric failed on the validation split: out of memory: "),
    ],
)
def test_a_candidate_that_does_it_again_fails_and_the_search_goes_on(
    searching: Searching, cluster: RayCluster, refused: list[Row], store: str, workload: str, reason: str
) -> None:
    search = searching(store, workload=workload, workers=2, cluster=cluster, changed=TRIALS)
    search.finish()
    rows = rows_of(search.url)
    assert all(reason in one for one in errors(rows)), errors(rows)
    assert f"failed: {reason}" in search.said()
    assert without_errors(rows) == without_errors(refused)


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_candidate_whose_nodes_are_lost_does_not_fail(searching: Searching, whole: Path, store: str) -> None:
    cluster = RayCluster(1)
    try:
        search = searching(store, workers=1, cluster=cluster)
        search.start()
        search.wait(lambda: search.told() >= 2)
        for _ in range(NODES_LOST):
            assert search.hold()
            cluster.remove()
            search.release()
            cluster.add()
        assert search.ended() == 0, search.said()
        search.check_equals(whole)
    finally:
        cluster.close()


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_candidate_is_not_blamed_for_drivers_that_die(
    searching: Searching, whole: Path, cluster: RayCluster, store: str
) -> None:
    search = searching(store, workers=2, cluster=cluster)
    for _ in range(3):
        search.start()
        search.wait(lambda: search.told() >= 2)
        assert search.hold()
        before = search.finished()
        search.close()
        search.check_kept(before)
    search.finish()
    search.check_equals(whole)
