"""Optuna's tables as our statements write them: another Optuna, with other tables, is refused."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from optuna.storages._rdb.models import BaseModel
from sqlalchemy import Enum, MetaData

KNOWN: Final = "5.0"

_TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "studies": (
        "study_id INTEGER not null key",
        "study_name VARCHAR(512) not null",
    ),
    "study_directions": (
        "study_direction_id INTEGER not null key",
        "direction ENUM(NOT_SET MINIMIZE MAXIMIZE) not null",
        "study_id INTEGER not null",
        "objective INTEGER not null",
    ),
    "study_user_attributes": (
        "study_user_attribute_id INTEGER not null key",
        "study_id INTEGER",
        "key VARCHAR(512)",
        "value_json TEXT",
    ),
    "study_system_attributes": (
        "study_system_attribute_id INTEGER not null key",
        "study_id INTEGER",
        "key VARCHAR(512)",
        "value_json TEXT",
    ),
    "trials": (
        "trial_id INTEGER not null key",
        "number INTEGER",
        "study_id INTEGER",
        "state ENUM(RUNNING COMPLETE PRUNED FAIL WAITING) not null",
        "datetime_start DATETIME",
        "datetime_complete DATETIME",
    ),
    "trial_user_attributes": (
        "trial_user_attribute_id INTEGER not null key",
        "trial_id INTEGER",
        "key VARCHAR(512)",
        "value_json TEXT",
    ),
    "trial_system_attributes": (
        "trial_system_attribute_id INTEGER not null key",
        "trial_id INTEGER",
        "key VARCHAR(512)",
        "value_json TEXT",
    ),
    "trial_params": (
        "param_id INTEGER not null key",
        "trial_id INTEGER",
        "param_name VARCHAR(512)",
        "param_value FLOAT",
        "distribution_json TEXT",
    ),
    "trial_values": (
        "trial_value_id INTEGER not null key",
        "trial_id INTEGER not null",
        "objective INTEGER not null",
        "value FLOAT",
        "value_type ENUM(FINITE INF_POS INF_NEG) not null",
    ),
    "trial_intermediate_values": (
        "trial_intermediate_value_id INTEGER not null key",
        "trial_id INTEGER not null",
        "step INTEGER not null",
        "intermediate_value FLOAT",
        "intermediate_value_type ENUM(FINITE INF_POS INF_NEG NAN) not null",
    ),
    "trial_heartbeats": (
        "trial_heartbeat_id INTEGER not null key",
        "trial_id INTEGER not null",
        "heartbeat DATETIME not null",
    ),
    "version_info": (
        "version_info_id INTEGER not null key",
        "schema_version INTEGER",
        "library_version VARCHAR(256)",
    ),
}


def optuna_problem(metadata: MetaData = BaseModel.metadata) -> str | None:
    """What the installed Optuna keeps otherwise than we write it, and what to do; None if nothing.

    Args:
        metadata: its tables.
    """
    held = {name: tuple(map(_words, table.columns)) for name, table in metadata.tables.items()}
    odd = sorted(name for name in held.keys() | _TABLES.keys() if held.get(name) != _TABLES.get(name))
    if not odd:
        return None
    first = odd[0]
    differing = sorted(set(held.get(first, ())) ^ set(_TABLES.get(first, ())))
    return (
        f"Optuna {version('optuna')} keeps its tables otherwise than Slimfront writes them ({', '.join(odd)}; first: "
        f"{', '.join(differing) or 'the order of columns'}): pip install 'optuna~={KNOWN}.0', or a newer Slimfront"
    )


def _words(column: Any) -> str:
    kind = f"ENUM({' '.join(column.type.enums)})" if isinstance(column.type, Enum) else str(column.type)
    return f"{column.name} {kind}{'' if column.nullable else ' not null'}{' key' if column.primary_key else ''}"
