"""Searches replayed on recorded outcomes, kept as sequences of steps and extended where more are wished."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.searching.racing import on_front, run_race
from benchmarks.searching.recorded import Record, Recorded, connect
from benchmarks.searching.samplers import MOST, PROPOSERS, base_of, given, searcher_of
from benchmarks.searching.searcher import Offer, Searcher, Told
from benchmarks.searching.setting import Setting
from objectives.racing import Outcomes
from objectives.score import RungScore
from search.rungs import History

_TABLES = """
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, seed INTEGER NOT NULL, given TEXT NOT NULL, ended INTEGER NOT NULL,
    UNIQUE (name, seed, given)
);
CREATE TABLE IF NOT EXISTS step (
    run INTEGER NOT NULL, number INTEGER NOT NULL, step TEXT NOT NULL, note TEXT NOT NULL, PRIMARY KEY (run, number)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Step:
    """One proposal and what came of it.

    Attributes:
        accuracy: as it was told: an estimate where it was stopped; None where it was not validated.
        test: accuracy on the test split, looked at by nobody who searches; None as well.
        samples: that it was scored on.
        stopped: whether a race stopped it; `wrongly` where it would have been on the front of all in full.
        forwards: sample-forwards that proposing and evaluating it took.
        evaluations: how many full evaluations it counts as.
        asked_seconds: that proposing it took here; `seconds` those of its evaluation, when it was recorded.
    """

    digest: str
    origin: str
    bytes: int
    accuracy: float | None
    test: float | None
    samples: int
    stopped: bool
    wrongly: bool
    forwards: float
    evaluations: float
    asked_seconds: float
    seconds: float


class Runs:
    """The runs of a workload in a SQLite file; each step is committed when it is known."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = connect(path)
        with self._connection:
            self._connection.executescript(_TABLES)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def open(self, name: str, seed: int, given: str) -> int:
        """The id of a run, made if there is none."""
        with self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO run (name, seed, given, ended) VALUES (?, ?, ?, 0)", (name, seed, given)
            )
        return int(self._row("SELECT id FROM run WHERE name = ? AND seed = ? AND given = ?", (name, seed, given))[0])

    def _row(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._connection.execute(query, values).fetchone()
        return row

    def ended(self, run: int) -> bool:
        """Whether its searcher had nothing more to propose."""
        return bool(self._row("SELECT ended FROM run WHERE id = ?", (run,))[0])

    def end(self, run: int) -> None:
        """Note that its searcher has nothing more to propose."""
        with self._connection:
            self._connection.execute("UPDATE run SET ended = 1 WHERE id = ?", (run,))

    def steps(self, run: int) -> list[tuple[Step, dict[str, Any]]]:
        """The steps of a run with the searcher's notes, in order."""
        rows = self._connection.execute("SELECT step, note FROM step WHERE run = ? ORDER BY number", (run,))
        return [(Step(**json.loads(step)), json.loads(note)) for step, note in rows]

    def add(self, run: int, number: int, step: Step, note: Mapping[str, Any]) -> None:
        """Keep a step; one that another process has kept meanwhile is the same."""
        texts = (json.dumps(step.__dict__), json.dumps(dict(note)))
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO step VALUES (?, ?, ?, ?)", (run, number, *texts))


@dataclass(frozen=True)
class Rules:
    """How searches are played.

    Attributes:
        window: candidates that may be asked and not yet told, for those searchers whom a real search would ask.
        confidence: of races.
        tag: of our own code, which changes.
    """

    window: int
    confidence: float
    tag: str = ""


def play(
    setting: Setting, table: Recorded, runs: Runs, name: str, seed: int, evaluations: int, rules: Rules
) -> list[Step]:
    """A searcher's steps until they count as so many evaluations: those kept, and new ones where they do not reach.

    Args:
        setting: what is searched.
        table: of its outcomes.
        runs: where steps are kept.
        name: of the searcher.
        seed: of the searcher.
        evaluations: how many.
        rules: of the play.
    """
    own, _, _ = base_of(name)
    evaluations = min(evaluations, MOST.get(own, evaluations))
    run = runs.open(name, seed, given(name, setting, rules.window, rules.confidence, rules.tag))
    kept = runs.steps(run)
    steps: list[Step] = []
    for step, _ in kept:
        if _reached(steps, evaluations):
            return steps
        steps.append(step)
    if _reached(steps, evaluations) or runs.ended(run):
        return steps
    game = _Game(setting, table, name, seed, rules)
    for step, note in kept:
        game.again(step, note)
    for step, news in game.go_on():
        runs.add(run, len(steps), step, news)
        steps.append(step)
        if _reached(steps, evaluations):
            return steps
    runs.end(run)
    return steps


def _reached(steps: list[Step], evaluations: int) -> bool:
    return sum(step.evaluations for step in steps) >= evaluations - 1e-9


class _Game:
    """A searcher at play: what it proposes is looked up, raced and told."""

    def __init__(self, setting: Setting, table: Recorded, name: str, seed: int, rules: Rules) -> None:
        own, _, races = base_of(name)
        self._setting, self._table = setting, table
        self._window = rules.window if own in PROPOSERS else 1
        self._searcher: Searcher = searcher_of(name, setting, table, seed)
        self._history = History(1, 1.0, rules.confidence if races else None)
        self._results: list[tuple[Told, Outcomes | None] | None] = []  # of all steps, told or not
        self._told = 0
        self._seen: dict[str, tuple[Told, Outcomes | None]] = {}
        self._full: list[tuple[float, int]] = []  # true accuracies and bytes of all that were proposed

    def again(self, step: Step, note: Mapping[str, Any]) -> None:
        """Take a step that was kept.

        Raises:
            ValueError: the searcher would now propose something else.
        """
        number = len(self._results)
        self._tell_until(number - self._window)
        offer = self._searcher.again(number, self._table.policy(step.digest), note)
        found = None if offer is None else self._take(offer, 0.0)
        if found is None or found.digest != step.digest or found.accuracy != step.accuracy:
            raise ValueError(f"step {number} is not what was kept: the code has changed; give another --tag")

    def go_on(self) -> Iterator[tuple[Step, Mapping[str, Any]]]:
        """Propose, evaluate and tell, on and on; the steps with the searcher's notes."""
        while True:
            number = len(self._results)
            self._tell_until(number - self._window)
            clock, before = time.perf_counter(), self._table.evaluating_seconds
            offer = self._searcher.propose(number)
            if offer is None:
                return
            looked = self._table.evaluating_seconds - before  # at what only had to be recorded
            yield self._take(offer, time.perf_counter() - clock - looked), offer.note

    def _tell_until(self, number: int) -> None:
        """Show the searcher and the history that judges it all results up to a number."""
        while self._told <= number:
            result = self._results[self._told]
            if result is not None:
                told, outcomes = result
                self._searcher.tell(self._told, told)
                self._history.tell(self._told, (told.rung,), (outcomes,), told.stopped)
            self._told += 1

    def _take(self, offer: Offer, asked_seconds: float) -> Step:
        """Evaluate an offer; a policy that was evaluated before takes nothing and is told the same."""
        digest = offer.policy.digest
        repeated = digest in self._seen
        if not offer.validated:
            record = self._table.evaluate(offer.policy, [])
            self._results.append(None)
            return Step(
                digest=digest,
                origin=offer.origin,
                bytes=record.bytes,
                accuracy=None,
                test=None,
                samples=0,
                stopped=False,
                wrongly=False,
                forwards=offer.spent or 0.0,
                evaluations=1.0,
                asked_seconds=asked_seconds,
                seconds=offer.seconds,
            )
        split, samples = self._setting.split, self._setting.samples
        record = self._table.evaluate(offer.policy, [split, "test"])
        if not repeated:
            self._seen[digest] = self._race(offer, record)
        told, _ = self._seen[digest]
        self._results.append(self._seen[digest])
        true = record.accuracy(split), record.bytes
        wrongly = told.stopped and not repeated and on_front(*true, self._full)
        self._full.append(true)
        own = offer.spent is None
        forwards = (0.0 if own else offer.spent or 0.0) + (not repeated) * told.rung.samples
        seconds = offer.seconds + (not repeated) * record.split_seconds[split] * told.rung.samples / samples
        if own and not repeated:
            forwards, seconds = forwards + record.forwards, seconds + record.seconds
        return Step(
            digest=digest,
            origin=offer.origin,
            bytes=record.bytes,
            accuracy=told.accuracy,
            test=record.accuracy("test"),
            samples=told.rung.samples,
            stopped=told.stopped,
            wrongly=wrongly,
            forwards=forwards,
            evaluations=forwards / (record.forwards + samples) if offer.counted else 1.0,
            asked_seconds=asked_seconds,
            seconds=seconds,
        )

    def _race(self, offer: Offer, record: Record) -> tuple[Told, Outcomes | None]:
        """What a policy's evaluation ends with: all of it, or what a race sees."""
        full = record.outcomes[self._setting.split]
        race = self._history.judges(always=offer.origin == "uniform").race(0, record.bytes)
        finish = run_race(full, race, self._setting.config.chunk)
        rung = RungScore(
            rung=0,
            accuracy=finish.accuracy,
            bytes=record.bytes,
            macs=record.macs,
            loss=record.loss,
            seconds=record.seconds,
            validation_loss=finish.loss,
            samples=finish.samples,
            forwards=record.forwards + finish.samples,
            backwards=0,
        )
        return Told(finish.accuracy, record.bytes, rung, finish.stopped), None if finish.stopped else full
