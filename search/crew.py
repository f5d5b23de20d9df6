"""Having layers compressed before the first trial: by the driver while workers start, then by the workers."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from compress.layer import Cost
from objectives.score import Scorer
from search.candidates import Compressing
from search.config import Config
from search.pool import RayPool
from search.tasks import LayerTask
from spaces.errors import CandidateError

WAIT_SECONDS = 5.0


class Crew:
    """The workers of a search, from before they are there.

    Args:
        config: the search.
        ray: Ray's start, which another thread looks after: whether it is ours to stop.
    """

    def __init__(self, config: Config, ray: "Future[bool]") -> None:
        self._config, self._ray = config, ray
        self._pool: RayPool | None = None
        self._scorer: Scorer | None = None

    def pool(self, scorer: Scorer) -> RayPool:
        """The workers; waits for Ray, not for them."""
        if self._pool is None:
            joined = self._ray.result()
            self._pool = RayPool(self._config, scorer.loaded, scorer.evaluation, scorer.teacher, joined=joined)
        return self._pool

    def build(self, scorer: Scorer, tasks: Sequence[LayerTask]) -> list[list[Cost]]:
        """Have layers compressed and priced, each task's in the order of its choices.

        Raises:
            CandidateError: a choice does not fit its site, or a layer failed too often.
            StudyError: Ray or a worker does not start.
        """
        self._scorer = scorer
        left, costs = deque(tasks), dict[int, list[Cost]]()
        progress = Compressing(len(tasks))
        while left and not (self._ray.done() and self.pool(scorer).is_ready()):
            task = left.popleft()
            costs[task.number] = task.insist(scorer)
            progress.show(len(costs))
        if left:
            pool = self.pool(scorer)
            for task in left:
                pool.submit(task)
            while len(costs) < len(tasks):
                for result in pool.collect(WAIT_SECONDS):
                    if result.costs is None:
                        raise CandidateError(result.error or "no reason was given")
                    costs[result.number] = list(result.costs)
                progress.show(len(costs))
        return [costs[task.number] for task in tasks]

    def close(self) -> None:
        """End the workers; `pool` hires others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._scorer is not None:
            self._scorer.close()
