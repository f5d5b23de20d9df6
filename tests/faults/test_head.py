"""The head of a cluster is lost: the search says so and ends, and the next launch goes on to an equal study."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.faults.cluster import RayCluster
from tests.faults.conftest import Searching

pytestmark = pytest.mark.slow
QUICK = {"RAY_gcs_rpc_server_reconnect_timeout_s": "40"}


@pytest.fixture
def two() -> Iterator[list[RayCluster]]:
    """A cluster that may lose its head, and the next one."""
    made = [RayCluster(2)]
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("engine", ["pool", "tune"])
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_driver_on_a_node_ends_with_words(
    searching: Searching, whole: Path, two: list[RayCluster], store: str, engine: str
) -> None:
    random = Random(f"head {store} {engine}")
    search = searching(store, workers=2, cluster=two[0], changed={"engine": engine}, environment=QUICK)
    search.start()
    moment = random.randint(1, 20)
    search.wait(lambda: search.told() >= moment)
    assert search.hold()
    before = search.finished()
    two[0].behead()
    assert search.ended() == 1, search.said()
    search.release()
    assert f"the head of the Ray cluster at {two[0].address} does not answer: it is waited for;" in search.said()
    assert f"the head of the Ray cluster at {two[0].address} is lost: nothing answered there " in search.said()
    assert "start the cluster again, with its nodes, and launch again" in search.said()
    assert "Traceback" not in search.said()
    search.check_kept(before)
    assert search.count("select count(*) from slimfront_lease") == 0
    two.append(RayCluster(2))
    search.cluster, search.environment = two[1], {}
    search.finish()
    search.check_equals(whole)
