"""What Ray's errors mean for the task that a worker was running."""

from dataclasses import dataclass

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

_NOT_ITS_OWN = ("node has died", "`ray.kill`", "owner has died", "INTENDED_SYSTEM_EXIT", "exited because of a node")
_ELSEWHERE = (ActorUnavailableError, NodeDiedError, ObjectLostError, ObjectStoreFullError, OutOfDiskError)
# one wording each, as a trial keeps it: whether Ray learns the exit code is a matter of timing
_DIED = "its process crashed or was killed, for example for want of memory"
OUT_OF_MEMORY = "out of memory: Ray ended it, as its node had too little left"


@dataclass(frozen=True)
class Loss:
    """How a worker was lost.

    Attributes:
        reason: in words, on one line; where `own`, the same for all that died alike.
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
        return Loss(OUT_OF_MEMORY, own=True)
    if isinstance(error, _ELSEWHERE):
        return Loss(last_line(error), own=False)
    if isinstance(error, WorkerCrashedError):
        return Loss(_DIED, own=True)
    if not isinstance(error, RayActorError):
        return None
    if error.preempted or any(words in text for words in _NOT_ITS_OWN):
        return Loss(last_line(error), own=False)
    return Loss(OUT_OF_MEMORY if "OUT_OF_MEMORY" in text else _DIED, own=True)


def starts_with_an_error(error: Exception) -> bool:
    """Whether the worker's own code raised as it started, as opposed to a lost process."""
    return isinstance(error, RayActorError) and error.actor_init_failed


def last_line(error: Exception) -> str:
    """The last line of what Ray says: the error itself, not its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
