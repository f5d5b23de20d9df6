"""A table of outcomes: what policies of one workload and space are worth one-shot, evaluated once and kept."""

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.racing import Outcomes, typical_loss
from objectives.score import Scorer
from objectives.splits import SplitName
from spaces.policy import Policy

WAIT_SECONDS = 120.0  # for another process that writes
MEMORY_SAMPLES = 2 * 10**7  # samples whose outcomes are kept in memory, too
LARGEST = 6e4  # of a loss that 16 bits hold

_TABLES = """
CREATE TABLE IF NOT EXISTS candidate (
    digest TEXT PRIMARY KEY, policy TEXT NOT NULL, bytes INTEGER NOT NULL, macs REAL NOT NULL, loss REAL NOT NULL,
    forwards INTEGER NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
    digest TEXT NOT NULL, split TEXT NOT NULL, outcomes BLOB NOT NULL, losses BLOB NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (digest, split)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, eq=False)
class Record:
    """What one policy is worth one-shot.

    Attributes:
        loss: KL to the float model's outputs on calibration data, corrected.
        forwards: sample-forwards on calibration data that stitching, correcting and `loss` took.
        seconds: that they took, when they were measured.
        outcomes: on the splits that were asked for.
        split_seconds: that these took.
    """

    policy: Policy
    bytes: int
    macs: float
    loss: float
    forwards: int
    seconds: float
    outcomes: dict[SplitName, Outcomes]
    split_seconds: dict[SplitName, float]

    @cached_property
    def digest(self) -> str:
        """The policy's."""
        return self.policy.digest

    @property
    def samples(self) -> int:
        """Of all its outcomes."""
        return sum(one.values.size for one in self.outcomes.values())

    def accuracy(self, split: SplitName) -> float:
        """Mean outcome on a split."""
        return float(self.outcomes[split].values.mean(dtype=np.float64))

    def divergence(self, split: SplitName) -> float:
        """KL to the float model's outputs on a split, as `typical_loss` has it."""
        return typical_loss(self.outcomes[split].losses)


class Recorded:
    """Answers what a policy is worth from a SQLite file; what is not there is evaluated with the scorer and kept.

    Each row is committed when it is known, so nothing is lost when the process is killed; several processes may share
    one file. All answers are as they come back from the file: losses have 16 bits.

    Args:
        path: of the file; made if there is none.
        scorer: of the workload and space that the file is for.
    """

    def __init__(self, path: Path, scorer: Scorer) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._scorer = scorer
        self._connection = connect(path)
        with self._connection:
            self._connection.executescript(_TABLES)
        self._kept: dict[str, Record] = {}
        self._free = MEMORY_SAMPLES
        self.evaluated = 0  # policies that were not in the file
        self.evaluating_seconds = 0.0  # that they took

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def policy(self, digest: str) -> Policy:
        """A policy that was evaluated before.

        Raises:
            KeyError: it was not.
        """
        found = self._connection.execute("SELECT policy FROM candidate WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            raise KeyError(f"policy {digest} was never evaluated")
        return Policy.model_validate_json(found[0])

    def evaluate(self, policy: Policy, splits: Sequence[SplitName]) -> Record:
        """What a policy is worth on some splits.

        Raises:
            CandidateError: it fails.
        """
        digest = policy.digest
        known = self._kept.get(digest)
        if known is None or any(split not in known.outcomes for split in splits):
            known = self._read(policy, digest)
            missing = [split for split in splits if known is None or split not in known.outcomes]
            if known is None or missing:
                self._measure(policy, digest, missing, new=known is None)
                known = self._read(policy, digest)
            if known is None:
                raise KeyError(f"policy {digest} was not kept")
            self._remember(digest, known)
        return known

    def _remember(self, digest: str, record: Record) -> None:
        before = self._kept.pop(digest, None)
        self._kept[digest] = record
        self._free += (before.samples if before else 0) - record.samples
        while self._free < 0 and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            self._free += self._kept.pop(oldest).samples

    def _read(self, policy: Policy, digest: str) -> Record | None:
        row = self._connection.execute(
            "SELECT bytes, macs, loss, forwards, seconds FROM candidate WHERE digest = ?", (digest,)
        ).fetchone()
        if row is None:
            return None
        outcomes: dict[SplitName, Outcomes] = {}
        seconds: dict[SplitName, float] = {}
        found = self._connection.execute(
            "SELECT split, outcomes, losses, seconds FROM outcome WHERE digest = ?", (digest,)
        )
        for split, values, losses, spent in found:
            outcomes[split] = Outcomes(_unpacked(values, "<f4"), _unpacked(losses, "<f2"))
            seconds[split] = spent
        size, macs, loss, forwards, own_seconds = row
        return Record(policy, size, macs, loss, forwards, own_seconds, outcomes, seconds)

    def _measure(self, policy: Policy, digest: str, splits: Sequence[SplitName], *, new: bool) -> None:
        """Evaluate; of two processes that do so at once, the first one's answer stays."""
        start = clock = time.perf_counter()
        one = self._scorer.one_shot(policy)
        seconds = time.perf_counter() - clock
        rows = []
        for split in splits:
            clock = time.perf_counter()
            found = self._scorer.outcomes(one.model, split)
            blobs = (_packed(found.values, "<f4"), _packed(found.losses, "<f2"))
            rows.append((digest, split, *blobs, time.perf_counter() - clock))
        self.evaluated += new
        self.evaluating_seconds += time.perf_counter() - start
        numbers = (one.bytes, one.macs, one.calibration_loss, one.forwards, seconds)
        with self._connection:
            if new:
                self._connection.execute(
                    "INSERT OR IGNORE INTO candidate VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (digest, policy.model_dump_json(), *numbers),
                )
            self._connection.executemany("INSERT OR IGNORE INTO outcome VALUES (?, ?, ?, ?, ?)", rows)


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a file that several processes read and write."""
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a lost power supply may cost the last rows, never the file
    return connection


@contextlib.contextmanager
def recorded(path: Path, scorer: Scorer) -> Iterator[Recorded]:
    """A table that is closed at the end."""
    with contextlib.closing(Recorded(path, scorer)) as table:
        yield table


def _packed(numbers: NDArray[np.float32], kind: str) -> bytes:
    return zlib.compress(np.ascontiguousarray(np.minimum(numbers, LARGEST), dtype=kind).tobytes(), 1)


def _unpacked(blob: bytes, kind: str) -> NDArray[np.float32]:
    return np.frombuffer(zlib.decompress(blob), dtype=kind).astype(np.float32)
