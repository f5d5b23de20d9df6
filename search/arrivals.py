"""Results on their way to the driver: the packed files that come along are put into its cache folder."""

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.packed import keep_packed
from search.patience import PATIENCE_SECONDS
from search.progress import say
from spaces.errors import RetryableError, StudyError

if TYPE_CHECKING:
    from search.tasks import Result


class Arrivals:
    """What came back, on its way to the driver: packed files that came along are kept in the driver's cache first.

    A file that cannot be written for want of room makes its result wait, and the search with it, not fail.

    Args:
        cache: the driver's folder.
        say: takes a line for people.
        patience: seconds that a result waits at most.
    """

    def __init__(self, cache: Path, say: Callable[[str], None] = say, patience: float = PATIENCE_SECONDS) -> None:
        self._cache, self._say, self._patience = cache, say, patience
        self._waiting: list[Result] = []
        self._since: float | None = None  # by the monotonic clock

    @property
    def waiting(self) -> int:
        """How many results wait for room; call `through` again, also without new ones, to have them."""
        return len(self._waiting)

    def through(self, results: "Iterable[Result]" = ()) -> "list[Result]":
        """What may be handed out now, in the order in which it came; none of it has a blob.

        Raises:
            StudyError: the folder could not be written for too long.
        """
        self._waiting += results
        ready: list[Result] = []
        while self._waiting:
            try:
                ready.append(self._kept(self._waiting[0]))
            except RetryableError as error:
                self._wait(error)
                return ready
            self._waiting.pop(0)
            if self._since is not None:
                self._say("the cache folder can be written again: the search goes on")
                self._since = None
        return ready

    def _kept(self, result: "Result") -> "Result":
        """A result whose packed file is in the cache.

        Raises:
            RetryableError: it cannot be written.
        """
        if result.blob is None or result.score is None or result.score.artifact is None:
            return result
        if hashlib.sha256(result.blob).hexdigest() == result.score.artifact:  # else it is made again when it is missed
            keep_packed(self._cache, result.score.artifact, result.blob)
        return replace(result, blob=None)

    def _wait(self, error: RetryableError) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._say(f"{error}; the search waits for up to {self._patience:g} s: make room")
        if now - self._since > self._patience:
            raise StudyError(
                f"{error}; it was waited for {self._patience:g} s: make room, or name another folder "
                "(cache.folder), and launch again: nothing that was told is lost"
            ) from error
