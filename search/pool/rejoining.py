"""Joining a lost cluster again, beside the driver's loop, which goes on."""

import contextlib
import threading
import time
from collections.abc import Callable

from search.patience import PATIENCE_SECONDS
from search.pool.staff import Staff
from spaces.errors import StudyError

PAUSE_SECONDS = 1.0  # between two tries
LEAVE_SECONDS = 5.0  # that a try which is under way is waited for at the end


class Rejoining:
    """Joins a cluster again in a thread of its own, until it works or took too long.

    Args:
        leave: leaves what is left of the lost one.
        join: joins it; a StudyError or ConnectionError means that it is still lost.
        hire: starts workers on it.
    """

    def __init__(self, leave: Callable[[], None], join: Callable[[], object], hire: Callable[[], Staff]) -> None:
        self._leave, self._join, self._hire = leave, join, hire
        self._given_up, self._ended = threading.Event(), threading.Event()
        self._staff: Staff | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def staff(self, timeout: float) -> Staff | None:
        """The workers on the cluster that was joined again; None while it is not.

        Args:
            timeout: seconds to wait for that.

        Raises:
            StudyError: it stays lost.
        """
        if not self._ended.wait(timeout):
            return None
        if self._error is not None:
            if isinstance(self._error, StudyError | ConnectionError):
                what = f"the Ray cluster was lost, and not found for {PATIENCE_SECONDS:g} s: {self._error}"
                raise StudyError(what) from self._error
            raise self._error
        return self._staff

    def give_up(self) -> None:
        """Try no more; waits a little for a try that is under way."""
        self._given_up.set()
        self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        try:
            while not self._given_up.is_set() and not self._tried(end):
                self._given_up.wait(PAUSE_SECONDS)
        except BaseException as error:  # the driver's thread raises it
            self._error = error
        self._ended.set()

    def _tried(self, end: float) -> bool:
        """Try once; whether it worked."""
        with contextlib.suppress(Exception):
            self._leave()
        try:
            self._join()
            self._staff = self._hire()
        except (StudyError, ConnectionError):
            if time.monotonic() > end:
                raise
            return False
        return True
