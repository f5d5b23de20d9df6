"""What Ray's errors mean for the task that a worker was running."""

import re
from dataclasses import dataclass

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

_NOT_ITS_OWN = ("node has died", "`ray.kill`", "owner has died", "INTENDED_SYSTEM_EXIT", "exited because of a node")
_ELSEWHERE = (ActorUnavailableError, NodeDiedError, ObjectLostError, ObjectStoreFullError, OutOfDiskError)
_DETAIL = re.compile(r"[Ww]orker exit detail: (.*)", re.DOTALL)
_EXIT_CODE = re.compile(r"exit code (-?\d+)")


@dataclass(frozen=True)
class Loss:
    """How a worker was lost.

    Attributes:
        reason: in words, on one line.
        own: the process died by itself, so that the task that it was running may be at fault.
    """

    reason: str
    own: bool


def loss_of(error: Exception) -> Loss | None:
    """How a worker was lost, from what its call raised; None where it was not, which nobody expected.

    Ray keeps the cause of an actor's death in the error's text only.
    """
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return Loss("out of memory: Ray ended it, as its node had too little left", own=True)
    if isinstance(error, _ELSEWHERE):
        return Loss(last_line(error), own=False)
    if isinstance(error, WorkerCrashedError):
        return Loss("it crashed or was killed", own=True)
    if not isinstance(error, RayActorError):
        return None
    if error.preempted or any(words in text for words in _NOT_ITS_OWN):
        return Loss(last_line(error), own=False)
    return Loss(_how(text), own=True)


def _how(text: str) -> str:
    """How a process ended, as far as Ray knows."""
    if "memory" in text and "OUT_OF_MEMORY" in text:
        return "out of memory: Ray ended it, as its node had too little left"
    detail = _DETAIL.search(text)
    code = _EXIT_CODE.search(detail.group(1)) if detail else None
    if code:
        return f"its process ended with exit code {code.group(1)}"
    return "its process crashed or was killed, for example for want of memory"


def starts_with_an_error(error: Exception) -> bool:
    """Whether the worker's own code raised as it started, as opposed to a lost process."""
    return isinstance(error, RayActorError) and error.actor_init_failed


def is_loss(error: Exception) -> bool:
    """Whether Ray lost something, and not we."""
    return isinstance(error, RayError)


def last_line(error: Exception) -> str:
    """The last line of what Ray says: the error itself, not its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
