"""A resumed search is told from another one by what its study says of the versions and the device it was started on."""

from pathlib import Path
from typing import Any

import pytest

from search.describe import versions
from search.loop import launch
from search.storage import open_storage
from spaces.errors import ConfigError
from tests.searches import STUDY, attrs_of, tiny, url_of


def rewrite(folder: Path, attrs: dict[str, Any]) -> None:
    storage = open_storage(url_of(folder), create=False)
    try:
        storage.set_study_attrs(storage.get_study_id_from_name(STUDY), attrs)
    finally:
        storage.close()


def test_the_versions_that_a_result_depends_on_are_kept(tmp_path: Path) -> None:
    launch(tiny(tmp_path, 3))
    assert attrs_of(tmp_path)["versions"] == versions()
    assert {"slimfront", "torch", "optuna", "ray", "numpy", "python"} == set(versions())


def test_other_versions_are_said_and_the_search_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(tiny(tmp_path, 3))
    rewrite(tmp_path, {"versions": {**versions(), "torch": "2.9.0"}})
    capsys.readouterr()
    assert launch(tiny(tmp_path, 5)).front.states == {"COMPLETE": 5}
    assert 'torch: stored "2.9.0", given' in capsys.readouterr().err


def test_another_device_is_refused(tmp_path: Path) -> None:
    launch(tiny(tmp_path, 3))
    rewrite(tmp_path, {"device": "cuda"})
    with pytest.raises(ConfigError, match='device: stored "cuda", given "cpu"'):
        launch(tiny(tmp_path, 5))
