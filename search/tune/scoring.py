"""What Ray Tune runs: a trainable that scores as our workers do, and the desk where tasks and results lie meanwhile."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import uuid4

import ray
from ray.tune import PlacementGroupFactory, Trainable
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.pool.connecting import home_node
from search.pool.workers import Setup
from search.tasks import Result, ScoreTask
from spaces.errors import RetryableError, SlimfrontError


@dataclass(frozen=True)
class Answer:
    """What came of a Tune trial.

    Attributes:
        result: of its task, if it was carried out.
        refused: why it could not be, just then.
        broken: why no task can be carried out by this worker.
        node: where the task was taken to; empty if no worker took it.
    """

    result: Result | None = None
    refused: str = ""
    broken: str = ""
    node: str = ""


class _Desk:
    """A Ray actor: tasks and results, which hold arrays, pass over it and not through Tune's configs and files."""

    def __init__(self, made: Setup) -> None:
        self._made = made
        self._tasks: dict[int, ScoreTask] = {}
        self._nodes: dict[int, str] = {}
        self._answers: dict[int, Answer] = {}
        self._actors: dict[int, Any] = {}
        self._open = True

    def made(self) -> Setup:
        """What workers are made of."""
        return self._made

    def put(self, task: ScoreTask) -> None:
        self._tasks[task.number] = task

    def take(self, number: int, node: str, actor: Any) -> ScoreTask | None:
        """The task, for a worker that begins it; None where nobody shall any more."""
        if not self._open or number not in self._tasks:
            return None
        self._nodes[number], self._actors[number] = node, actor
        return self._tasks[number]

    def give(self, number: int, answer: Answer) -> None:
        self._answers[number] = answer
        self._actors.pop(number, None)

    def collect(self, number: int) -> Answer:
        """What is known of a trial that ended; the desk forgets its task."""
        self._tasks.pop(number, None)
        self._actors.pop(number, None)
        return self._answers.pop(number, Answer(node=self._nodes.pop(number, "")))

    def close(self) -> int:
        """Hand out no more tasks; how many are being carried out."""
        self._open = False
        return len(self._actors)

    def busy(self) -> list[Any]:
        """The actors that carry out a task."""
        return list(self._actors.values())


def open_desk(made: Setup) -> tuple[str, Any]:
    """Start a desk on this node; its name, and its actor."""
    name, home = f"slimfront-desk-{uuid4().hex}", home_node()
    where = None if home is None else NodeAffinitySchedulingStrategy(home, soft=False)
    kind: Any = ray.remote(num_cpus=0)(_Desk)
    desk = kind.options(name=name, scheduling_strategy=where).remote(made)
    ray.get(desk.busy.remote())
    return name, desk


class ScoringTrainable(Trainable):
    """Scores one candidate in one iteration: that of the trial whose number its config holds.

    Attributes:
        desk: the name of the desk's actor.
        asked: what is set aside for each, by Ray's names.
    """

    desk: ClassVar[str] = ""
    asked: ClassVar[Mapping[str, float]] = {}

    def setup(self, config: dict[str, Any]) -> None:
        """Load the workload; what goes wrong is said when there is a task to be answered."""
        self._go_home()
        self._desk: Any = ray.get_actor(self.desk)
        self._node: str = ray.get_runtime_context().get_node_id()
        self._broken = ""
        try:
            made: Any = ray.get(self._desk.made.remote())
            self._worker: Any = made.worker()
        except SlimfrontError as error:
            self._broken = str(error)

    def step(self) -> dict[str, Any]:
        """Carry the task out, and report what Tune's loggers and schedulers may want to know."""
        number = int(self.config["trial"])
        actor = ray.get_runtime_context().current_actor
        task: ScoreTask | None = ray.get(self._desk.take.remote(number, self._node, actor))
        if task is None:
            return {"done": True, **_metrics(None)}
        answer = self._answer(task)
        ray.get(self._desk.give.remote(number, answer))
        return {"done": True, **_metrics(answer.result)}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial: nothing depends on the last one."""
        self._go_home()
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: a candidate is scored in one iteration."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: see `save_checkpoint`."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """What `ray.resources` of the search's config asks for."""
        return PlacementGroupFactory([dict(cls.asked)])

    def _answer(self, task: ScoreTask) -> Answer:
        if self._broken:
            return Answer(broken=self._broken)
        try:
            return Answer(self._worker.run(task), node=self._node)
        except RetryableError as error:
            return Answer(refused=str(error), node=self._node)

    def _go_home(self) -> None:
        """Leave the folder that Tune changes into: paths in a workload start where those of our workers do."""
        os.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", "."))


def _metrics(result: Result | None) -> dict[str, Any]:
    score = None if result is None else result.score
    if score is None:
        return {"accuracy": math.nan, "bytes": math.nan, "macs": math.nan, "rung": -1}
    return {"accuracy": score.accuracy, "bytes": score.bytes, "macs": score.macs, "rung": score.rung}


def trainable(desk_name: str, resources: Mapping[str, float]) -> type[ScoringTrainable]:
    """The trainable of one search."""
    return type("slimfront", (ScoringTrainable,), {"desk": desk_name, "asked": dict(resources)})
