"""Searches on Ray workers are the searches of one process, whoever finishes first."""

from pathlib import Path

import pytest
import ray

from search.loop import launch
from spaces.errors import StudyError
from tests.searches import FRONT, attrs_of, document_of, outcomes_of, rows_of, tiny


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_change_nothing(local_ray: None, tmp_path: Path, undisturbed: Path, workers: int) -> None:
    result = launch(tiny(tmp_path, workers=workers))
    assert rows_of(tmp_path) == rows_of(undisturbed)
    assert any(row.attrs.get("stopped") for row in rows_of(tmp_path))
    assert outcomes_of(tmp_path) == outcomes_of(undisturbed)
    assert attrs_of(tmp_path)["test"] == attrs_of(undisturbed)["test"]
    assert document_of(tmp_path, "sensitivities") == document_of(undisturbed, "sensitivities") is not None
    for point in result.front.points:
        path = Path("cache", "artifacts", f"{point.artifact}.safetensors")
        assert (tmp_path / path).read_bytes() == (undisturbed / path).read_bytes()
    assert ray.is_initialized()  # it was not started by the launch


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_they_change_nothing_for_our_sampler(
    local_ray: None, tmp_path: Path, undisturbed_front: Path, workers: int
) -> None:
    launch(tiny(tmp_path, sampler=FRONT, workers=workers))
    assert rows_of(tmp_path) == rows_of(undisturbed_front)
    assert outcomes_of(tmp_path) == outcomes_of(undisturbed_front)
    assert attrs_of(tmp_path)["test"] == attrs_of(undisturbed_front)["test"]
    assert document_of(tmp_path, "sensitivities") == document_of(undisturbed_front, "sensitivities") is not None


@pytest.mark.slow
def test_launches_may_have_different_workers(local_ray: None, tmp_path: Path, undisturbed: Path) -> None:
    for trials, workers in ((5, 0), (11, 2), (17, 0), (24, 3)):
        launch(tiny(tmp_path, trials, workers=workers))
    assert rows_of(tmp_path) == rows_of(undisturbed)
    assert outcomes_of(tmp_path) == outcomes_of(undisturbed)


@pytest.mark.slow
def test_candidates_fail_on_workers_as_they_do_here(local_ray: None, tmp_path: Path) -> None:
    for name, workers in (("here", 0), ("there", 2)):
        (tmp_path / name).mkdir()
        launch(tiny(tmp_path / name, 16, workload="tests.tiny:picky", workers=workers))
    assert rows_of(tmp_path / "here") == rows_of(tmp_path / "there")
    assert "FAIL" in {row.state for row in rows_of(tmp_path / "here")}


@pytest.mark.slow
def test_a_workload_that_differs_between_processes_stops_the_search(local_ray: None, tmp_path: Path) -> None:
    file = tmp_path / "shuffled.py"
    file.write_text(
        "import os\nfrom tests import tiny\n"
        "def workload():\n  made = tiny.workload()\n  made.model.head.bias.data[0] = os.getpid()\n  return made\n"
    )
    with pytest.raises(StudyError, match=r"a worker cannot start: .*its model is not the same in every process"):
        launch(tiny(tmp_path, workload=f"{file}:workload", workers=1))
    assert rows_of(tmp_path) == []
