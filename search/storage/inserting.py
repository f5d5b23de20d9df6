"""Inserting many rows in one go, by the quickest way that each database has."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection, Table, insert
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql.dml import Insert

_FEW: Final = 32  # rows up to which one INSERT of them all is quicker than COPY, which goes back and forth


def insert_rows(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert new rows: COPY with psycopg where they are many, else one statement for all of them.

    Args:
        connection: the transaction.
        table: where they go.
        columns: names of the columns that are given.
        rows: values as the database's driver takes them, in the order of the columns.
    """
    driver = connection.dialect.driver
    if not rows:
        return
    if driver == "psycopg" and len(rows) > _FEW:
        raw = connection.connection.driver_connection
        assert raw is not None  # noqa: S101  # the transaction has begun
        with raw.cursor() as cursor, cursor.copy(f"COPY {table.name} ({', '.join(columns)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    elif driver == "psycopg":
        connection.exec_driver_sql(_insert_few(table.name, columns, len(rows)), tuple(chain.from_iterable(rows)))
    elif driver in ("pysqlite", "pymysql"):
        connection.exec_driver_sql(_insert(driver, table.name, columns), list(rows))
    else:
        connection.execute(insert(table), [dict(zip(columns, row, strict=True)) for row in rows])


@cache
def _insert(driver: str, table: str, columns: tuple[str, ...]) -> str:
    mark = "?" if driver == "pysqlite" else "%s"
    named = ", ".join(f"`{name}`" for name in columns)  # `key` is a word of MySQL's own
    return f"INSERT INTO {table} ({named}) VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608


@cache
def _insert_few(table: str, columns: tuple[str, ...], rows: int) -> str:
    row = f"({', '.join(['%s'] * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * rows)}"  # noqa: S608


def put_attrs(connection: Connection, table: Table, owner: str, attrs: Mapping[int, Mapping[str, Any]]) -> None:
    """Insert attributes, or replace those that are there, in one statement.

    Args:
        connection: the transaction.
        table: one of Optuna's attribute tables.
        owner: its column that says whose attribute it is: `trial_id` or `study_id`.
        attrs: JSON values by name, by the id of their owner.
    """
    rows = [(owner_id, key, json.dumps(value)) for owner_id, own in attrs.items() for key, value in own.items()]
    columns = (owner, "key", "value_json")
    if connection.dialect.driver == "psycopg":
        replaced = f" ON CONFLICT ({owner}, key) DO UPDATE SET value_json = excluded.value_json"
        for first in range(0, len(rows), _FEW):
            some = rows[first : first + _FEW]
            few = _insert_few(table.name, columns, len(some)) + replaced
            connection.exec_driver_sql(few, tuple(chain.from_iterable(some)))
    elif rows:
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        connection.execute(_upsert(connection.dialect.name, table, owner), named)


@cache
def _upsert(dialect: str, table: Table, owner: str) -> Insert:
    if dialect in ("mysql", "mariadb"):
        row = mysql.insert(table)
        return row.on_duplicate_key_update(value_json=row.inserted.value_json)
    new = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    key = [table.c[owner], table.c.key]
    return new.on_conflict_do_update(index_elements=key, set_={"value_json": new.excluded.value_json})
