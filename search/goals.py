"""What ends a search and what it aims at until then: the clock, patience with a front that stands still, a focus."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from search.config_fields import clock_of
from search.config_sections import BudgetConfig, PatienceConfig
from search.pareto import Box, hypervolume, pareto
from spaces.errors import ConfigError

Span = tuple[int, int]

SHARES = (4, 8, 16)  # the best accuracy is told at the float model's bytes divided by these


def check_goals(budget: BudgetConfig, box: Box, float_bytes: int, float_accuracy: float) -> None:
    """Refuse goals that a search with these files could not pursue.

    Args:
        budget: what was asked for.
        box: where the front's hypervolume is taken; it begins at the smallest file.
        float_bytes: of the float model's file.
        float_accuracy: of the float model.

    Raises:
        ConfigError: no file is in the focus, or the hypervolume that patience looks at would be 0 whatever is found.
    """
    smallest = int(box.smallest)
    if budget.focus is not None and (budget.focus[1] < smallest or budget.focus[0] >= float_bytes):
        low, high = budget.focus
        raise ConfigError(
            f"budget.focus: given {low}..{high} bytes, but the files of this search have {smallest} and more, and the "
            f"float model has {float_bytes}: give a range that overlaps {smallest}..{float_bytes}, or null"
        )
    if budget.patience is None:
        return
    given = f"budget.patience: given {budget.patience.candidates} candidates"
    if box.smallest >= box.largest:
        raise ConfigError(
            f"{given}, but the hypervolume counts files below a quarter of the float model's ({box.largest:,.0f} "
            f"bytes), and the smallest here has {smallest:,}: allow smaller files in space, or leave patience out"
        )
    if float_accuracy <= box.worst:
        raise ConfigError(
            f"{given}, but the hypervolume counts accuracies above the workload's chance {box.worst:g}, and the float "
            f"model's is {float_accuracy:.4f}: give the Workload its chance level, or leave patience out"
        )


class Deadline:
    """When a launch's time is up: after so many seconds of searching or at a time, whichever comes first.

    Args:
        timeout: seconds from `start` on; None for any number.
        until: when, as `budget.until` says it; None for never.
        now: the time of the launch.

    Raises:
        ConfigError: that time has passed.
    """

    def __init__(self, timeout: float | None, until: str | None, now: datetime) -> None:
        self._timeout = timeout
        self._until = float("inf") if until is None else moment_of(until, now).timestamp()
        self._end = float("inf")

    def start(self) -> None:
        """The search begins: from now on the seconds count."""
        if self._timeout is not None:
            self._end = time.monotonic() + self._timeout

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._end or time.time() >= self._until


def moment_of(until: str, now: datetime) -> datetime:
    """When a text such as ``18:00`` or ``2026-12-24 18:00`` next is, in local time where it has no offset.

    Args:
        until: a time of the day, or a date and time.
        now: the present, with a time zone.

    Raises:
        ConfigError: it is a date and time that has passed.
    """
    clock = clock_of(until)
    if clock is None:
        raise ValueError(f"{until!r} is no time")
    if isinstance(clock, datetime):
        if clock.timestamp() <= now.timestamp():
            raise ConfigError(
                f"budget.until: given {until!r}, which has passed (it is {now.astimezone():%Y-%m-%d %H:%M}): give a "
                "later time, or null"
            )
        return clock.astimezone()
    today = now.astimezone().date()
    days = today, today + timedelta(days=1)
    # where clocks are put back, a time of that day comes twice
    moments = [datetime.combine(day, clock.replace(fold=fold)).astimezone() for day in days for fold in (0, 1)]
    return min(moment for moment in moments if moment.timestamp() > now.timestamp())


@dataclass(frozen=True)
class _Told:
    """A told candidate's score, as the hypervolume takes it."""

    trial: int
    bytes: int
    accuracy: float


class Patience:
    """Says when a front has stopped growing: a function of what was told, in the order of the trials' numbers.

    That is after the first told trial at which the hypervolume is at most `growth` above what it was `candidates` told
    trials before, the uniform and predicted first candidates not counted among these.

    Args:
        settings: how long, and what growth does not count; None never stops.
        box: where the hypervolume is taken.

    Example:
        >>> patience = Patience(PatienceConfig(candidates=2, growth=0.01), Box(1_000, 100_000, 0.1, 1.0))
        >>> for values in [(0.6, 9_000), (0.7, 8_000), (0.7, 8_000), None]:
        ...     patience.tell(values, first=False)
        >>> patience.stopped
        4
    """

    def __init__(self, settings: PatienceConfig | None, box: Box) -> None:
        self._settings, self._box = settings, box
        self._told = 0
        self._begun = False  # a candidate that counts was told
        self._front: list[_Told] = []
        self._heights = deque([0.0], maxlen=settings.candidates + 1 if settings else 1)  # hypervolumes
        self.stopped: int | None = None  # how many were told when it stopped growing

    def tell(self, values: tuple[float, float] | None, *, first: bool) -> None:
        """Add the next told trial.

        Args:
            values: its accuracy and bytes; None for a failure, with which the front cannot have grown.
            first: whether it is one of the uniform and predicted candidates that a search begins with.
        """
        self._told += 1
        if self._settings is None or self.stopped is not None:
            return
        height = self._heights[-1]
        if values is not None:
            told = _Told(self._told - 1, int(values[1]), values[0])
            front = pareto([*self._front, told])
            if told in front:
                self._front, height = front, hypervolume(front, self._box)
        self._begun = self._begun or not first
        if not self._begun:
            self._heights.clear()
        self._heights.append(height)
        full = len(self._heights) == self._heights.maxlen
        if self._begun and full and height - self._heights[0] <= self._settings.growth:
            self.stopped = self._told

    def trials(self, most: int, window: int) -> int:
        """How many trials the study shall have: once stopped, all that may have been asked when that was told."""
        return most if self.stopped is None else min(most, self.stopped + window)

    @property
    def words(self) -> str:
        """Why the search ends, for people; empty while it does not."""
        if self._settings is None or self.stopped is None:
            return ""
        return (
            f"budget.patience: up to trial {self.stopped - 1} the front's hypervolume has not grown by more than "
            f"{self._settings.growth:g} in {self._settings.candidates} candidates"
        )


@dataclass(frozen=True)
class Focus:
    """The sizes that a study's candidates aim at, which may change from launch to launch.

    Attributes:
        spans: from which trial number on which range of bytes [low, high]; None is all sizes.

    Example:
        >>> focus = Focus().then(0, None).then(40, (40_000, 120_000))
        >>> focus.at(39), focus.at(40), focus.document()
        (None, (40000, 120000), [[40, 40000, 120000]])
    """

    spans: tuple[tuple[int, Span | None], ...] = ()

    def at(self, number: int) -> Span | None:
        """The range of bytes [low, high] that trial `number` aims at; None for all sizes."""
        return next((span for first, span in reversed(self.spans) if first <= number), None)

    def then(self, number: int, span: Span | None) -> "Focus":
        """The same up to trial `number`, and `span` from there on."""
        before = Focus(tuple(one for one in self.spans if one[0] < number))
        return before if before.at(number) == span else Focus((*before.spans, (number, span)))

    def document(self) -> list[list[int | None]]:
        """As JSON: [first trial number, low, high] each, with nulls for all sizes."""
        return [[first, *(span or (None, None))] for first, span in self.spans]

    @classmethod
    def read(cls, document: Sequence[Sequence[int | None]]) -> "Focus":
        """The focus that a study's document says."""
        return cls(
            tuple((first or 0, None if low is None or high is None else (low, high)) for first, low, high in document)
        )


def ends_words(budget: Mapping[str, Any]) -> str:
    """What ends a search whose config has this `budget`, and the sizes it aims at, for people."""
    ends = [f"after {budget['trials']} trials"]
    if budget.get("timeout") is not None:
        ends.append(f"after {budget['timeout']:g} s of a launch")
    if budget.get("until") is not None:
        ends.append(f"at {budget['until']}")
    if patience := budget.get("patience"):
        ends.append(
            f"when the front's hypervolume has not grown by more than {patience['growth']:g} in "
            f"{patience['candidates']} candidates"
        )
    words = ", or ".join(ends)
    if focus := budget.get("focus"):
        words += f"; it aims at {focus[0]:,} to {focus[1]:,} bytes"
    return words
