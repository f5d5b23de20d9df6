"""Study databases of every kind to test with, and made-up trials to fill them with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.storage import End, Start, Storage
from tests import mariadb, postgres

KINDS = ("sqlite", "postgresql", "mariadb")
MARIADB_SLOWLY = ("sqlite", "postgresql", pytest.param("mariadb", marks=pytest.mark.slow))
DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "layers.0/ratio": FloatDistribution(0.0, 0.9, step=0.1),
    "layers.0/bits": IntDistribution(2, 8),
    "layers.0/kind": CategoricalDistribution(["none", None, True, 3]),
    "temperature": FloatDistribution(1.0, 20.0, log=True),
}
PARAMS: list[dict[str, Any]] = [
    {"layers.0/ratio": 0.3, "layers.0/bits": 4, "layers.0/kind": "none", "temperature": 4.0},
    {"layers.0/ratio": 0.9, "layers.0/bits": 8, "layers.0/kind": None, "temperature": 1.0 / 3 + 1},
    {"layers.0/ratio": 0.0, "layers.0/bits": 2, "layers.0/kind": True, "temperature": 20.0},
]
USER = {"digest": "ab" * 32, "origin": "uniform", "text": "größer ≥ 1\0\t\\N\n", "nested": {"a": [1, 2.5, None]}}
SYSTEM = {"nsga:generation": 3}
ENDS: list[tuple[TrialState, list[float] | None]] = [
    (TrialState.COMPLETE, [0.98, 695360.0]),
    (TrialState.PRUNED, [float("inf"), float("-inf")]),
    (TrialState.FAIL, None),
]


def fresh_url(kind: str, folder: Path, name: str = "study.db") -> str:
    """The URL of a new database of a kind; the test is skipped where there is no such server to be had."""
    match kind:
        case "sqlite":
            return f"sqlite:///{folder}/{name}"
        case "postgresql":
            return postgres.fresh_database()
        case _:
            return mariadb.fresh_database()


def start(number: int, study_attrs: Mapping[str, Any] | None = None) -> Start:
    """The start of a made-up trial."""
    return Start(number, PARAMS[number % len(PARAMS)], DISTRIBUTIONS, USER, SYSTEM, study_attrs or {})


def end(number: int) -> End:
    """How it ended."""
    state, values = ENDS[number % len(ENDS)]
    return End(number, state, values, {"rung": number, "origin": "told"})


def empty(number: int) -> Start:
    """The start of a trial of which nothing is known."""
    return Start(number, {}, {}, {}, {})


def complete(number: int, values: Sequence[float] = (1.0, 2.0), **attrs: Any) -> End:
    """The end of a trial that has a score."""
    return End(number, TrialState.COMPLETE, values, attrs)


def fill(storage: Storage, study_id: int) -> None:
    """Store three trials, one of each end, in a transaction each for start and end."""
    for number in range(len(ENDS)):
        storage.write_trials(study_id, [start(number, {"asked": number})], [])
        storage.write_trials(study_id, [], [end(number)])
