"""Which candidates go on to the next rung, and whose files are kept: decided against a fixed history.

After multi-objective successive halving, Schmucker et al. 2021 (arXiv:2106.12639): a candidate is compared with what
others reached on the same rung, never with scores of a higher one, which would dry promotion up.
"""

from bisect import bisect_right
from dataclasses import dataclass

from objectives.score import RungScore


@dataclass(frozen=True)
class Staircase:
    """The best accuracy seen at most so many bytes: bytes and accuracies, both strictly increasing."""

    bytes: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()

    def best(self, bytes: int) -> float | None:
        """The best accuracy of those not larger than `bytes`; None if all are larger."""
        at = bisect_right(self.bytes, bytes)
        return self.accuracy[at - 1] if at else None

    def add(self, bytes: int, accuracy: float) -> "Staircase":
        """The staircase with one more candidate."""
        best = self.best(bytes)
        if best is not None and best >= accuracy:
            return self
        steps = [(b, a) for b, a in zip(self.bytes, self.accuracy, strict=True) if b < bytes or a > accuracy]
        steps = sorted([*steps, (bytes, accuracy)])
        return Staircase(tuple(b for b, _ in steps), tuple(a for _, a in steps))


@dataclass(frozen=True)
class Promotion:
    """Says whether a candidate goes on from a rung: on the front of that rung, or within a margin of accuracy of it.

    Attributes:
        fronts: the staircase of each rung's scores, as visible when the candidate was asked.
        margin: accuracy it may lack.
        always: a uniform policy is taken up all rungs, so that it is compared on the same one.
    """

    fronts: tuple[Staircase, ...]
    margin: float
    always: bool = False

    def __call__(self, rung: int, accuracy: float, bytes: int) -> bool:
        """Whether a candidate with this score on this rung goes on."""
        best = self.fronts[rung].best(bytes)
        return self.always or best is None or accuracy >= best - self.margin


@dataclass(frozen=True)
class Keep:
    """Says whether a candidate's packed file is kept: nothing told so far dominates it, or it is a uniform policy."""

    front: Staircase
    always: bool = False

    def __call__(self, accuracy: float, bytes: int) -> bool:
        """Whether the file of a candidate with this last score is kept."""
        best = self.front.best(bytes)
        return self.always or best is None or accuracy >= best


class History:
    """What a candidate may be judged by: the scores told so far, in the order of their numbers."""

    def __init__(self, rungs: int, margin: float) -> None:
        self._fronts = [Staircase() for _ in range(rungs)]
        self._values = Staircase()
        self._margin = margin

    def tell(self, rungs: tuple[RungScore, ...]) -> None:
        """Add a finished candidate's scores, rung by rung."""
        for score in rungs:
            self._fronts[score.rung] = self._fronts[score.rung].add(score.bytes, score.accuracy)
        self._values = self._values.add(rungs[-1].bytes, rungs[-1].accuracy)

    def judges(self, *, always: bool) -> tuple[Promotion, Keep]:
        """The rules for a candidate asked now."""
        return Promotion(tuple(self._fronts), self._margin, always), Keep(self._values, always)
