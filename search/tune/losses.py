"""How a worker was lost, from the text that Ray Tune writes of it."""

import re

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError

_HEAD = re.compile(r"^Failure # \d+ \(occurred at [^)]*\)$", re.MULTILINE)
_ACTOR = re.compile(r"The actor (?:died|experienced|[0-9a-f]+ is unavailable|None is unavailable)")


def written_error(text: str) -> Exception:
    """What Ray raised, as far as its words tell: of the same class where that means something for a search.

    Args:
        text: an error file of Tune's, to which each failure of a trial is added; empty where there is none, as when
            Ray knows nothing.
    """
    said = _HEAD.split(text)[-1].strip()
    if not said:
        return RayActorError()
    if "is unavailable: " in said.partition("\n")[0] and _ACTOR.match(said):
        lost = ActorUnavailableError("", None)
        lost.error_msg = said
        return lost
    if _ACTOR.match(said):
        born = said.startswith("The actor died because of an error raised in its creation task")
        return RayActorError(error_msg=said, actor_init_failed=born, preempted="preempted" in said and not born)
    if "running low on memory" in said.partition("\n")[0]:
        return OutOfMemoryError(said)  # type: ignore[no-untyped-call]
    return RayError(said) if "ray::" in said else RayActorError()  # raised by a worker's code; else Ray says no more
