"""What a launch refuses, and that nothing was written, changed or left behind then."""

import signal
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection

from search.config_sections import DistillationConfig, SamplerConfig, SpaceConfig
from search.lease import Lease
from search.loop import launch
from search.storage import open_storage
from spaces.errors import ConfigError, SlimfrontError, StudyError, WorkloadError
from tests.searches import STUDY, attrs_of, rows_of, tiny, url_of

MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
OWN = """
from dataclasses import replace
import torch
from tests import tiny
def workload():
    made = tiny.workload()
    {change}
    return made
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    launch(tiny(folder, 6))
    return folder


class TestChanged:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"seed": 1}, "seed: stored 0, given 1"),
            ({"window": 5}, "window: stored 4, given 5"),
            ({"chunk": 50}, "chunk: stored 25, given 50"),
            ({"threads": 2}, "threads: stored 1, given 2"),
            ({"space": SpaceConfig(bits=(2, 4), ratios=(0.0, 0.6, 0.9))}, "space.bits: stored [2, 4, 6], given [2, 4]"),
            ({"distillation": DistillationConfig(steps=(6, 18))}, "distillation.batch_size: stored 32, given 64"),
            ({"sampler": SamplerConfig(name="tpe", uniform=3, predicted=4)}, "sampler.name: stored nsga2, given tpe"),
            ({"workload": "tests.tiny:scalar"}, "workload: stored tests.tiny:workload, given tests.tiny:scalar"),
        ],
    )
    def test_other_settings_are_named(self, begun: Path, change: dict[str, Any], words: str) -> None:
        before = rows_of(begun), attrs_of(begun)
        with pytest.raises(ConfigError) as caught:
            launch(tiny(begun, 9, **change))
        lines = str(caught.value).splitlines()
        assert lines[0] == "study 'tiny' was started with other settings:"
        assert words in [line.strip().replace('"', "") for line in lines]
        assert "another name (key study)" in lines[-1]
        assert (rows_of(begun), attrs_of(begun)) == before

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("made.model.head.bias.data[0] += 0.001", "workload.model_sha256"),
            ("made.test[0][0, 0] += 0.001", "workload.data_sha256"),
            ("made = replace(made, chance=0.5)", "workload.chance"),
        ],
    )
    def test_another_model_or_other_data_are_named(self, tmp_path: Path, change: str, words: str) -> None:
        file = tmp_path / "own.py"
        file.write_text(OWN.format(change=""))
        config = tiny(tmp_path, 5, workload=f"{file}:workload")
        launch(config)
        before = rows_of(tmp_path)
        file.write_text(OWN.format(change=change))
        with pytest.raises(ConfigError, match=words):
            launch(config)
        assert rows_of(tmp_path) == before

    def test_what_cannot_change_results_may_change(self, begun: Path, tmp_path: Path) -> None:
        launch(tiny(begun, 7, cache=str(tmp_path / "other")))
        attrs = attrs_of(begun)
        assert (len(rows_of(begun)), attrs["cache"]) == (7, str(tmp_path / "other"))
        assert attrs["config"]["budget"]["trials"] == 7
        launch(tiny(begun, 6))


class TestOthers:
    @pytest.mark.parametrize("directions", [[MAXIMIZE, MINIMIZE], [MINIMIZE]])
    def test_the_study_of_another_program_is_left_alone(self, tmp_path: Path, directions: list[StudyDirection]) -> None:
        theirs = optuna.create_study(study_name=STUDY, storage=url_of(tmp_path), directions=directions)
        theirs.tell(theirs.ask({"x": FloatDistribution(0, 1)}), [0.5] * len(directions))
        with pytest.raises(StudyError, match=r"study 'tiny' exists .* give yours another name \(key study\)"):
            launch(tiny(tmp_path))
        again = optuna.load_study(study_name=STUDY, storage=url_of(tmp_path))
        assert (again.user_attrs, again.metric_names, len(again.trials)) == ({}, None, 1)

    def test_a_study_that_is_being_searched_is_left_alone(self, tmp_path: Path) -> None:
        launch(tiny(tmp_path, 5))
        before = rows_of(tmp_path)
        storage = open_storage(url_of(tmp_path), create=False)
        refused = pytest.raises(StudyError, match="is being searched by process")
        with Lease(storage, storage.get_study_id_from_name(STUDY)), refused:
            launch(tiny(tmp_path, 6))
        storage.close()
        assert rows_of(tmp_path) == before
        assert len(launch(tiny(tmp_path, 6)).front.complete) == 6

    def test_a_search_that_lost_its_lease_stops(self, tmp_path: Path) -> None:
        """A metric of this workload gives the lease to somebody else after some trials."""
        file = tmp_path / "own.py"
        file.write_text(
            OWN.format(change="made = replace(made, metric=Thief())")
            + f"""
import sqlite3
from objectives.accuracy import accuracy
class Thief:
    calls = 0
    def __call__(self, outputs, targets):
        Thief.calls += 1
        if Thief.calls == 20:
            with sqlite3.connect({str(tmp_path / "tiny.db")!r}) as connection:
                connection.execute("update slimfront_lease set owner = 'thief', pid = 1, host = 'there'")
            connection.close()
        return accuracy(outputs, targets)
"""
        )
        with pytest.raises(StudyError, match="was taken over by process 1 on there: this process stops"):
            launch(tiny(tmp_path, workload=f"{file}:workload"))
        rows = rows_of(tmp_path)
        assert 5 < len(rows) < 24
        assert [row.state for row in rows if row.state != "RUNNING"] == ["COMPLETE"] * (len(rows) - 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"workload": "tests.no_such_module:workload"}, WorkloadError, "no module named 'tests.no_such_module'"),
        ({"workload": "tests.tiny:nothing"}, WorkloadError, "has no 'nothing'"),
        ({"workload": "tests.tiny:needy"}, WorkloadError, "the loss"),
        ({"workload": "tests.tiny:mute"}, WorkloadError, "the float model cannot be scored"),
        ({"space": SpaceConfig(exclude=("nothing.*",))}, ConfigError, "space.exclude[0]"),
        ({"sampler": SamplerConfig(options={"size": 3})}, ConfigError, "sampler.options: given size"),
        ({"sampler": SamplerConfig(name="optuna.samplers.CmaEsSampler")}, ConfigError, "CmaEsSampler"),
        ({"storage": "postgresql://user:secret@localhost:1/nothing"}, StudyError, "localhost:1/nothing"),
    ],
)
def test_a_search_that_cannot_start_writes_nothing(
    tmp_path: Path, change: dict[str, Any], error: type[SlimfrontError], words: str
) -> None:
    with pytest.raises(error) as caught:
        launch(tiny(tmp_path, **change))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    found_again = {"layers", "sensitivities"}  # by whoever starts next, under hashes of what they were made of
    assert [file for file in files if not found_again & set(file.parts)] == []
    assert "storage" in change or list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named_before_a_layer_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"cache: the folder .*/file/cache cannot be made: "):
        launch(tiny(tmp_path, cache=str(tmp_path / "file" / "cache")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_launch_leaves_no_thread_and_no_signal_handler_behind(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    threads = set(threading.enumerate())
    launch(tiny(tmp_path, 5))
    with pytest.raises(ConfigError):
        launch(tiny(tmp_path, 5, seed=3))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert set(threading.enumerate()) <= threads


def test_a_search_may_run_in_a_thread(tmp_path: Path) -> None:
    (tmp_path / "thread").mkdir()
    (tmp_path / "main").mkdir()
    thread = threading.Thread(target=launch, args=(tiny(tmp_path / "thread", 8),))
    thread.start()
    thread.join()
    launch(tiny(tmp_path / "main", 8))
    assert rows_of(tmp_path / "thread") == rows_of(tmp_path / "main")
