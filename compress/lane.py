"""A thread that does one thing after another, and is given up where it hangs."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """Does work in a thread of its own, begun when it is first needed; the process ends without waiting for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: _Line | None = None

    @property
    def waiting(self) -> int:
        """The weight of what is not done, together."""
        line = self._line
        return 0 if line is None else line.weight

    @property
    def busy(self) -> float:
        """Seconds that the work now in hand has taken."""
        line = self._line
        since = None if line is None else line.since
        return 0.0 if since is None else time.monotonic() - since

    def post(self, work: Callable[[], T], weight: int = 0) -> "Future[T]":
        """Have something done after what was posted before."""
        with self._lock:
            if self._line is None:
                self._line = _Line()
            return self._line.post(work, weight)

    def call(self, work: Callable[[], T], seconds: float) -> T:
        """Have something done now.

        Raises:
            TimeoutError: it takes longer; what hangs is left to itself, and what comes next gets another thread.
            Exception: what the work raises.
        """
        future = self.post(work)
        try:
            return future.result(seconds)
        except TimeoutError:
            if not future.done():
                self.give_up()
            raise

    def give_up(self) -> None:
        """Leave the thread to itself, and do nothing of what was posted to it and not begun."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.given_up = True


class _Line:
    """One thread, with what was posted to it."""

    def __init__(self) -> None:
        self.weight, self.given_up = 0, False
        self.since: float | None = None  # by the monotonic clock
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any], int]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="slimfront-lane").start()

    def post(self, work: Callable[[], T], weight: int) -> "Future[T]":
        future: Future[T] = Future()
        with self._lock:
            self.weight += weight
        self._jobs.put((future, work, weight))
        return future

    def _run(self) -> None:
        while not self.given_up:
            self._do(*self._jobs.get())

    def _do(self, future: "Future[Any]", work: Callable[[], Any], weight: int) -> None:
        self.since = time.monotonic()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        self.since = None
        with self._lock:
            self.weight -= weight
