"""What a running search shows on standard error: how far, how fast, how good, and how long it will still take."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from search.goals import SHARES

QUIET_SECONDS = 10.0  # between two lines where there is no terminal


def say(words: str) -> None:
    """A line on standard error."""
    Console(stderr=True, highlight=False, emoji=False).print(words, markup=False, soft_wrap=True)


class SearchProgress:
    """A progress bar on a terminal, and a line every few seconds elsewhere.

    Args:
        total: trials of the study.
        done: trials told before this launch.
        float_bytes: bytes of the float model.
    """

    def __init__(self, total: int, done: int, float_bytes: int) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._total, self._first, self._done = total, done, done
        self._limits = [float_bytes // share for share in SHARES]
        self._best: list[float | None] = [None] * len(SHARES)
        self._failed = 0
        self._since = self._said = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[progress.description]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("search", total=total, completed=done, words="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self) -> None:
        """From now on the rate is measured: the workers are ready."""
        self._since = time.monotonic()

    def say(self, words: str) -> None:
        """A line of its own."""
        self._console.print(words, markup=False, soft_wrap=True)

    def show(self, values: tuple[float, float] | None, *, now: bool = True) -> None:
        """One more trial: its (accuracy, bytes), None for a failure; `now` is False for those of earlier launches."""
        if values is None:
            self._failed += 1
        else:
            for i, limit in enumerate(self._limits):
                best = self._best[i]
                if values[1] <= limit and (best is None or values[0] > best):
                    self._best[i] = values[0]
        if not now:
            return
        self._done += 1
        self._bar.update(self._task, completed=self._done, words=self._words())
        quiet = not self._console.is_terminal
        if quiet and (time.monotonic() - self._said > QUIET_SECONDS or self._done == self._total):
            self._said = time.monotonic()
            self.say(f"{self._done}/{self._total}  {self._words()}")

    def _words(self) -> str:
        done = self._done - self._first
        rate = done / max(1e-9, time.monotonic() - self._since)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        best = ", ".join(
            f"1/{share}: {'-' if value is None else format(value, '.4f')}"
            for share, value in zip(SHARES, self._best, strict=True)
        )
        return f"{rate:.2f}/s  failed {self._failed}  best at {best}  {left:.0f} s left"
