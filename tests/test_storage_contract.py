"""What Optuna asks of every storage, by its own tests, on every kind of database."""

import pickle
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from sqlalchemy import text

from search.storage import Storage, open_storage
from tests.stores import MARIADB_SLOWLY, fresh_url


class TestOptunaContract(StorageTestCase):
    """Optuna's own."""

    @pytest.fixture(params=MARIADB_SLOWLY)
    def storage(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
        made = open_storage(fresh_url(request.param, tmp_path), create=True)
        if request.param == "mariadb":  # Optuna's DATETIME columns hold whole seconds there, its tests compare finer
            with made.engine.begin() as connection:
                for name in ("datetime_start", "datetime_complete"):
                    connection.execute(text(f"alter table trials modify {name} datetime(6)"))
        yield made
        made.close()

    def test_pickle_storage(self, storage: BaseStorage) -> None:
        """As Optuna's, which leaves what it unpickles to the garbage collector, open."""
        assert isinstance(storage, Storage)
        study_id = storage.create_new_study([StudyDirection.MINIMIZE])
        storage.set_study_system_attr(study_id, "key", "pickle")

        with closing(pickle.loads(pickle.dumps(storage))) as restored:
            assert restored.get_study_system_attrs(study_id) == {"key": "pickle"}
