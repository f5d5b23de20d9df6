"""Trials that go on where an earlier one of the same policy ended, because it is stronger than it seemed.

As in asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2): what becomes one of the best of
its rung by what is known later is promoted later. A told trial cannot change, so it goes on as a new one.
"""

from collections import defaultdict
from heapq import heappop, heappush
from typing import Protocol

from objectives.score import RungScore
from search.rungs import History

EVERY = 4  # at most one of so many trials continues another one


class Trial(Protocol):
    """What is known of a trial."""

    @property
    def number(self) -> int:
        """Its number."""

    @property
    def rungs(self) -> tuple[RungScore, ...]:
        """Its scores, rung by rung; empty where it failed or was not told."""

    @property
    def stopped(self) -> bool:
        """Whether it lost a race."""

    @property
    def repeat_of(self) -> int | None:
        """The trial that had its policy before, if it was answered from memory."""


class Continuing:
    """Which trial is to be continued: the best of those that would be promoted now.

    Args:
        last: the last rung.
    """

    def __init__(self, last: int) -> None:
        self._last = last
        # of each rung, by bytes and accuracy: the trials that ended there and could go on, the lowest number first
        self._able: list[dict[tuple[int, float], list[int]]] = [defaultdict(list) for _ in range(last)]
        self._taken: set[int] = set()

    def ask(self, continues: int | None) -> None:
        """Note which trial one that was asked continues, if it does: nobody else continues it."""
        if continues is not None:
            self._taken.add(continues)

    def tell(self, trial: Trial) -> None:
        """Add a told trial that may be looked at from now on."""
        if not trial.rungs or trial.stopped or trial.repeat_of is not None:
            return
        score = trial.rungs[-1]
        if score.rung < self._last:
            heappush(self._able[score.rung][score.bytes, score.accuracy], trial.number)

    def choose(self, number: int, history: History) -> int | None:
        """The trial that trial `number` shall continue, if any.

        Args:
            number: of the trial that is asked.
            history: of the trials that may be looked at.
        """
        if number % EVERY != EVERY - 1:
            return None
        found = [best for rung in range(self._last) if (best := self._best(rung, history)) is not None]
        return min(found)[1] if found else None

    def _best(self, rung: int, history: History) -> tuple[int, int] | None:
        """Rank and number of the best trial on a rung that would be promoted now."""
        able = self._able[rung]
        for rank, scores in enumerate(history.promotable(rung), start=1):
            numbers = [self._first(rung, score) for score in scores if score in able]
            if left := [one for one in numbers if one is not None]:
                return rank, min(left)
        return None

    def _first(self, rung: int, score: tuple[int, float]) -> int | None:
        """The first trial with this score that nobody continues; a score without one is forgotten."""
        numbers = self._able[rung][score]
        while numbers and numbers[0] in self._taken:
            heappop(numbers)
        if not numbers:
            del self._able[rung][score]
            return None
        return numbers[0]
