"""A bounded folder that is full is not looked through for each file that is put."""

import os
from pathlib import Path

import pytest

from compress.bounded import BoundedFolder
from tests.test_shelf import KEYS, files, total


def aged(folder: Path, keys: list[str]) -> None:
    """As if these were last used long ago, the first of them first."""
    for i, key in enumerate(keys):
        os.utime(folder / key[:2] / f"{key}.safetensors", (1000.0 + i, 1000.0 + i))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    looks: list[None] = []
    look = BoundedFolder._look

    def counting(self: BoundedFolder) -> None:
        looks.append(None)
        look(self)

    monkeypatch.setattr(BoundedFolder, "_look", counting)
    return looks


@pytest.mark.parametrize("spare", [True, False])
def test_at_most_one_for_each_tenth_of_the_bound(spare: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = counted(monkeypatch)
    for process in range(2):  # the second finds a full folder
        folder = BoundedFolder(tmp_path, 100_000, spare=spare)
        for i in range(400):
            folder.put(f"{i % 10:02d}-{process}-{i}", bytes(1000))
            assert i % 40 or total(tmp_path) <= 100_000
    assert total(tmp_path) >= 99_000
    assert 80 <= len(looks) <= 84


def test_several_processes_keep_to_the_bound_roughly(tmp_path: Path) -> None:
    folders = [BoundedFolder(tmp_path, 100_000, spare=False) for _ in range(4)]
    for i in range(200):
        for process, folder in enumerate(folders):
            folder.put(f"{i % 10:02d}-{process}-{i}", bytes(1000))
        assert i % 20 or total(tmp_path) <= 140_000


def test_what_was_used_since_the_look_stays(tmp_path: Path) -> None:
    folder = BoundedFolder(tmp_path, 20_000, spare=False)
    for i in range(20):
        folder.put(KEYS[i], bytes(1000))
    aged(tmp_path, KEYS)
    later = BoundedFolder(tmp_path, 20_000, spare=False)
    later.put("ff" * 32, bytes(500))  # looks, and the first one goes
    folder.use(KEYS[1])
    later.put("fe" * 32, bytes(1500))
    assert {path.stem for path in files(tmp_path)} == {*KEYS[3:], KEYS[1], "ff" * 32, "fe" * 32}
