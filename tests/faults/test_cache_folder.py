"""A cache folder that somebody removes, or whose disk is full, costs time and changes nothing."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compress import database
from objectives.evaluation import Evaluation, teach
from objectives.judging import FixedJudge
from objectives.packed import read_packed
from objectives.score import Scorer
from objectives.workload import LoadedWorkload, load_workload
from search.prices import Sensing
from search.tasks import LayerTask, LocalPool, Result, ScoreTask, Task, run
from spaces.policy import Choice, Distillation, Policy, Uniform, Unstructured
from tests.scoring import evaluation, policy

DISTILLED = Distillation(temperature=2.0, alpha=0.5, learning_rate=0.02, batch_size=32, student_steps=20)
CHOICES = tuple(Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=bits)) for bits in (2, 3, 4))
STUDENT = dict.fromkeys(("first", "second", "head"), Choice(weights=Uniform(bits=4)))

REMOVER = """
import shutil, sys, time
while True:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    print("", flush=True)
    time.sleep(0.003)
"""


@pytest.fixture(scope="module")
def loaded() -> LoadedWorkload:
    return load_workload("tests.tiny:taught")


def settings(cache: Path, shared: Path | None = None) -> Evaluation:
    chosen = replace(evaluation(cache, steps=(4, 9)), distillation=DISTILLED)
    return chosen if shared is None else replace(chosen, shared=str(shared))


def tasks() -> list[Task]:
    plain = [ScoreTask(number, policy(number), FixedJudge()) for number in range(4)]
    student = Policy(sites=STUDENT, model="narrow", distillation=DISTILLED)
    sensing = Sensing(20, None)
    layers = [LayerTask(10 + i, Policy(sites={}), site, CHOICES, sensing) for i, site in enumerate(STUDENT)]
    return [*layers, *plain, ScoreTask(4, student, FixedJudge(0))]


def worth(result: Result) -> tuple[object, ...]:
    """What a study is told of a result."""
    assert result.error is None
    score = result.score
    rungs = () if score is None else tuple(replace(one, seconds=0.0) for one in score.rungs)
    return result.number, result.costs, rungs, score and replace(score, rungs=())


def all_of(loaded: LoadedWorkload, chosen: Evaluation) -> list[Result]:
    """Each task in a process that has just begun: with nothing but folders to remember by."""
    teacher = teach(loaded, chosen)

    def done(task: Task) -> Result:
        scorer = Scorer(loaded, chosen, teacher)
        result = run(scorer, chosen.cache, task)
        assert scorer.models.shared is None or scorer.models.shared.flush(20)
        return result

    begun = done(ScoreTask(20, policy(0), FixedJudge(0)))
    assert begun.score is not None
    return [*map(done, tasks()), begun, done(ScoreTask(21, policy(0), FixedJudge(1), begun.score.rungs))]


@contextlib.contextmanager
def removing(folder: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", REMOVER, str(folder)], stdout=subprocess.PIPE) as remover:
        try:
            assert remover.stdout is not None
            remover.stdout.readline()
            yield
        finally:
            remover.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(loaded: LoadedWorkload, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return all_of(loaded, settings(tmp_path_factory.mktemp("cache")))


def test_a_folder_that_is_removed_all_the_time(
    loaded: LoadedWorkload, undisturbed: list[Result], tmp_path: Path
) -> None:
    with removing(tmp_path / "cache"):
        found = all_of(loaded, settings(tmp_path / "cache"))
    assert [worth(one) for one in found] == [worth(one) for one in undisturbed]


def test_one_that_nodes_share(loaded: LoadedWorkload, undisturbed: list[Result], tmp_path: Path) -> None:
    with removing(tmp_path / "shared"):
        found = all_of(loaded, settings(tmp_path / "cache", tmp_path / "shared"))
    assert [worth(one) for one in found] == [worth(one) for one in undisturbed]


def test_nodes_that_share_find_what_another_has_made(
    loaded: LoadedWorkload, undisturbed: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in ("a", "b"):
        found = all_of(loaded, settings(tmp_path / node, tmp_path / "shared"))
        assert [worth(one) for one in found] == [worth(one) for one in undisturbed]
        monkeypatch.setattr(database, "compress_layer", None)  # the second one makes no layer
    for folder in ("layers", "students", "sensitivities", "artifacts"):
        theirs = list((tmp_path / "b" / folder).rglob("*.*"))
        assert theirs
        for path in theirs:
            assert (tmp_path / "shared" / path.relative_to(tmp_path / "b")).read_bytes() == path.read_bytes()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk with room for 12 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(folder)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        (folder / "large").write_bytes(bytes(12 * 1024))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_makes_the_search_wait_for_room(
    loaded: LoadedWorkload, undisturbed: list[Result], full: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(full)
    scorer = Scorer(loaded, chosen, teach(loaded, chosen))
    pool = LocalPool(scorer, full)
    pool.submit(tasks()[0])
    (costs,) = pool.collect(1.0)
    assert worth(costs) == worth(undisturbed[0])  # what is kept to save time is not missed
    pool.submit(tasks()[3])
    assert pool.collect(0.01) == []
    assert pool.collect(0.01) == []
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("No space left on device; the search waits") == 1
    assert f"the cache folder {full} cannot be written" in said
    (full / "large").unlink()
    (result,) = pool.collect(0.01)
    assert worth(result) == worth(undisturbed[3])
    assert result.score is not None
    assert read_packed(full, result.score.artifact or "") is not None
    assert not [path for path in full.rglob(".*")]
