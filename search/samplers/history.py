"""The trials of a study as the sampler learns from them: which choices they made, and what they were worth."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from search.samplers.table import Table

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Place = tuple[int, bytes]

LOSSES, STOPPED = "losses", "stopped"  # user attributes of trials


@dataclass(frozen=True, eq=False)
class Seen:
    """A trial.

    Attributes:
        table: number of the table that it is of; -1 if it is of none.
        choices: numbers of its choices, (sites,); empty if it is of none.
        accuracy, bytes: its values; NaN while it runs and where it failed.
        losses: measured loss on each rung; empty where none was told.
        stopped: whether its evaluation was stopped, so that its accuracy is a bound only.
    """

    number: int
    params: Mapping[str, Any]
    table: int
    choices: Ints
    accuracy: float
    bytes: float
    losses: tuple[float, ...]
    stopped: bool

    @cached_property
    def place(self) -> Place:
        """What tells policies of tables apart."""
        return self.table, self.choices.tobytes()

    @property
    def lack(self) -> float:
        """The lower the better at the same bytes: the first rung's loss, or minus the accuracy if none was told."""
        if not self.losses:
            return -self.accuracy
        return math.inf if math.isnan(self.losses[0]) else self.losses[0]

    @property
    def complete(self) -> bool:
        """Whether it has values that can be compared."""
        return math.isfinite(self.accuracy) and math.isfinite(self.bytes)


@dataclass(eq=False)
class Look:
    """The trials that are visible.

    Attributes:
        told: those that were told, in the order of their numbers.
        running: those that were not, in the order of their numbers.
        front: of those with values and not stopped, the ones that no other one dominates in bytes and loss, by bytes.
    """

    told: list[Seen] = field(default_factory=list)
    running: list[Seen] = field(default_factory=list)
    front: list[Seen] = field(default_factory=list)
    _told: set[Place] = field(default_factory=set)  # later looks have the same set: what was told stays so
    _running: set[Place] = field(default_factory=set)

    def __contains__(self, place: object) -> bool:
        """Whether a policy was asked."""
        return place in self._running or place in self._told

    def add(self, one: Seen) -> None:
        """A trial that was told; the numbers of those before are smaller."""
        self.told.append(one)
        self._told.add(one.place)
        if one.complete and not one.stopped:
            self.front = with_one(self.front, one)

    def run(self, one: Seen) -> None:
        """A trial that runs."""
        self.running.append(one)
        self._running.add(one.place)

    def copy(self) -> "Look":
        """One to which more can be added."""
        return Look(list(self.told), list(self.running), self.front, self._told, set(self._running))


class History:
    """Reads each trial once.

    Args:
        tables: the settings.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        # All are replaced, never changed: threads of one study share a sampler.
        self._known: Mapping[int, Seen] = {}
        self._running: Mapping[int, tuple[FrozenTrial, Seen]] = {}
        self._first = Look()  # of the first trials without a gap: what is told of them stays so

    def look(self, trials: Sequence[FrozenTrial]) -> Look:
        """What there is to see now; it is not to be changed.

        Args:
            trials: all of the study but the one that is asked for, in the order of their numbers.
        """
        gapless, read = self._first, self._known
        first = begun = len(gapless.told)
        while first < len(trials) and trials[first].number == first and trials[first].state.is_finished():
            gapless = gapless.copy() if first == begun else gapless
            gapless.add(read.get(first) or self._seen(trials[first]))
            first += 1
        self._first = gapless
        found = gapless.copy() if first < len(trials) else gapless
        known, running, before = {}, {}, self._running
        for trial in trials[first:]:
            number, finished = trial.number, trial.state.is_finished()
            if finished:
                known[number] = read.get(number) or self._seen(trial)
                found.add(known[number])
            elif number in before and (before[number][0] is trial or before[number][1].params == trial.params):
                running[number] = before[number]
                found.run(running[number][1])
            elif trial.state is not TrialState.WAITING and trial.params:
                running[number] = trial, self._seen(trial)
                found.run(running[number][1])
        self._known, self._running = known, running
        return found

    def _seen(self, trial: FrozenTrial) -> Seen:
        table, choices = self._place(trial.params)
        values = trial.values if trial.state is TrialState.COMPLETE else None
        accuracy, size = (values[0], values[1]) if values is not None and len(values) > 1 else (math.nan, math.nan)
        losses = tuple(float(loss) for loss in trial.user_attrs.get(LOSSES, ()))
        return Seen(
            trial.number,
            trial.params,
            table,
            choices,
            accuracy,
            size,
            losses,
            bool(trial.user_attrs.get(STOPPED, False)),
        )

    def _place(self, params: Mapping[str, Any]) -> tuple[int, Ints]:
        """The table that parameters are of, and the choices that they make; -1 and none if there is none."""
        for i, table in enumerate(self._tables):
            numbers = table.numbers(params)
            if numbers is not None:
                return i, np.array(numbers, np.int64)
        return -1, np.zeros(0, np.int64)


@dataclass(frozen=True)
class Scale:
    """How log losses on the first rung are taken from trials.

    Attributes:
        least, largest: of the losses that were told; None where none was, and accuracies stand for them.
        best, reach: of the accuracies: the best one, and how far below it the worst one is.
    """

    least: float | None
    largest: float
    best: float
    reach: float

    @staticmethod
    def of(trials: Sequence[Seen]) -> "Scale":
        """That of complete trials."""
        told = [one.losses[0] for one in trials if one.losses and 0 < one.losses[0] < math.inf]
        accuracies = [one.accuracy for one in trials]
        best = max(accuracies, default=1.0)
        reach = best - min(accuracies, default=0.0) or 1.0
        return Scale(min(told, default=None), max(told, default=1.0), best, reach)

    def logs(self, trials: Sequence[Seen]) -> Floats:
        """Log losses of complete trials, (trials,); NaN of one that told none where others have.

        A loss of nothing is taken for half of the least one, one that is no number for the largest.
        """
        if self.least is None:
            lacks = np.array([self.best - one.accuracy for one in trials])
            return np.asarray(np.log(np.maximum(lacks, 0) / self.reach + 0.02))
        return np.array([math.log(self._told(one.losses[0])) if one.losses else math.nan for one in trials])

    def _told(self, loss: float) -> float:
        least = (self.least or self.largest) / 2
        return max(least, loss) if loss < math.inf else self.largest  # also where it is no number


def with_one(front: Sequence[Seen], one: Seen) -> list[Seen]:
    """A front of bytes and loss, by bytes, with a complete trial of a later number: what no other one dominates."""
    at = bisect_right(front, one.bytes, key=lambda member: member.bytes)
    if at > 0 and front[at - 1].lack <= one.lack:
        return list(front)
    start = at - 1 if at > 0 and front[at - 1].bytes == one.bytes else at
    end = next((i for i in range(at, len(front)) if front[i].lack < one.lack), len(front))
    return [*front[:start], one, *front[end:]]
