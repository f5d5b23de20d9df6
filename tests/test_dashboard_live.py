"""Readers at work while a search writes: neither side has an error, and what is read fits together."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import optuna.visualization
import pytest

from search.dashboard import Dashboard
from search.storage import open_storage
from tests.postgres import fresh_database
from tests.processes import start
from tests.searches import STUDY

LOADS, TRIALS = 200, 60
SEARCH = """
import sys
from dataclasses import replace
from pathlib import Path
from search.loop import launch
from tests.searches import tiny
launch(tiny(Path({folder!r}), trials={trials}, storage={url!r}))
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/live.db" if request.param == "sqlite" else fresh_database()


def requests(address: str) -> Iterator[tuple[str, Any]]:
    """What open pages ask for, over and over: one that polls, one that is loaded anew each time."""
    fixed = 0
    while True:
        for path in (
            f"/api/studies/1?after={fixed}",
            "/api/studies/1?after=0",
            "/api/studies",
            "/api/studies/1/param_importances",
            "/csv/1",
        ):
            with urllib.request.urlopen(address + path, timeout=60) as answer:
                assert answer.status == 200
                body = answer.read()
            found = body.decode() if path.startswith("/csv") else json.loads(body)
            if path.endswith("after=0"):
                states = [trial["state"] for trial in found["trials"]]
                assert [trial["number"] for trial in found["trials"]] == list(range(len(states)))
                fixed = states.index("Running") if "Running" in states else len(states)
            yield path, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_two_hundred_page_loads_and_optuna_itself_while_a_search_writes(url: str, tmp_path: Path) -> None:
    process = start(SEARCH.format(folder=str(tmp_path), trials=TRIALS, url=url))
    try:
        wait_for_trials(url, process)
        dashboard = Dashboard(url, port=0)
        thread = threading.Thread(target=dashboard.serve)
        thread.start()
        loads, while_it_wrote, seen = 0, 0, 0
        try:
            for path, found in requests(dashboard.address.partition("/dashboard")[0]):
                loads += 1
                while_it_wrote += process.poll() is None
                if path.endswith("after=0"):
                    assert len(found["trials"]) >= seen
                    seen = len(found["trials"])
                if loads % 40 == 0:
                    look_with_optuna(url)
                if loads >= LOADS and process.poll() is not None:
                    break
        finally:
            dashboard.stop()
            thread.join(10)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert while_it_wrote >= 20
    assert seen == TRIALS


def wait_for_trials(url: str, process: Any) -> None:
    """Wait until the search has told a trial."""
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        try:
            storage = open_storage(url, create=False)
        except Exception:
            threading.Event().wait(0.1)
            continue
        try:
            studies = storage.get_all_studies()
            if studies and any(trial.state.is_finished() for trial in storage.load_trials(studies[0]._study_id)):
                return
        finally:
            storage.close()
        threading.Event().wait(0.1)
    raise AssertionError("the search told nothing for two minutes")


def look_with_optuna(url: str) -> None:
    """What somebody does who has Optuna alone: its own storage, on the same database."""
    plain = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        study = optuna.load_study(study_name=STUDY, storage=plain)
        assert study.best_trials
        optuna.visualization.plot_pareto_front(study, target_names=["accuracy", "bytes"])
        optuna.visualization.plot_timeline(study)
        optuna.visualization.plot_parallel_coordinate(
            study, target=lambda trial: trial.values[0], target_name="accuracy"
        )
    finally:
        plain.remove_session()
        plain.engine.dispose()
