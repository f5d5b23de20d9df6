"""Noticing that the head of a joined cluster is lost, before Ray ends the driver for it without a word of ours."""

import os
import socket
import threading
import time
from collections.abc import Callable

import ray

from spaces.errors import StudyError

TRY_SECONDS = 1.0  # from one look to the next, and that one may take
NOTICE = 5  # looks in a row that nobody answers, until that is said
_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAYS_SECONDS = 60.0  # after which Ray ends a process that does not reach the head
_FIX = "What is told is stored: start the cluster again, with its nodes, and launch again"


class HeadWatch:
    """Looks in a thread of its own whether the head answers; who waits for the cluster asks `check` now and then.

    The search gives up after half the time that Ray allows, as leaving a cluster without a head takes a while, too.

    Args:
        address: of the head, HOST:PORT.
        say: takes a line for people.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._address, self._say = address, say
        host, _, port = address.rpartition(":")
        self._door = host.strip("[]"), int(port)
        self._limit = max(1, int(float(os.environ.get(_VARIABLE, _RAYS_SECONDS)) / 2 / TRY_SECONDS))
        self._missed = 0
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def check(self) -> None:
        """See whether the head is there, as far as is known.

        Raises:
            StudyError: it has not answered for too long.
        """
        if self.lost:
            raise StudyError(
                f"the head of the Ray cluster at {self._address} is lost: nothing answered there {self._missed} times "
                f"in a row. {_FIX}"
            )

    @property
    def lost(self) -> bool:
        """Whether it has not answered for too long."""
        return self._missed >= self._limit

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _run(self) -> None:
        pause = TRY_SECONDS
        while not self._closed.wait(pause):
            began, noticed = time.monotonic(), self._missed >= NOTICE
            self._missed = 0 if self._answers() else self._missed + 1
            pause = max(0.0, TRY_SECONDS - (time.monotonic() - began))  # one look takes that long where nobody refuses
            if self._missed == NOTICE:
                self._say(
                    f"the head of the Ray cluster at {self._address} does not answer: it is waited for; if it stays "
                    f"away, this search ends. {_FIX}"
                )
            elif noticed and not self._missed:
                self._say(f"the head of the Ray cluster at {self._address} answers again: the search goes on")

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._door, timeout=TRY_SECONDS).close()
        except OSError:
            return False
        return True


def head_address() -> str:
    """That of the cluster which this process is in."""
    return str(ray.get_runtime_context().gcs_address)
