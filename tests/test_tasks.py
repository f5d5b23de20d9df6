"""What a worker makes of a task: where its packed file goes, and what the result says of where it was measured."""

import hashlib
import pickle
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from compress.files import artifact_path
from compress.shared import Shared
from objectives.judging import FixedJudge
from objectives.machine import machine
from objectives.packed import read_packed
from objectives.score import Scorer
from objectives.workload import load_workload
from search.tasks import LocalPool, Result, ScoreTask, TestTask, run
from tests.scoring import evaluation, policy, scorer_of

TASK = ScoreTask(3, policy(1), FixedJudge(0))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return scorer_of(load_workload("tests.tiny:workload"), evaluation(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def scorer(first: Scorer, tmp_path: Path) -> Scorer:
    return Scorer(first.loaded, replace(first.evaluation, cache=tmp_path / "worker"), first.teacher)


def artifact(result: Result) -> str:
    assert result.score is not None
    assert result.score.artifact is not None
    return result.score.artifact


def test_a_packed_file_is_kept_below_the_folder(scorer: Scorer, tmp_path: Path) -> None:
    result = run(scorer, tmp_path / "driver", TASK)
    assert result.blob is None
    assert read_packed(tmp_path / "driver", artifact(result)) is not None
    assert result.host == socket.gethostname()
    assert result.machine == machine("cpu", 1)
    assert result.seconds > 0


def test_or_comes_with_the_result(scorer: Scorer, tmp_path: Path) -> None:
    result = run(scorer, tmp_path / "driver", TASK, carry=True)
    assert result.blob is not None
    assert hashlib.sha256(result.blob).hexdigest() == artifact(result)
    assert not (tmp_path / "driver").exists()
    assert not (tmp_path / "worker" / "artifacts").exists()
    here = run(scorer, tmp_path / "driver", TASK)
    assert here.score is not None
    assert result.score is not None
    assert replace(here.score, rungs=()) == replace(result.score, rungs=())
    assert read_packed(tmp_path / "driver", artifact(here)) == result.blob


def test_as_it_does_where_the_folder_cannot_be_written(scorer: Scorer, tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("in the way")
    result = run(scorer, tmp_path / "driver", TASK)
    assert result.error is None
    assert result.blob is not None


def test_what_is_not_kept_brings_nothing(scorer: Scorer, tmp_path: Path) -> None:
    result = run(scorer, tmp_path, replace(TASK, judge=FixedJudge(0, kept=False)), carry=True)
    assert result.score is not None
    assert (result.score.artifact, result.blob) == (None, None)


def test_a_file_is_scored_from_its_bytes_on_any_node(scorer: Scorer, first: Scorer, tmp_path: Path) -> None:
    scored = run(scorer, tmp_path, TASK, carry=True)
    assert scored.blob is not None
    task = pickle.loads(pickle.dumps(TestTask(3, artifact(scored), scored.blob)))
    result = run(first, tmp_path / "nowhere", task)
    path = tmp_path / "file"
    path.write_bytes(scored.blob)
    assert result.test == first.score_file(path, "test")
    assert result.machine == machine("cpu", 1)


@pytest.mark.parametrize("blob", [b"", b"no packed file", None])
def test_one_that_is_none_is_the_result_s_error(blob: bytes | None, scorer: Scorer, tmp_path: Path) -> None:
    scored = run(scorer, tmp_path, TASK, carry=True)
    assert scored.blob is not None
    damaged = scored.blob[:-1] + bytes([scored.blob[-1] ^ 1]) if blob is None else blob
    result = run(scorer, tmp_path, TestTask(3, artifact(scored), damaged))
    assert result.test is None
    assert result.error is not None
    assert str(artifact_path(tmp_path, artifact(scored))) in result.error
    assert "damaged" in result.error


def test_neither_shows_its_bytes(scorer: Scorer, tmp_path: Path) -> None:
    result = run(scorer, tmp_path, TASK, carry=True)
    assert result.blob is not None
    assert "blob" not in repr(result)
    assert "blob" not in repr(TestTask(3, artifact(result), result.blob))


def test_nodes_that_share_find_each_other_s_packed_files(first: Scorer, tmp_path: Path) -> None:
    shared = replace(first.evaluation, cache=tmp_path / "worker", shared=str(tmp_path / "shared"))
    result = run(Scorer(first.loaded, shared, first.teacher), tmp_path / "driver", TASK, carry=True)
    assert artifact_path(tmp_path / "shared", artifact(result)).read_bytes() == result.blob


def test_the_driver_s_own_pool_waits_for_room(scorer: Scorer, tmp_path: Path) -> None:
    cache = tmp_path / "driver"
    cache.write_text("in the way")
    pool = LocalPool(scorer, cache)
    pool.submit(TASK)
    pool.submit(replace(TASK, number=4))
    assert pool.collect(1.0) == []
    assert pool.collect(0.01) == []
    cache.unlink()
    (result,) = pool.collect(0.01)
    assert (result.number, result.blob) == (3, None)
    assert read_packed(cache, artifact(result)) is not None
    (other,) = pool.collect(1.0)
    assert other.number == 4
    assert pool.withdraw() == 0
    pool.close()


def test_a_pool_that_ends_waits_for_what_other_nodes_may_use(first: Scorer, tmp_path: Path) -> None:
    begun = threading.Event()

    class Slow(Shared):
        def _upload(self, name: str, blob: bytes) -> None:
            begun.wait(10)
            super()._upload(name, blob)

    scorer = Scorer(first.loaded, replace(first.evaluation, cache=tmp_path / "cache"), first.teacher)
    scorer.models.shared = Slow(str(tmp_path / "shared"))
    scorer.models.shared.put("layers/one", b"layer")
    threading.Timer(0.2, begun.set).start()
    LocalPool(scorer, tmp_path).close()
    assert (tmp_path / "shared" / "layers" / "one").read_bytes() == b"layer"
