"""Racing replayed: a recorded candidate is judged chunk by chunk, as an evaluation would be."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nextafter

from objectives.racing import Outcomes, Race, typical_loss


@dataclass(frozen=True)
class Finish:
    """How a candidate's evaluation ended.

    Attributes:
        accuracy: of all samples; where it was stopped, an estimate below what had to be beaten.
        loss: mean KL over the samples seen.
        samples: how many were seen.
        stopped: whether the race stopped it.
    """

    accuracy: float
    loss: float
    samples: int
    stopped: bool


def run_race(full: Outcomes, race: Race | None, chunk: int) -> Finish:
    """Look at a candidate's outcomes chunk by chunk until the race says that it is hopeless, or to the end.

    The estimate of one that is stopped is cut as `objectives.evidence` does, by half of what a sample counts.
    """
    samples = full.values.size
    for seen in range(chunk, samples, chunk) if race is not None else ():
        part = Outcomes(full.values[:seen], full.losses[:seen])
        verdict = race.judge(part, samples) if race is not None else None
        if race is not None and verdict is not None and verdict.hopeless:
            most = min(race.threshold - 1 / (2 * samples), nextafter(race.threshold, -inf))
            return Finish(min(verdict.accuracy, most), typical_loss(part.losses), seen, True)
    return Finish(float(full.values.mean(dtype=float)), typical_loss(full.losses), samples, False)


def on_front(accuracy: float, bytes: int, others: Sequence[tuple[float, int]]) -> bool:
    """Whether a candidate would be on the front of these (accuracy, bytes): none is as good and as small."""
    return not any(theirs >= accuracy and size <= bytes for theirs, size in others)
