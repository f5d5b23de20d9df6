"""Outcomes per sample of told trials, in a table of our own beside Optuna's: what later races are judged against."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, Table, delete, exists, inspect, select

from objectives.racing import Outcomes
from search.storage.inserting import insert_rows
from search.storage.rows import ENDED, TRIALS

MOST_LOSS: Final = float(np.finfo(np.float16).max)
_LONG: Final = LargeBinary(2**31 - 1)  # MySQL's plain BLOB ends at 64 kB

TABLE: Final = Table(
    "slimfront_outcomes",
    MetaData(),
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rung", Integer, primary_key=True, autoincrement=False),
    Column("sample_values", _LONG, nullable=False),  # a bit each where all are 0 or 1, else float32
    Column("losses", _LONG, nullable=False),  # float16
)


def encode(outcomes: Outcomes) -> tuple[bytes, bytes]:
    """Values and losses as they are stored."""
    values = outcomes.values
    plain = bool(((values == 0) | (values == 1)).all())
    losses = np.nan_to_num(outcomes.losses, nan=MOST_LOSS).clip(-MOST_LOSS, MOST_LOSS)
    stored = np.packbits(values.astype(bool)) if plain else values.astype("<f4")
    return stored.tobytes(), losses.astype("<f2").tobytes()


def decode(values: bytes, losses: bytes) -> Outcomes:
    """What `encode` gave: the values as they were, the losses rounded to float16."""
    found = np.frombuffer(losses, "<f2").astype(np.float32)
    if len(values) == 4 * found.size:
        return Outcomes(np.frombuffer(values, "<f4").astype(np.float32), found)
    bits = np.unpackbits(np.frombuffer(values, np.uint8), count=found.size)
    return Outcomes(bits.astype(np.float32), found)


def replace_outcomes(connection: Connection, study_id: int, outcomes: Mapping[int, Mapping[int, Outcomes]]) -> None:
    """Store the outcomes of trials by number and rung, in place of any that are there of these trials."""
    if not outcomes:
        return
    connection.execute(delete(TABLE).where(TABLE.c.study_id == study_id, TABLE.c.number.in_(list(outcomes))))
    rows = [(study_id, number, rung, *encode(one)) for number, own in outcomes.items() for rung, one in own.items()]
    insert_rows(connection, TABLE, ("study_id", "number", "rung", "sample_values", "losses"), rows)


def read_outcomes(connection: Connection, study_id: int) -> dict[int, dict[int, Outcomes]]:
    """All outcomes of a study by trial number and rung, in one statement; none where nothing was ever stored."""
    if not inspect(connection).has_table(TABLE.name):
        return {}
    columns = TABLE.c.number, TABLE.c.rung, TABLE.c.sample_values, TABLE.c.losses
    found: dict[int, dict[int, Outcomes]] = {}
    for number, rung, values, losses in connection.execute(select(*columns).where(TABLE.c.study_id == study_id)):
        found.setdefault(number, {})[rung] = decode(values, losses)
    return found


def forget_outcomes(connection: Connection, study_id: int) -> None:
    """Delete all outcomes of a study none of whose trials has ended: a deleted study of the same id left them."""
    ended = exists().where(TRIALS.c.study_id == study_id, TRIALS.c.state.in_(ENDED))
    connection.execute(delete(TABLE).where(TABLE.c.study_id == study_id, ~ended))
