"""Trials that go on where an earlier one of the same policy ended, because it is stronger than it seemed.

As in asynchronous successive halving (Li et al. 2020, arXiv:1810.05934, algorithm 2): what becomes one of the best of
its rung by what is known later is promoted later. A told trial cannot change, so it goes on as a new one.
"""

from collections.abc import Sequence
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

    @property
    def continues(self) -> int | None:
        """The trial that it continues, if it does."""


def to_continue(number: int, asked: Sequence[Trial], visible: int, history: History, last: int) -> int | None:
    """The trial that trial `number` shall continue, if any: the best of those that would be promoted now.

    Args:
        number: of the trial that is asked.
        asked: all trials before it.
        visible: how many of them, from the first, may be looked at.
        history: of these.
        last: the last rung.
    """
    if number % EVERY != EVERY - 1 or last == 0:
        return None
    taken = {trial.continues for trial in asked}
    found = []
    for trial in asked[:visible]:
        if not trial.rungs or trial.stopped or trial.repeat_of is not None or trial.number in taken:
            continue
        score = trial.rungs[-1]
        if score.rung < last and history.promotes(score.rung, score.accuracy, score.bytes):
            found.append((history.rank(score.rung, score.accuracy, score.bytes), trial.number))
    return min(found)[1] if found else None
