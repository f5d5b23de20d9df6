"""A candidate that takes all memory of its node, until Ray itself ends its worker: it fails, and no other one."""

from pathlib import Path

import pytest

from tests import clusters
from tests.faults import ordered
from tests.faults.conftest import Searching
from tests.faults.searching import Search
from tests.searches import Row, rows_of

pytestmark = pytest.mark.slow
TRIALS = {"budget": {"trials": 9}}
CGROUP = Path("/sys/fs/cgroup/memory.max")
OUT_OF_MEMORY = "out of memory: Ray ended it, as its node had too little left"
ALLOWED = 7 * 2**29  # bytes more than are used now


def monitored() -> dict[str, str]:
    """Variables of a Ray that ends workers as soon as a little more memory is used than now."""
    if CGROUP.exists() and CGROUP.read_text().strip() != "max":
        pytest.skip("needs a machine whose memory is not shared out by cgroups")
    total, available = ordered.memory()
    needed = 2 * ALLOWED + ordered.SPARE
    if available < needed:
        pytest.skip(f"needs {needed >> 20} MiB of free memory")
    threshold = (total - available + ALLOWED) / total
    return {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}


def test_who_only_ran_beside_it_is_not_blamed(tmp_path: Path) -> None:
    """Ray ends those that began last, and as many as make room."""
    said = clusters.run(
        tmp_path,
        """
        (FOLDER / "greedy.py").write_text(
            "import time, work\\n"
            "from tests.faults.ordered import take\\n"
            "def metric(outputs, targets):\\n"
            "  time.sleep(2)\\n"
            "  if float(outputs.std()) < work.LIMIT:\\n"
            "    take()\\n"
            "  time.sleep(4)\\n"
            "  return work.hits(outputs, targets)\\n"
            "def workload():\\n"
            "  return work.made(metric)\\n"
        )
        sys.path.append(str(FOLDER))
        made = cluster()
        made.add_node(num_cpus=2)
        pool = pool_of(made.address, "greedy.py:workload", 2)
        assert pool.wait_until_ready(2, timeout=120)
        for number in range(4):
            pool.submit(task(number))
        found = drain(pool, 4, 240)
        print("errors:", {number: found[number].error for number in range(4)})
        pool.close()
        made.shutdown()
        """,
        seconds=300,
        **monitored(),
    )
    reason = f"it killed its worker 3 times, the last time: {OUT_OF_MEMORY}"
    assert f"errors: {dict.fromkeys(range(4)) | {0: reason}}" in said


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The trials of a search whose metric refuses the same candidates."""
    folder = tmp_path_factory.mktemp("refused")
    Search(folder, f"sqlite:///{folder}/tiny.db", workload="refusing", changed=TRIALS).finish()
    return rows_of(folder)


@pytest.mark.parametrize(("store", "engine"), [("sqlite", "pool"), ("postgresql", "tune")])
def test_only_the_candidate_that_does_it_fails(
    searching: Searching, refused: list[Row], store: str, engine: str
) -> None:
    """Tune ends over it, and the study goes on with the pool."""
    changed = {**TRIALS, "engine": engine}
    search = searching(store, workload="greedy", workers=2, changed=changed, environment=monitored())
    if engine == "tune":
        search.start()
        assert search.ended() == 1, search.said()
        assert "error: Ray ended a worker, as its node had too little memory left, and Ray Tune" in search.said()
        assert "Traceback" not in search.said()
        search.changed = TRIALS
    search.finish()
    rows = rows_of(search.url)
    reason = f"it killed its worker 3 times, the last time: {OUT_OF_MEMORY}"
    assert [row.number for row in rows if row.state == "FAIL"] == [row.number for row in refused if row.state == "FAIL"]
    assert {row.attrs.pop("error") for row in rows if row.state == "FAIL"} == {reason}
    for row in refused:
        row.attrs.pop("error", None)
    assert rows == refused
