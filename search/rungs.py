"""Who goes on to the next rung, what a race must beat, and whose files are kept: judged by a fixed history.

Multi-objective successive halving with non-dominated ranks, Schmucker et al. 2021 (arXiv:2106.12639), asynchronous as
there: of the scores on a rung a share goes on, by rank. A candidate is compared with what others reached on the same
rung, never with scores of a higher one, which would dry promotion up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from objectives.racing import Outcomes, Race
from objectives.score import RungScore
from search.ranks import Ranks, Staircase

Floats: TypeAlias = NDArray[np.float32]
_Known: TypeAlias = tuple[bool, int, float]  # whether a score is of rank 1, its bytes and its accuracy

REFERENCES = 6  # whose outcomes a race is judged with
CARRIED = 24  # of a rung, that go with a candidate to its worker
RANKS_WITH_OUTCOMES = 2


@dataclass(frozen=True, eq=False)
class References:
    """Outcomes of some scores of a rung, as they go to workers: in two arrays, as each one takes time to send.

    Attributes:
        firsts: of each score, whether it is of rank 1 on its rung.
        bytes: of each.
        values, losses: their outcomes, float32 (scores, samples).
    """

    firsts: tuple[bool, ...]
    bytes: tuple[int, ...]
    values: Floats
    losses: Floats

    @staticmethod
    def of(chosen: Sequence[tuple[bool, int, Outcomes]]) -> "References":
        """Those of some scores: whether each is of rank 1, its bytes and its outcomes."""
        values = np.array([one.values for _, _, one in chosen], np.float32)
        losses = np.array([one.losses for _, _, one in chosen], np.float32)
        return References(tuple(first for first, _, _ in chosen), tuple(size for _, size, _ in chosen), values, losses)

    def nearest(self, bytes: int) -> tuple[Outcomes, ...]:
        """What a candidate of so many bytes is judged with: rank 1 before others, and those nearest in size."""

        def distance(at: int) -> tuple[bool, float, int]:
            return not self.firsts[at], abs(log(self.bytes[at] / bytes)), self.bytes[at]

        nearest = sorted(range(len(self.bytes)), key=distance)[:REFERENCES]
        return tuple(Outcomes(self.values[at], self.losses[at]) for at in nearest)


@dataclass(frozen=True, eq=False)
class Judgement:
    """The rules for one candidate, as of when it was asked: a judge (see `objectives.judging`).

    Attributes:
        bars: of each rung, the scores of which none may dominate a candidate that goes on from there.
        front: the last scores of all candidates that no other one dominates.
        references: of each rung.
        confidence: that of races; None for no races.
        always: a uniform policy is taken up all rungs in full, so that it is compared on the same one.
    """

    bars: tuple[Staircase, ...]
    front: Staircase
    references: tuple[References, ...]
    confidence: float | None
    always: bool = False

    def promote(self, rung: int, accuracy: float, bytes: int) -> bool:
        """Whether a candidate with this score on this rung goes on."""
        return self.always or not self.bars[rung].dominates(accuracy, bytes)

    def keep(self, accuracy: float, bytes: int) -> bool:
        """Whether the packed file of a candidate with this last score is kept: it may be on the front."""
        return self.always or not self.front.dominates(accuracy, bytes)

    def race(self, rung: int, bytes: int) -> Race | None:
        """What a candidate of so many bytes must beat to go on from a rung, or, if that is less, to be on the front.

        None where there is nothing to beat or no race.
        """
        needed = [self.front.bar(bytes)]
        if rung < len(self.bars) - 1:
            needed.append(self.bars[rung].bar(bytes))
        bars = [bar for bar in needed if bar is not None]
        if self.always or self.confidence is None or len(bars) < len(needed):
            return None
        return Race(min(bars), self.references[rung].nearest(bytes), self.confidence)


class History:
    """What a candidate may be judged by: the scores told so far, in the order of their numbers.

    Args:
        rungs: how many there are.
        share: of the scores on a rung, how many go on; 1 takes all candidates up all rungs. All of rank 1 go on.
        confidence: that of races; None for no races.
    """

    def __init__(self, rungs: int, share: float, confidence: float | None) -> None:
        self._ranks = [Ranks() for _ in range(rungs)]
        self._values = Ranks()
        self._outcomes: list[dict[tuple[int, float], Outcomes]] = [{} for _ in range(rungs)]
        self._share, self._confidence = share, confidence
        self._told = -1  # the last number
        self._fair: Judgement | None = None  # until something is told
        self._carried: list[tuple[list[_Known], References]] = [([], References.of(())) for _ in range(rungs)]

    def tell(self, number: int, rungs: Sequence[RungScore], outcomes: Sequence[Outcomes | None], stopped: bool) -> None:
        """Add a finished candidate's scores, rung by rung.

        Args:
            number: of its trial.
            rungs: its scores; the same score of another one counts once.
            outcomes: of each of these rungs, where there are any.
            stopped: whether it lost a race on its last rung, so that it is not on the front.

        Raises:
            ValueError: this trial or a later one was told already.
        """
        if number <= self._told:
            raise ValueError(f"trial {number} told out of turn: the last one was {self._told}")
        self._told, self._fair = number, None
        for at, score in enumerate(rungs):
            ranks = self._ranks[score.rung]
            ranks.add(score.accuracy, score.bytes)
            found = outcomes[at] if at < len(outcomes) else None
            if found is not None and self.keeps_outcomes(score.rung, score.accuracy, score.bytes):
                self._outcomes[score.rung].setdefault((score.bytes, score.accuracy), found)
            self._forget(score.rung)
        if not stopped:
            self._values.add(rungs[-1].accuracy, rungs[-1].bytes)

    def _forget(self, rung: int) -> None:
        """Drop outcomes of scores that were pushed to a worse rank."""
        known = self._outcomes[rung]
        for size, accuracy in list(known):
            if not self._ranks[rung].is_within(RANKS_WITH_OUTCOMES, accuracy, size):
                del known[size, accuracy]

    def keeps_outcomes(self, rung: int, accuracy: float, bytes: int) -> bool:
        """Whether outcomes of such a score may serve as references later: it is of the first ranks of its rung now."""
        return self._confidence is not None and self._ranks[rung].is_within(RANKS_WITH_OUTCOMES, accuracy, bytes)

    def promotable(self, rung: int) -> Iterator[Iterator[tuple[int, float]]]:
        """The scores on a rung that would go on now, bytes and accuracy each, those of rank 1 first."""
        ranks = self._ranks[rung]
        return ranks.best(None if self._share >= 1 else ranks.last_within(self._share))

    def rank(self, rung: int, accuracy: float, bytes: int) -> int:
        """The rank of a score among those of its rung now."""
        return self._ranks[rung].rank(accuracy, bytes)

    def judges(self, *, always: bool) -> Judgement:
        """The rules for a candidate asked now; `always` for a uniform policy."""
        fair = self._judge()
        return Judgement(fair.bars, fair.front, (), None, always=True) if always else fair

    def _judge(self) -> Judgement:
        if self._fair is None:
            bars = tuple(
                Staircase() if self._share >= 1 else ranks.of_rank(ranks.last_within(self._share))
                for ranks in self._ranks
            )
            references = tuple(map(self._references, range(len(self._ranks))))
            self._fair = Judgement(bars, self._values.of_rank(1), references, self._confidence)
        return self._fair

    def _references(self, rung: int) -> References:
        """Some outcomes of a rung: those of rank 1 first, and from small to large without large gaps."""
        known, ranks = self._outcomes[rung], self._ranks[rung]
        given = [(ranks.is_within(1, accuracy, size), size, accuracy) for size, accuracy in sorted(known)]
        first = _spread([one for one in given if one[0]], CARRIED)
        chosen = first + _spread([one for one in given if not one[0]], CARRIED - len(first))
        if chosen != self._carried[rung][0]:
            found = References.of([(is_first, size, known[size, accuracy]) for is_first, size, accuracy in chosen])
            self._carried[rung] = chosen, found
        return self._carried[rung][1]


def _spread(given: list[_Known], most: int) -> list[_Known]:
    """At most so many, evenly taken."""
    return given if len(given) <= most else [given[at * len(given) // most] for at in range(most)]
