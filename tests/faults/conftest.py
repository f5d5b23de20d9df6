"""What the searches that are disturbed run on: a database server, and a cluster, that may be stopped and killed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import RayCluster
from tests.faults.searching import Search
from tests.postgres import PostgresServer

Searching = Callable[..., Search]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that nothing disturbed: what every other one must equal."""
    folder = tmp_path_factory.mktemp("whole")
    Search(folder, f"sqlite:///{folder}/tiny.db").finish()
    return folder


@pytest.fixture
def searching(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Searching]:
    """Makes a search in a store of a kind; its driver is ended with the test."""
    made: list[Search] = []

    def make(store: str = "sqlite", **settings: Any) -> Search:
        server = request.getfixturevalue("server") if store == "postgresql" else None
        url = f"sqlite:///{tmp_path}/tiny.db" if server is None else server.fresh_database()
        made.append(Search(tmp_path, **{"url": url, "server": server, **settings}))
        return made[0]

    yield make
    for search in made:
        search.close()


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of these tests' own."""
    made = PostgresServer()
    yield made
    made.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """A cluster with two nodes for workers; whoever removes one adds another."""
    made = RayCluster(2)
    yield made
    made.close()
