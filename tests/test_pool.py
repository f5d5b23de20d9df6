"""Pools give the same results in this process and on Ray workers, and say what became of every task."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from compress.files import artifact_path
from objectives.evaluation import Evaluation, teach
from objectives.judging import FixedJudge, Judge
from objectives.score import Scorer
from objectives.workload import LoadedWorkload, load_workload
from search.config import Config
from search.pool import RayPool, start_ray
from search.tasks import PAUSES, LocalPool, Pool, Result, ScoreTask, Task, TestTask
from spaces.errors import RetryableError, StudyError
from spaces.policy import Choice, Policy, Unstructured
from tests import processes
from tests.scoring import Hungry, evaluation, policy, scorer_of

NOBODY, EVERYBODY = FixedJudge(last=0), FixedJudge()  # goes on
BAD = Policy(sites=dict.fromkeys(("first", "second", "head"), Choice(prune=Unstructured(ratio=0.97))))
TIMEOUT = 60.0
HUNGRY = "failed 3 times, the last time: out of memory: so much"
KILLED = (
    "it killed its worker 3 times, the last time: its process crashed or was killed, for example for want of memory"
)


def task(number: int, judge: Judge = EVERYBODY) -> ScoreTask:
    return ScoreTask(number, policy(number), judge)


def plain(result: Result) -> Result:
    """A result without times and places."""
    score = result.score
    if score is not None:
        score = replace(score, rungs=tuple(replace(rung, seconds=0.0) for rung in score.rungs))
    return replace(result, score=score, seconds=0.0, host="", machine="")


def without_file(result: Result) -> Result:
    """A result to be compared with that of another workload's name, which is written into the file."""
    made = plain(result)
    return replace(made, score=replace(made.score, artifact=None) if made.score else None)


def drain(pool: Pool, count: int) -> list[Result]:
    """The results of `count` tasks, by number."""
    results: list[Result] = []
    end = time.monotonic() + TIMEOUT
    while len(results) < count and time.monotonic() < end:
        results += pool.collect(1.0)
    assert len(results) == count, f"{len(results)} of {count} results came in {TIMEOUT} s"
    return sorted((plain(result) for result in results), key=lambda result: result.number)


def prepared(entry: str, folder: Path) -> tuple[LoadedWorkload, Evaluation, Scorer]:
    loaded, settings = load_workload(f"tests.tiny:{entry}"), evaluation(folder)
    return loaded, settings, scorer_of(loaded, settings)


def workers(entry: str, folder: Path, count: int) -> RayPool:
    loaded, settings, _ = prepared(entry, folder)
    config = Config(study="any", workload=loaded.entry, workers=count)
    return RayPool(config, loaded, settings, teach(loaded, settings))


def waits_for_room(pool: Pool, file: Path) -> None:
    """A result comes once its cache folder, where a file is, can be made."""
    try:
        pool.submit(task(1, NOBODY))
        assert pool.collect(3.0) == []
        assert pool.withdraw() == 1
        file.unlink()
        (result,) = drain(pool, 1)
    finally:
        pool.close()
    assert result.score is not None
    assert result.score.artifact is not None
    assert artifact_path(file, result.score.artifact).is_file()


@pytest.fixture(scope="module")
def ray_pool(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayPool, Path]]:
    """Two workers over the workload whose metric refuses bad models."""
    folder = tmp_path_factory.mktemp("workers")
    pool = workers("picky", folder, 2)
    pool.wait_until_ready(2)
    yield pool, folder
    pool.close()


@pytest.fixture
def local_pool(tmp_path: Path) -> tuple[LocalPool, Path]:
    return LocalPool(prepared("picky", tmp_path)[2], tmp_path), tmp_path


class PoolContract:
    """What every pool must keep; the fixture gives one over the workload `picky`, and its cache."""

    @pytest.fixture
    def pool(self) -> tuple[Pool, Path]:
        raise NotImplementedError

    def test_it_gives_the_scores_that_a_scorer_gives(self, pool: tuple[Pool, Path], tmp_path: Path) -> None:
        _, _, scorer = prepared("picky", tmp_path / "own")
        tasks = [task(number) for number in range(8)]
        for one in tasks:
            pool[0].submit(one)
        results = drain(pool[0], 8)
        assert [result.number for result in results] == list(range(8))
        for one, result in zip(tasks, results, strict=True):
            if result.score is None:
                assert result.error is not None
                assert "ArithmeticError: only" in result.error
                continue
            expected = scorer.score(one.policy, one.judge)
            assert result == plain(Result(one.number, score=expected))
            assert result.score.artifact is not None
            assert artifact_path(pool[1], result.score.artifact).stat().st_size == result.score.bytes
        assert sum(result.score is not None for result in results) >= 3

    def test_judges_travel_with_the_task(self, pool: tuple[Pool, Path]) -> None:
        pool[0].submit(task(2, NOBODY))
        pool[0].submit(task(2, EVERYBODY))
        found = sorted(result.score.rung for result in drain(pool[0], 2) if result.score)
        assert found == [0, 2]

    def test_a_candidate_that_fails_is_a_result(self, pool: tuple[Pool, Path]) -> None:
        pool[0].submit(ScoreTask(7, BAD, EVERYBODY))
        (result,) = drain(pool[0], 1)
        assert (result.number, result.score) == (7, None)
        assert result.error is not None
        assert result.error.startswith("the metric failed on the validation split: ArithmeticError: only 0.")

    def test_a_kept_file_is_scored_on_the_test_split(self, pool: tuple[Pool, Path], tmp_path: Path) -> None:
        _, _, scorer = prepared("picky", tmp_path)
        pool[0].submit(task(2))
        (scored,) = drain(pool[0], 1)
        assert scored.score
        assert scored.score.artifact
        blob = artifact_path(pool[1], scored.score.artifact).read_bytes()
        pool[0].submit(TestTask(2, scored.score.artifact, blob))
        pool[0].submit(TestTask(3, "0" * 64, b"damaged"))
        tested, damaged = drain(pool[0], 2)
        expected = scorer.score_file(artifact_path(pool[1], scored.score.artifact), "test")
        assert tested == Result(2, test=expected)
        assert tested.test is not None
        assert tested.test.outcomes is not None
        assert tested.test.outcomes.mean() == pytest.approx(expected.value)
        assert damaged.error is not None

    def test_results_say_how_long_they_took_and_where(self, pool: tuple[Pool, Path]) -> None:
        pool[0].submit(task(2))
        (result,) = pool[0].collect(TIMEOUT)
        assert 0 < result.seconds < 30
        assert result.host == os.uname().nodename

    def test_what_was_not_begun_can_be_withdrawn(self, pool: tuple[Pool, Path]) -> None:
        for number in range(12):
            pool[0].submit(task(number, NOBODY))
        left = pool[0].withdraw()
        assert 0 <= left <= 4  # two workers with two each
        assert len(drain(pool[0], left)) == left
        assert pool[0].collect(0.01) == []

    def test_an_empty_pool_gives_nothing_at_once(self, pool: tuple[Pool, Path]) -> None:
        assert pool[0].collect(TIMEOUT) == []


class TestLocalPool(PoolContract):
    @pytest.fixture
    def pool(self, local_pool: tuple[LocalPool, Path]) -> tuple[Pool, Path]:
        return local_pool

    def test_what_can_be_tried_again_is_tried_three_times(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.tasks.PAUSES", (0.1, 0.3))
        begun = time.monotonic()
        pool = LocalPool(prepared("workload", tmp_path)[2], tmp_path)
        pool.submit(task(1, Hungry()))
        (result,) = drain(pool, 1)
        assert result.error == HUNGRY
        assert time.monotonic() - begun > 0.4

    def test_a_cache_that_cannot_be_written_makes_results_wait(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        waits_for_room(LocalPool(prepared("workload", tmp_path / "file")[2], tmp_path / "file"), tmp_path / "file")


class TestRayPool(PoolContract):
    @pytest.fixture
    def pool(self, ray_pool: tuple[RayPool, Path]) -> tuple[Pool, Path]:
        return ray_pool

    def test_a_ray_with_too_few_cpus_is_refused(self, local_ray: None, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match="this process's Ray has 6 CPUs, too few for 7 workers: take fewer"):
            workers("workload", tmp_path, 7)
        assert ray.is_initialized()
        assert start_ray(Config(study="any", workload="any:any")) is False

    @pytest.mark.slow
    def test_what_can_be_tried_again_is_tried_three_times(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.pool.retrying.PAUSES", (0.1, 0.3))
        pool = workers("workload", tmp_path, 1)
        try:
            pool.submit(task(1, Hungry()))
            (result,) = drain(pool, 1)
        finally:
            pool.close()
        assert result.error == HUNGRY

    @pytest.mark.slow
    def test_a_cache_that_cannot_be_written_makes_results_wait(self, local_ray: None, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        pool = workers("workload", tmp_path / "file", 1)
        pool.wait_until_ready()
        waits_for_room(pool, tmp_path / "file")

    @pytest.mark.slow
    def test_a_policy_that_kills_its_workers_fails_alone(self, local_ray: None, tmp_path: Path) -> None:
        pool = workers("deadly", tmp_path, 1)
        try:
            pool.submit(ScoreTask(0, BAD, NOBODY))
            for number in (2, 4):
                pool.submit(task(number, NOBODY))
            results = drain(pool, 3)
        finally:
            pool.close()
        assert results[0].error == KILLED
        scorer = prepared("workload", tmp_path / "own")[2]
        expected = [scorer.score(policy(number), NOBODY) for number in (2, 4)]
        assert [without_file(result) for result in results[1:]] == [
            without_file(Result(number, score=score)) for number, score in zip((2, 4), expected, strict=True)
        ]

    @pytest.mark.slow
    def test_a_workload_that_differs_between_processes_is_refused(self, local_ray: None, tmp_path: Path) -> None:
        file = tmp_path / "shuffled.py"
        file.write_text(
            "import os\nfrom tests import tiny\n"
            "def workload():\n  made = tiny.workload()\n  made.train[0][0, 0] = os.getpid()\n  return made\n"
        )
        loaded, settings = load_workload(f"{file}:workload"), evaluation(tmp_path)
        config = Config(study="any", workload=f"{file}:workload", workers=1)
        pool = RayPool(config, loaded, settings, teach(loaded, settings))
        try:
            with pytest.raises(
                StudyError, match=r"a worker cannot start: .*its data are not the same in every process"
            ):
                pool.wait_until_ready()
        finally:
            pool.close()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_tasks_are_done(local_ray: None, tmp_path: Path) -> None:
    others = processes.below(os.getpid(), "ray::_Worker")
    pool = workers("slow", tmp_path, 2)
    scorer = prepared("workload", tmp_path / "own")[2]
    try:
        pool.wait_until_ready(2)
        for number in range(8):
            pool.submit(task(number))
        ours = [pid for pid in processes.below(os.getpid(), "ray::_Worker") if pid not in others]
        assert len(ours) == 2
        os.kill(ours[0], signal.SIGKILL)
        results = drain(pool, 8)
    finally:
        pool.close()
    expected = [scorer.score(policy(number), EVERYBODY) for number in range(8)]
    assert [without_file(result) for result in results] == [
        without_file(Result(number, score=score)) for number, score in enumerate(expected)
    ]


def shams(folder: Path, kinds: Sequence[str]) -> RayPool:
    """A pool of quick workers of these kinds, and then only good ones.

    Those called "away" never find their data, "sick" not that of task 0, "deadly" ones die of it, "slow" ones take
    seconds, and "late" ones do so to get ready.
    """

    class Sham:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def ready(self) -> str:
            time.sleep(5 * (self.kind == "late"))
            return str(ray.get_runtime_context().get_node_id())

        def run(self, task: Task) -> Result:
            if self.kind == "away" or (self.kind == "sick" and task.number == 0):
                raise RetryableError("the disk is away")
            if self.kind == "deadly" and task.number == 0:
                os._exit(7)
            time.sleep(5 if self.kind == "slow" else 0.05)
            return Result(task.number)

    left, kind = list(kinds), ray.remote(num_cpus=0)(Sham)
    loaded, settings, scorer = prepared("workload", folder)
    config = Config(study="any", workload=loaded.entry, workers=len(kinds))

    def hire() -> Any:
        return kind.remote(left.pop(0) if left else kinds[-1])

    return RayPool(config, loaded, settings, scorer.teacher, worker=hire)


class TestTriedAgain:
    def test_by_another_worker_if_there_is_one(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.pool.retrying.PAUSES", (0.0, 0.0))
        pool = shams(tmp_path, ["away", "away", "good"])
        try:
            assert pool.wait_until_ready(3, timeout=TIMEOUT)
            for number in range(12):
                pool.submit(task(number))
            assert [result.error for result in drain(pool, 12)] == [None] * 12
        finally:
            pool.close()

    def test_after_pauses_in_which_others_have_their_turn(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.pool.retrying.PAUSES", (0.3, 1.2))
        pool = shams(tmp_path, ["sick"])
        try:
            assert pool.wait_until_ready(1, timeout=TIMEOUT)
            begun, came = time.monotonic(), list[Result]()
            for number in range(6):
                pool.submit(task(number))
            while len(came) < 6 and time.monotonic() < begun + TIMEOUT:
                came += pool.collect(0.5)
        finally:
            pool.close()
        assert [result.number for result in came] == [1, 2, 3, 4, 5, 0]
        assert came[-1].error == "failed 3 times, the last time: the disk is away"
        assert time.monotonic() - begun > 1.5

    def test_a_disk_that_is_away_for_twenty_seconds_fails_nothing(self) -> None:
        assert sum(PAUSES) > 20

    def test_what_waits_for_its_turn_can_be_withdrawn(self, local_ray: None, tmp_path: Path) -> None:
        pool = shams(tmp_path, ["sick"])
        try:
            assert pool.wait_until_ready(1, timeout=TIMEOUT)
            pool.submit(task(0))
            assert pool.collect(0.5) == []
            assert pool.withdraw() == 0
            assert pool.collect(TIMEOUT) == []
        finally:
            pool.close()


class TestRayItself:
    def test_a_cluster_lost_at_a_task_s_last_death_does_not_lose_the_task(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost() -> set[str]:
            raise ConnectionError("gone")

        monkeypatch.setattr("search.pool.pool.alive_nodes", lost)
        pool = shams(tmp_path, ["deadly"])
        try:
            pool.submit(task(0))
            with pytest.raises(StudyError, match="the connection to Ray is lost: gone"):
                drain(pool, 1)
            assert pool.withdraw() == 1
        finally:
            pool.close()

    @pytest.mark.parametrize("kind", ["slow", "late"])
    def test_nothing_takes_longer_than_it_may(self, kind: str, local_ray: None, tmp_path: Path) -> None:
        pool = shams(tmp_path, [kind])
        try:
            for timeout in (0.0, 0.4):
                begun = time.monotonic()
                pool.wait_until_ready(2, timeout)
                pool.submit(task(1))
                assert pool.collect(timeout) == []
                assert time.monotonic() - begun < 2 * timeout + 3  # who waits for the worker takes 5 s
        finally:
            pool.close()
