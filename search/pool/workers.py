"""A worker: a Ray actor that loads the workload once, then scores; and what is needed to start one."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from compress.training.teacher import AskedOutputs
from objectives.evaluation import Evaluation, Teacher, teach
from objectives.score import Scorer
from objectives.threads import set_threads
from objectives.workload import LoadedWorkload, load_workload
from search.cache import default_cache
from search.config import Config
from search.pool.bringing import brought
from search.pool.connecting import home_node, joined_address
from search.tasks import Result, Task, run
from spaces.errors import StudyError


class _Worker:
    """A Ray actor: loads the workload once, then scores.

    Args:
        path: folders of the user's code, where the driver finds it; none on a cluster.
        entry: the workload, as this process can load it.
        name: the same, as it is written where it is compared.
        hashes: SHA-256 of model and data, as the driver has them.
        evaluation: settings of the study.
        teacher: a reference to the float model's outputs; empty to ask the model here.
        home: the driver's node; what is kept in the cache of another one comes with the results.
    """

    def __init__(
        self,
        path: Sequence[str],
        entry: str,
        name: str,
        hashes: tuple[str, str],
        evaluation: Evaluation,
        teacher: Sequence[Any],
        home: str | None,
    ) -> None:
        sys.path.extend(folder for folder in path if folder not in sys.path)
        set_threads(evaluation.threads)
        loaded = load_workload(entry, name)
        if (loaded.model_sha256, loaded.data_sha256) != hashes:
            what = "model is" if loaded.model_sha256 != hashes[0] else "data are"
            raise StudyError(
                f"workload {name}: its {what} not the same in every process: seed or save what shuffles or trains "
                "anew at each load"
            )
        self._node: str = ray.get_runtime_context().get_node_id()
        self._away = self._node != home
        if self._away:
            evaluation = replace(evaluation, cache=_cache_here(evaluation.cache))
        outputs: list[Teacher] = ray.get(list(teacher))
        self._scorer = Scorer(loaded, evaluation, outputs[0] if outputs else teach(loaded, evaluation))
        self._cache = evaluation.cache

    def ready(self) -> str:
        """Answers once the workload is loaded, with the id of the node that it is on."""
        return self._node

    def run(self, task: Task) -> Result:
        """Carry a task out."""
        return run(self._scorer, self._cache, task, carry=self._away)


def _cache_here(wished: Path) -> Path:
    """The driver's cache folder, where another node can have one like it, else that node's own."""
    try:
        wished.mkdir(parents=True, exist_ok=True)
    except OSError:
        return default_cache()
    return wished if os.access(wished, os.W_OK) else default_cache()


@dataclass(frozen=True)
class Setup:
    """What a worker is made of; it may be sent to any process of this Ray.

    Attributes:
        given: arguments of `_Worker`.
    """

    given: tuple[Any, ...]

    def worker(self) -> _Worker:
        """A worker in this process.

        Raises:
            StudyError, WorkloadError: the workload cannot be loaded here, or is not the same.
        """
        return _Worker(*self.given)


def setup(config: Config, loaded: LoadedWorkload, evaluation: Evaluation, teacher: Teacher) -> Setup:
    """What workers are made of.

    Args:
        config: of the search.
        loaded: the workload, as the driver has it.
        evaluation: settings of the study.
        teacher: the float model's outputs, shared through the object store.
    """
    # a teacher that is asked each time has nothing to share: each worker asks its own; and the process behind Ray's
    # client, through which all that is put goes, does not survive the unpickling of tensors
    home = home_node()
    own = home is None or isinstance(teacher.train, AskedOutputs)
    parts = [] if own else [ray.put(teacher)]
    hashes = (loaded.model_sha256, loaded.data_sha256)
    local = joined_address(config) is None
    path = [folder for folder in sys.path if folder] if local else []
    entry = config.workload_entry() if local else brought(config)[1]
    return Setup((path, entry, loaded.entry, hashes, evaluation, parts, home))


def starter(config: Config, loaded: LoadedWorkload, evaluation: Evaluation, teacher: Teacher) -> Callable[[], Any]:
    """What starts one worker, and gives its actor before that is ready; see `setup`."""
    made = setup(config, loaded, evaluation, teacher)
    # not max_restarts: Ray's own restart warns at every start, and what is queued fails all the same
    kind: Any = ray.remote(**_options(requested(config, evaluation.device)))(_Worker)
    return lambda: kind.remote(*made.given)


def requested(config: Config, device: str) -> dict[str, float]:
    """What Ray sets aside for one worker, by Ray's names, such as CPU.

    Args:
        config: of the search.
        device: that models are evaluated on, "cpu" or "cuda".
    """
    need = config.ray.resources
    gpus = need.gpus
    if gpus is None:
        gpus = 0.0
        if device == "cuda":
            gpus = 1.0 if joined_address(config) else min(1.0, torch.cuda.device_count() / max(1, config.workers))
    asked = {"CPU": need.cpus, "GPU": gpus, "memory": float(need.memory or 0), **need.custom}
    return {name: amount for name, amount in asked.items() if amount > 0}


def _options(asked: dict[str, float]) -> dict[str, Any]:
    """The same as options of an actor."""
    rest = {name: amount for name, amount in asked.items() if name not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {"num_cpus": asked["CPU"], "num_gpus": asked.get("GPU", 0), "resources": rest}
    return options | ({"memory": int(asked["memory"])} if "memory" in asked else {})
