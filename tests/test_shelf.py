"""The shelf of compressed layers: whole layers or none, within its bound, whatever other processes do to the folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress.coding import CodedWeight, Kind
from compress.files import ABANDONED_SECONDS
from compress.layer import CompressedLayer, Cost
from compress.quantization.uniform import Grid
from compress.shelf import KEY, Shelf
from tests.models import random_tensor

KEYS = [f"{i:02x}" * 32 for i in range(20)]
COST = Cost(bytes=7, error=0.1 + 0.2, note="pruned by magnitude: größer")


def codes(kind: torch.dtype = torch.int8, low: int = -3, high: int = 4) -> torch.Tensor:
    numbers = torch.randint(low, high, (4, 6), generator=torch.Generator().manual_seed(0))
    return numbers.to(kind)


STEP = torch.tensor([[0.5], [0.25], [1.0], [0.0]])
LAYERS = {
    "float32": CompressedLayer(CodedWeight(Kind.FLOAT32, random_tensor(4, 6), 32), COST),
    "float16": CompressedLayer(CodedWeight(Kind.FLOAT16, random_tensor(4, 6).half(), 16), Cost(3, 0.0)),
    "symmetric": CompressedLayer(CodedWeight(Kind.UNIFORM, codes(), 3, grid=Grid(STEP, -3)), COST),
    "asymmetric": CompressedLayer(
        CodedWeight(Kind.UNIFORM, codes(torch.int16), 3, grid=Grid(STEP, 5, torch.full((4, 1), -3, dtype=torch.int16))),
        COST,
        kept=codes() != 0,
        shift=random_tensor(4),
    ),
    "one step": CompressedLayer(
        CodedWeight(Kind.UNIFORM, codes(), 3, grid=Grid(torch.ones(5, 10)[:1, :1], 0)), COST
    ),  # as a slice has it
    "groups": CompressedLayer(CodedWeight(Kind.UNIFORM, codes(), 3, grid=Grid(STEP.expand(4, 3) * 1, 0)), COST),
    "codebook": CompressedLayer(
        CodedWeight(Kind.CODEBOOK, codes(torch.uint8, 0, 4), 2, entries=torch.tensor([-1.0, 0.5, 2.0]), exponent=-7),
        COST,
        kept=codes(torch.uint8, 0, 4) != 0,
    ),
}


def equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def same(one: CompressedLayer | None, other: CompressedLayer) -> bool:
    if one is None:
        return False
    a, b = one.coded, other.coded
    grids = [(x.grid.step, x.grid.low, x.grid.exponent) if x.grid is not None else (None, None, 0) for x in (a, b)]
    return (
        one.cost == other.cost
        and (a.kind, a.bits, a.exponent, a.inputs) == (b.kind, b.bits, b.exponent, b.inputs)
        and equal(a.values, b.values)
        and equal(a.entries, b.entries)
        and all(equal(x, y) for x, y in zip(grids[0][:2], grids[1][:2], strict=True))
        and grids[0][2] == grids[1][2]
        and equal(one.kept, other.kept)
        and equal(one.shift, other.shift)
        and a.write() == b.write()
    )


def sized(size: int, value: float = 1.0) -> CompressedLayer:
    """A layer whose file has about so many bytes."""
    return CompressedLayer(CodedWeight(Kind.FLOAT32, torch.full((1, size // 4), value), 32), Cost(size, 0.0))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


class TestRoundTrip:
    @pytest.mark.parametrize("name", LAYERS)
    def test_what_is_put_is_what_is_got(self, name: str, tmp_path: Path) -> None:
        Shelf(tmp_path, 10**6).put(KEYS[0], LAYERS[name])
        for shelf in (Shelf(tmp_path, 10**6), Shelf(tmp_path, 0)):
            assert same(shelf.get(KEYS[0]), LAYERS[name])

    def test_one_of_no_such_key_is_none(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path / "none", 10**6)
        assert shelf.get(KEYS[0]) is None
        assert not (tmp_path / "none").exists()

    def test_a_later_one_takes_the_place_of_an_earlier(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 10**6)
        shelf.put(KEYS[0], LAYERS["groups"])
        shelf.put(KEYS[0], LAYERS["codebook"])
        assert same(shelf.get(KEYS[0]), LAYERS["codebook"])
        assert len(files(tmp_path)) == 1

    def test_what_was_got_stays_when_its_file_goes(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 10**6)
        shelf.put(KEYS[0], sized(100_000, 3.0))
        layer = shelf.get(KEYS[0])
        assert layer is not None
        shutil.rmtree(tmp_path)
        assert float(layer.coded.values.sum()) == 75_000.0
        assert shelf.get(KEYS[0]) is None


class TestDamage:
    """A file that is not whole, or not what its name says, is none: it is made anew in its place."""

    @pytest.mark.parametrize("name", ["asymmetric", "codebook"])
    def test_no_byte_may_change(self, name: str, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 10**6)
        shelf.put(KEYS[0], LAYERS[name])
        (path,) = files(tmp_path)
        blob = path.read_bytes()
        for i in range(0, len(blob), 3):
            path.write_bytes(blob[:i] + bytes([blob[i] ^ (1 << i % 8)]) + blob[i + 1 :])
            found = shelf.get(KEYS[0])
            assert found is None or same(found, LAYERS[name]), i  # padding, or one of two ways to write a number
        path.write_bytes(blob)
        assert same(shelf.get(KEYS[0]), LAYERS[name])

    @pytest.mark.parametrize("name", ["float32", "symmetric"])
    def test_nor_be_missing(self, name: str, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 10**6)
        shelf.put(KEYS[0], LAYERS[name])
        (path,) = files(tmp_path)
        blob = path.read_bytes()
        for length in [*range(0, 40), *range(40, len(blob), 23), len(blob) - 1]:
            path.write_bytes(blob[:length])
            assert shelf.get(KEYS[0]) is None
        path.write_bytes(blob + b"\0")
        assert shelf.get(KEYS[0]) is None
        shelf.put(KEYS[0], LAYERS[name])
        assert same(shelf.get(KEYS[0]), LAYERS[name])

    def test_the_file_of_another_key_is_none(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 10**6)
        shelf.put(KEYS[0], LAYERS["groups"])
        (path,) = files(tmp_path)
        other = tmp_path / KEYS[1][:2] / f"{KEYS[1]}.safetensors"
        other.parent.mkdir()
        shutil.copy(path, other)
        assert shelf.get(KEYS[1]) is None

    @pytest.mark.parametrize("about", [None, "", "{}", "[]", "3", "null", '{"digest": ""}', '{"cost": {"bytes": 3}}'])
    def test_foreign_files_are_none(self, about: str | None, tmp_path: Path) -> None:
        path = tmp_path / KEYS[0][:2] / f"{KEYS[0]}.safetensors"
        path.parent.mkdir()
        save_file({"values": torch.zeros(3, 4)}, path, metadata=None if about is None else {KEY: about})
        assert Shelf(tmp_path, 10**6).get(KEYS[0]) is None

    def test_a_folder_in_the_place_of_a_file_is_none_and_no_error(self, tmp_path: Path) -> None:
        (tmp_path / KEYS[0][:2] / f"{KEYS[0]}.safetensors" / "more").mkdir(parents=True)
        shelf = Shelf(tmp_path, 10**6)
        shelf.put(KEYS[0], LAYERS["groups"])
        assert shelf.get(KEYS[0]) is None
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class TestBound:
    @staticmethod
    def aged(folder: Path, keys: list[str]) -> None:
        """As if these were last used long ago, the first of them first."""
        for i, key in enumerate(keys):
            os.utime(folder / key[:2] / f"{key}.safetensors", (1000.0 + i, 1000.0 + i))

    def test_it_is_respected(self, tmp_path: Path) -> None:
        for i, key in enumerate(KEYS):
            Shelf(tmp_path, 12_000).put(key, sized(2000 + 100 * i))  # each is another process
            assert total(tmp_path) <= 12_000
        assert len(files(tmp_path)) >= 2

    def test_what_was_used_longest_ago_goes_first(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 10**6)
        for key in KEYS[:5]:
            shelf.put(key, sized(1000))
        self.aged(tmp_path, KEYS[:5])
        size = total(tmp_path) // 5
        assert Shelf(tmp_path, 10**6).get(KEYS[0]) is not None  # it is used now
        later = Shelf(tmp_path, 5 * size)
        later.put(KEYS[5], sized(1000))
        assert {path.stem for path in files(tmp_path)} == {KEYS[i] for i in (0, 2, 3, 4, 5)}

    def test_what_this_process_used_never_goes(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 10**6)
        for key in KEYS[:4]:
            shelf.put(key, sized(1000))
        size = total(tmp_path) // 4
        other = Shelf(tmp_path, 3 * size)
        assert other.get(KEYS[1]) is not None
        self.aged(tmp_path, [KEYS[1], KEYS[0], KEYS[2], KEYS[3]])
        other.put(KEYS[4], sized(1000))
        other.put(KEYS[5], sized(1000))
        assert {path.stem for path in files(tmp_path)} == {KEYS[i] for i in (1, 4, 5)}
        other.put(KEYS[6], sized(1000))  # there is no room that could be made
        assert {path.stem for path in files(tmp_path)} == {KEYS[i] for i in (1, 4, 5)}
        assert total(tmp_path) <= 3 * size

    def test_what_is_larger_than_the_bound_is_not_kept(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 5000)
        shelf.put(KEYS[0], sized(10_000))
        assert shelf.get(KEYS[0]) is None
        shelf.put(KEYS[1], sized(1000))
        assert shelf.get(KEYS[1]) is not None

    def test_no_bytes_at_all(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path / "shelf", 0)
        shelf.put(KEYS[0], sized(100))
        assert shelf.get(KEYS[0]) is None
        assert not (tmp_path / "shelf").exists()

    def test_what_a_killed_process_left_half_written_is_removed(self, tmp_path: Path) -> None:
        folder = tmp_path / KEYS[0][:2]
        folder.mkdir()
        for name, age in ((".old", 2 * ABANDONED_SECONDS), (".new", 0.0)):
            (folder / name).write_bytes(bytes(1000))
            os.utime(folder / name, (time.time() - age,) * 2)
        Shelf(tmp_path, 10**6).put(KEYS[1], sized(1000))
        assert [path.name for path in files(folder.parent) if path.name.startswith(".")] == [".new"]


class TestFolder:
    def test_one_that_vanishes_is_made_again(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path / "shelf", 10**6)
        shelf.put(KEYS[0], sized(1000))
        shutil.rmtree(tmp_path / "shelf")
        assert shelf.get(KEYS[0]) is None
        shelf.put(KEYS[1], sized(1000))
        assert shelf.get(KEYS[1]) is not None

    def test_files_that_vanish_free_their_room(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path, 3000)
        for i in range(6):
            shelf.put(KEYS[i], sized(2000))
            assert shelf.get(KEYS[i]) is not None
            shutil.rmtree(tmp_path)

    def test_one_that_cannot_be_written_keeps_nothing_and_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        shelf = Shelf(tmp_path / "file" / "shelf", 10**6)
        shelf.put(KEYS[0], sized(100))
        assert shelf.get(KEYS[0]) is None

    @pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs to mount a full disk")
    def test_a_full_disk_keeps_nothing_and_is_no_error(self, tmp_path: Path) -> None:
        mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
        if subprocess.run(mounted, check=False, capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a disk")
        try:
            shelf = Shelf(tmp_path, 10**9)
            for i in range(6):
                shelf.put(KEYS[i], sized(20_000))
            got = [shelf.get(key) is not None for key in KEYS[:6]]
            assert 1 <= sum(got) <= 3
            assert got == sorted(got, reverse=True)
            assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)


BUILDER = """
import itertools, sys
from pathlib import Path
from compress.shelf import Shelf
from tests.test_database import CHOICES, Counted, LayerDatabase, chain, find_sites
from tests.models import random_tensor
model = chain(6)
counted = Counted(model, random_tensor(64, 10))
database = LayerDatabase(model, find_sites(model), counted, "me", shelf=Shelf(Path(sys.argv[1]), 10**7))
print("ready", flush=True)
sys.stdin.readline()
for site in find_sites(model):
    for choice in CHOICES:
        database.layer(site, choice)
        print("made", flush=True)
"""


def builder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go(one: subprocess.Popen[str]) -> None:
    assert one.stdin is not None
    one.stdin.write("\n")
    one.stdin.flush()


def read_line(one: subprocess.Popen[str]) -> str:
    assert one.stdout is not None
    return one.stdout.readline().strip()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files(folder)}


def test_two_builders_at_once_and_one_that_was_killed_leave_the_same_folder(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    running = [builder(whole), builder(whole), builder(killed), builder(killed)]
    try:
        assert [read_line(one) for one in running] == ["ready"] * 4
        go(running[0])
        go(running[1])
        go(running[2])
        assert [read_line(running[2]) for _ in range(20)] == ["made"] * 20
        running[2].send_signal(signal.SIGKILL)
        running[2].wait()
        some = {name: blob for name, blob in content(killed).items() if not name.startswith(".")}
        go(running[3])
        for one in (running[0], running[1], running[3]):
            out, _ = one.communicate(timeout=120)
            assert one.returncode == 0
            assert out.count("made") == 6 * 32
    finally:
        for one in running:
            one.kill()
            one.communicate()
    left = {name: blob for name, blob in content(killed).items() if not name.startswith(".")}
    assert 20 <= len(some) < 6 * 32
    assert some.items() <= left.items()
    assert left == content(whole)
    assert len(left) == 6 * 32


def test_layers_are_read_as_they_were_whoever_put_them(tmp_path: Path) -> None:
    """Costs and codes are no different objects: changing what was got changes nothing that is kept."""
    shelf = Shelf(tmp_path, 10**6)
    shelf.put(KEYS[0], LAYERS["symmetric"])
    got = shelf.get(KEYS[0])
    assert got is not None
    got.coded.values.zero_()
    assert same(shelf.get(KEYS[0]), LAYERS["symmetric"])
    assert not same(replace(got), LAYERS["symmetric"])
