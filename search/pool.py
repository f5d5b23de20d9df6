"""Scoring on Ray: workers that each load the workload once; the only place that imports ray."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from compress.training.teacher import AskedOutputs
from objectives.evaluation import Evaluation, Teacher, teach
from objectives.score import Scorer
from objectives.threads import set_threads
from objectives.workload import LoadedWorkload, load_workload
from search.tasks import RETRIES, Result, Task, run
from spaces.errors import RetryableError, StudyError

IN_FLIGHT = 2  # calls waiting at a worker: it starts on the second while the driver handles the first
OBJECT_STORE_BYTES = 512 * 2**20


class _Worker:
    """A Ray actor: loads the workload once, then scores."""

    def __init__(
        self,
        path: Sequence[str],
        entry: str,
        name: str,
        hashes: tuple[str, str],
        evaluation: Evaluation,
        teacher: Sequence[Any],
    ) -> None:
        sys.path.extend(folder for folder in path if folder not in sys.path)  # user code, where the driver finds it
        set_threads(evaluation.threads)
        loaded = load_workload(entry, name)
        if (loaded.model_sha256, loaded.data_sha256) != hashes:
            what = "model is" if loaded.model_sha256 != hashes[0] else "data are"
            raise StudyError(
                f"workload {name}: its {what} not the same in every process: seed or save what shuffles or trains "
                "anew at each load"
            )
        outputs: list[Teacher] = ray.get(list(teacher))
        self._scorer = Scorer(loaded, evaluation, outputs[0] if outputs else teach(loaded, evaluation))
        self._cache = evaluation.cache

    def ready(self) -> bool:
        """Answers once the workload is loaded."""
        return True

    def run(self, task: Task) -> Result:
        """Carry a task out."""
        return run(self._scorer, self._cache, task)


def start_ray(workers: int) -> bool:
    """Start a quiet local Ray with a bounded object store, unless this process has one already.

    Returns:
        Whether it was started, and so is ours to stop.

    Raises:
        StudyError: Ray does not start.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return False
    try:
        ray.init(
            address="local",
            num_cpus=max(1, workers),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=True,
        )
    except Exception as error:
        raise StudyError(
            f"Ray does not start: {error}; `slimfront doctor` looks closer, --workers 0 does without"
        ) from error
    return True


def stop_ray() -> None:
    """Stop this process's Ray: for whom `start_ray` said that it is theirs."""
    if ray.is_initialized():
        ray.shutdown()


def _answer() -> int:
    """A task that says where it ran."""
    return os.getpid()


def ray_answers() -> str:
    """Start Ray, run one task, stop it again; what it answered, in words.

    Raises:
        StudyError: it does not start or answer.
    """
    started = time.perf_counter()
    ours = start_ray(1)
    try:
        answer = ray.get(ray.remote(_answer).remote(), timeout=60)
    except RayError as error:
        raise StudyError(f"Ray starts, but does not run a task: {error}") from error
    finally:
        if ours:
            stop_ray()
    return (
        f"Ray {ray.__version__} started and ran a task in process {answer} after {time.perf_counter() - started:.1f} s"
    )


class RayPool:
    """Scores on Ray workers, one actor each; a lost worker is started again and its tasks are tried elsewhere.

    Args:
        loaded: the workload, as the driver has it.
        entry: how a worker imports it.
        evaluation: settings of the study.
        teacher: the float model's outputs, shared through the object store.
        workers: how many; at least 1.
    """

    def __init__(
        self, loaded: LoadedWorkload, entry: str, evaluation: Evaluation, teacher: Teacher, workers: int
    ) -> None:
        self._ours = start_ray(workers)
        cpus: float = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
        if cpus < workers:
            raise StudyError(f"this process's Ray has {cpus:g} CPUs, too few for {workers} workers: take fewer")
        # a teacher that is asked each time has nothing to share: each worker asks its own
        parts = [] if isinstance(teacher.train, AskedOutputs) else [ray.put(teacher)]
        hashes = (loaded.model_sha256, loaded.data_sha256)
        gpus = min(1.0, torch.cuda.device_count() / workers) if evaluation.device == "cuda" else 0
        path = [folder for folder in sys.path if folder]
        # not max_restarts: Ray's own restart warns at every start, and what is queued fails all the same
        kind: Any = ray.remote(num_cpus=1, num_gpus=gpus)(_Worker)
        self._start: Callable[[], Any] = lambda: kind.remote(path, entry, loaded.entry, hashes, evaluation, parts)
        self._actors = [self._start() for _ in range(workers)]
        self._load = [0] * workers
        self._queue: deque[Task] = deque()
        self._running: dict[Any, tuple[Task, int]] = {}  # in the order in which they were handed out
        self._tries: dict[int, int] = {}
        self._readying: list[Any] = []

    def is_ready(self) -> bool:
        """Whether a worker has loaded the workload; does not wait.

        Raises:
            StudyError: one could not.
        """
        if not self._readying:
            self._readying = [one.ready.remote() for one in self._actors]
        ready, _ = ray.wait(self._readying, timeout=0)
        try:
            ray.get(ready)
        except RayActorError as error:
            raise StudyError(f"a worker cannot start: {_cause(error)}") from error
        return bool(ready)

    def wait_until_ready(self) -> None:
        """Wait for all workers to have loaded the workload.

        Raises:
            StudyError: one could not.
        """
        try:
            ray.get([one.ready.remote() for one in self._actors])
        except RayActorError as error:
            raise StudyError(f"a worker cannot start: {_cause(error)}") from error

    def submit(self, task: Task) -> None:
        """Queue a task, and hand it out if a worker has room."""
        self._queue.append(task)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._queue:
            worker = min(range(len(self._actors)), key=lambda i: (self._load[i], i))
            if self._load[worker] >= IN_FLIGHT:
                return
            task = self._queue.popleft()
            self._load[worker] += 1
            self._running[self._actors[worker].run.remote(task)] = (task, worker)

    def collect(self, timeout: float) -> list[Result]:
        """Results that are ready; waits up to `timeout` seconds for the first one."""
        if not self._running:
            return []
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        results = [result for reference in ready for result in self._results(reference)]
        self._dispatch()
        return results

    def _results(self, reference: Any) -> list[Result]:
        """What came of a call, if it is not tried again; where its worker was lost, of all calls of that worker."""
        task, worker = self._running[reference]
        try:
            result: Result = ray.get(reference)
        except RayTaskError as error:
            if not isinstance(error.cause, RetryableError):
                raise StudyError(f"a worker failed in a way it should not, please report this: {error}") from error
            self._forget(reference)
            return self._again(task, str(error.cause))
        except (RayActorError, OutOfMemoryError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise StudyError(f"a worker cannot start: {_cause(error)}") from error
            return self._lost(worker, f"its worker was lost: {_cause(error)}")
        self._forget(reference)
        self._tries.pop(task.number, None)
        return [result]

    def _forget(self, reference: Any) -> Task:
        task, worker = self._running.pop(reference)
        self._load[worker] -= 1
        return task

    def _lost(self, worker: int, reason: str) -> list[Result]:
        """Start a lost worker again; the first of its calls without a result ran, those behind it never began."""
        ray.kill(self._actors[worker])  # it may only have been out of reach
        self._actors[worker] = self._start()
        results, failed = [], []
        for reference in [reference for reference, (_, at) in self._running.items() if at == worker]:
            task = self._forget(reference)
            try:
                results.append(ray.get(reference))
            except RayError:
                failed.append(task)
        self._queue.extendleft(reversed(failed[1:]))
        return results + (self._again(failed[0], reason) if failed else [])

    def _again(self, task: Task, reason: str) -> list[Result]:
        """Queue a task that a worker had begun, unless that was its last try."""
        self._tries[task.number] = self._tries.get(task.number, 0) + 1
        if self._tries[task.number] > RETRIES:
            return [Result(task.number, error=f"failed {RETRIES + 1} times, the last time: {reason}")]
        self._queue.appendleft(task)
        return []

    def withdraw(self) -> int:
        """Take back what no worker has been handed; how many results are still to come."""
        self._queue.clear()
        return len(self._running)

    def close(self) -> None:
        """End the workers, and the Ray that was started for them."""
        for one in self._actors:
            ray.kill(one)
        if self._ours:
            stop_ray()


def _cause(error: Exception) -> str:
    """The last line of what Ray says: the error itself, not its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
