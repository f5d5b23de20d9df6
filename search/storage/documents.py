"""JSON documents of a study that Optuna's attribute tables have no room for, in a table of our own beside them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, Text, delete, inspect, select
from sqlalchemy.dialects.mysql import LONGTEXT

from search.storage.inserting import insert_rows

TABLE: Final = Table(
    "slimfront_documents",
    MetaData(),
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("key", String(64), primary_key=True),
    Column("value_json", Text().with_variant(LONGTEXT(), "mysql", "mariadb"), nullable=False),
)


def put_documents(connection: Connection, study_id: int, documents: Mapping[str, Any]) -> None:
    """Store JSON values by name, in place of those of these names."""
    if not documents:
        return
    rows = [(study_id, key, json.dumps(value)) for key, value in documents.items()]
    connection.execute(delete(TABLE).where(TABLE.c.study_id == study_id, TABLE.c.key.in_(list(documents))))
    insert_rows(connection, TABLE, ("study_id", "key", "value_json"), rows)


def read_documents(connection: Connection, study_id: int, keys: Sequence[str]) -> dict[str, Any]:
    """The documents of these names, as far as there are any."""
    if not inspect(connection).has_table(TABLE.name):
        return {}
    wanted = select(TABLE.c.key, TABLE.c.value_json).where(TABLE.c.study_id == study_id, TABLE.c.key.in_(keys))
    return {key: json.loads(text) for key, text in connection.execute(wanted)}
