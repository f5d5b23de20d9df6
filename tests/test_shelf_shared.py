"""Shelves of nodes that share: a layer that one has made is found by all, whole or not at all."""

import shutil
from pathlib import Path

import pytest

from compress.shared import Shared
from compress.shelf import Shelf
from tests.test_shelf import KEYS, LAYERS, content, files, same


class TestShared:
    def test_what_one_node_puts_another_gets_and_keeps(self, tmp_path: Path) -> None:
        one, other = (Shelf(tmp_path / name, 10**6, Shared(str(tmp_path / "shared"))) for name in "ab")
        for key, layer in zip(KEYS, LAYERS.values(), strict=False):
            one.put(key, layer)
        assert one._shared is not None
        assert one._shared.flush(10)
        for key, layer in zip(KEYS, LAYERS.values(), strict=False):
            assert same(other.get(key), layer)
        assert content(tmp_path / "a") == content(tmp_path / "b")
        shutil.rmtree(tmp_path / "shared")
        assert same(other.get(KEYS[0]), LAYERS["float32"])

    def test_a_shelf_that_may_keep_nothing_still_gets(self, tmp_path: Path) -> None:
        shared = Shared(str(tmp_path / "shared"))
        Shelf(tmp_path / "a", 0, shared).put(KEYS[0], LAYERS["groups"])
        assert shared.flush(10)
        assert same(Shelf(tmp_path / "b", 0, shared).get(KEYS[0]), LAYERS["groups"])
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize("damage", ["bit", "half", "empty", "text", "another's"])
    def test_a_damaged_one_is_none_and_is_put_anew(self, damage: str, tmp_path: Path) -> None:
        shared = Shared(str(tmp_path / "shared"))
        first = Shelf(tmp_path / "a", 10**6, shared)
        for key in KEYS[:2]:
            first.put(key, LAYERS["codebook"])
        assert shared.flush(10)
        path, other = files(tmp_path / "shared" / "layers")
        blob = path.read_bytes()
        flipped = blob[:-3] + bytes([blob[-3] ^ 4]) + blob[-2:]
        damaged = {"bit": flipped, "half": blob[: len(blob) // 2], "empty": b"", "text": b"hello"}
        path.write_bytes(damaged.get(damage, other.read_bytes()))
        shelf = Shelf(tmp_path / "b", 10**6, shared)
        assert shelf.get(KEYS[0]) is None
        shelf.put(KEYS[0], LAYERS["codebook"])
        assert shared.flush(10)
        assert path.read_bytes() == blob

    def test_a_damaged_local_one_is_fetched_again(self, tmp_path: Path) -> None:
        shared = Shared(str(tmp_path / "shared"))
        shelf = Shelf(tmp_path / "a", 10**6, shared)
        shelf.put(KEYS[0], LAYERS["codebook"])
        assert shared.flush(10)
        (path,) = files(tmp_path / "a")
        blob = path.read_bytes()
        path.write_bytes(blob[:100])
        assert same(shelf.get(KEYS[0]), LAYERS["codebook"])
        assert path.read_bytes() == blob
