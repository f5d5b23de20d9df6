"""Tasks that a worker could not carry out just then: tried again after a pause, by another worker if there is one."""

import math
import time
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count

from search.tasks import PAUSES, Task, in_vain


class Retries:
    """What waits to be tried again; each step takes O(log tasks)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Task]] = []  # when each is due, by the monotonic clock
        self._seats: dict[int, list[int]] = {}  # by task: where it failed
        self._order = count()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._heap)

    def add(self, task: Task, seat: int, why: str) -> str | None:
        """Have a task tried again later; why it is given up, if it is.

        Args:
            task: which.
            seat: the worker's that could not.
            why: it could not.
        """
        seats = self._seats.setdefault(task.number, [])
        seats.append(seat)
        if len(seats) > len(PAUSES):
            return in_vain(why)
        heappush(self._heap, (time.monotonic() + PAUSES[len(seats) - 1], next(self._order), task))
        return None

    @property
    def pause(self) -> float:
        """Seconds until the first one is due; infinite where none is, or one has been for a while."""
        left = self._heap[0][0] - time.monotonic() if self._heap else 0.0
        return left if left > 0 else math.inf

    def due(self) -> Task | None:
        """The first one, if its pause is over; it stays until `pop`."""
        return self._heap[0][2] if self._heap and self._heap[0][0] <= time.monotonic() else None

    def pop(self) -> None:
        """The first one is handed out."""
        heappop(self._heap)

    def seats(self, task: Task) -> Sequence[int]:
        """Where a task failed."""
        return self._seats.get(task.number, ())

    def forget(self, number: int) -> None:
        """A task has its result."""
        self._seats.pop(number, None)

    def clear(self) -> None:
        """Try none again."""
        self._heap.clear()
