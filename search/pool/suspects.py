"""Tasks whose workers Ray ended for want of memory: each is tried again alone, as another one may have taken it."""

from collections import deque
from collections.abc import Callable

from search.tasks import Task


class Suspects:
    """Ray ends those that began last, and as many as make room: only what runs alone can be blamed.

    Args:
        say: takes a line for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, False
        self._waiting: deque[Task] = deque()
        self._alone: int | None = None  # the number of the one that runs

    def __bool__(self) -> bool:
        """Whether nothing else may begin."""
        return bool(self._waiting) or self._alone is not None

    @property
    def next(self) -> Task | None:
        """Who may begin once nothing else runs; it stays until `begun`."""
        return self._waiting[0] if self._waiting and self._alone is None else None

    def begun(self) -> None:
        """The next one runs."""
        self._alone = self._waiting.popleft().number

    def add(self, task: Task) -> None:
        """Have a task tried again alone."""
        if not self._said:
            self._said = True
            self._say(
                "Ray ended a worker, as its node had too little memory left: what ran on it is tried again alone, "
                "while others wait; take fewer workers, or set ray.resources.memory"
            )
        self._waiting.append(task)

    def ended(self, number: int) -> bool:
        """A task does not run any more; whether it ran alone."""
        if number != self._alone:
            return False
        self._alone = None
        return True

    def clear(self) -> None:
        """Try none again."""
        self._waiting.clear()
