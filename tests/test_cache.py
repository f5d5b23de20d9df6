"""A packed file that this machine lacks comes from what the study's nodes shared."""

import shutil
from pathlib import Path

import pytest

from compress.files import artifact_path
from search.cache import cache_of, default_cache
from search.config_sections import CacheConfig
from search.export import apply, policy_files
from search.loop import launch
from spaces.policy import PolicyFile
from tests.searches import attrs_of, rows_of, tiny, url_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search whose own cache folder is gone, beside what it shared."""
    folder = tmp_path_factory.mktemp("search")
    cache = CacheConfig(folder=str(folder / "cache"), shared=str(folder / "shared"))
    assert launch(tiny(folder, 5, cache=cache)).front.points
    shutil.rmtree(folder / "cache")
    return folder


@pytest.fixture
def policy(folder: Path) -> PolicyFile:
    from search.front import front

    return next(iter(policy_files(front("tiny", url_of(folder)).points, None, url_of(folder))))


def test_it_is_fetched(folder: Path, policy: PolicyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "own"))
    assert attrs_of(folder)["shared"] == str(folder / "shared")
    found = cache_of(policy, None, url_of(folder))
    assert found == default_cache() == tmp_path / "own"
    assert apply(policy, tmp_path / "m.safetensors", cache=found).stat().st_size == policy.artifact.bytes


def test_unless_it_is_damaged(
    folder: Path, policy: PolicyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "own"))
    path = artifact_path(folder / "shared", policy.artifact.sha256 or "")
    blob = path.read_bytes()
    path.write_bytes(blob[:-1])
    try:
        assert cache_of(policy, None, url_of(folder)) == folder / "cache"
    finally:
        path.write_bytes(blob)
    assert not (tmp_path / "own").exists()


def test_a_shared_folder_changes_no_study(folder: Path, tmp_path: Path) -> None:
    launch(tiny(tmp_path, 5))
    assert rows_of(tmp_path) == rows_of(folder)
