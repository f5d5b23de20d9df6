"""A database server of the tests ends with the test run, also where that is killed, and its files go."""

import time
from pathlib import Path

import pytest

from tests import mariadb, postgres, processes

SCRIPT = """
import sys
from tests.{module} import {name}
server = {name}()
print(server.folder, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(("module", "name"), [("postgres", "PostgresServer"), ("mariadb", "MariaServer")])
def test_a_killed_run_leaves_no_server(module: str, name: str) -> None:
    {"postgres": postgres, "mariadb": mariadb}[module].fresh_database()  # skips where there is no such server
    run = processes.start(SCRIPT.format(module=module, name=name))
    assert run.stdout is not None
    folder = Path(run.stdout.readline().strip())
    assert folder.is_dir()
    assert processes.naming(str(folder))

    run.kill()
    run.communicate()

    end = time.monotonic() + 20
    while time.monotonic() < end and (folder.exists() or processes.naming(str(folder))):
        time.sleep(0.1)
    assert not folder.exists()
    assert not processes.naming(str(folder))
