"""What nodes share: found whole or not at all, whoever writes at the same time, and never in anybody's way."""

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from compress.files import artifact_path
from compress.shared import WAITING_BYTES, Shared, fetch_artifact

NAME = "layers/ab/abcd.safetensors"


class Slow(MemoryFileSystem):  # type: ignore[misc]
    """It answers when it is let, and its puts may be seen half done."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    gate = threading.Event()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.gate.wait(20)
        found: bytes = super().cat_file(path, start, end, **kwargs)
        return found

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.gate.wait(20)
        super().pipe_file(path, value, mode, **kwargs)


class Broken(LocalFileSystem):  # type: ignore[misc]
    """Nothing works, and it says what was secret."""

    protocol = "broken"
    works = False
    asked = 0

    def _asked(self) -> None:
        type(self).asked += 1
        if not self.works:
            raise PermissionError("anna:s3cret is refused, token=t0ken")

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._asked()
        found: bytes = super().cat_file(path, *args, **kwargs)
        return found

    def exists(self, path: str, **kwargs: Any) -> bool:
        self._asked()
        return bool(super().exists(path, **kwargs))


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    for kind in (Slow, Broken):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
    Slow.gate.clear()
    Broken.works, Broken.asked = False, 0
    yield
    Slow.gate.set()


@pytest.fixture(params=["folder", "file", "memory", "slow"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "slow":  # writes aside, then moves
        Slow.gate.set()
    own = uuid.uuid4().hex
    places = {
        "folder": str(tmp_path),
        "file": f"file://{tmp_path}",
        "memory": f"memory://{own}",
        "slow": f"slow://{own}",
    }
    return places[request.param]


def same(blob: bytes) -> bytes | None:
    return blob if blob.startswith(b"right") else None


class TestStore:
    def test_what_one_puts_another_gets(self, url: str) -> None:
        one, other = Shared(url), Shared(url)
        assert other.get(NAME, same) is None
        one.put(NAME, b"right one")
        assert one.flush(5)
        assert other.get(NAME, same) == b"right one"
        one.put("artifacts/x", b"right two", wait=True)
        assert other.get("artifacts/x", same) == b"right two"

    def test_what_is_there_is_not_put_again(self, url: str) -> None:
        for wait in (True, False):
            one = Shared(url)
            one.put(NAME, b"right, the first", wait=wait)
            one.put(NAME, b"right, the second", wait=wait)
            assert one.flush(5)
            assert one.get(NAME, same) == b"right, the first"

    def test_unless_it_is_damaged(self, url: str) -> None:
        one, other = Shared(url), Shared(url)
        one.put(NAME, b"wrong", wait=True)
        assert other.get(NAME, same) is None
        other.put(NAME, b"right", wait=True)
        assert one.get(NAME, same) == b"right"
        other.put(NAME, b"right again", wait=True)
        assert one.get(NAME, same) == b"right"

    def test_nothing_is_left_beside_it(self, tmp_path: Path, url: str) -> None:
        one = Shared(url)
        for i in range(5):
            one.put(f"layers/{i}", b"right", wait=True)
            one.put(f"layers/{i}", b"right", wait=True)
        system, root = fsspec.core.url_to_fs(url)
        assert len(system.find(f"{root}/layers")) == 5

    def test_a_folder_that_vanishes_is_made_again(self, tmp_path: Path) -> None:
        one = Shared(str(tmp_path / "a"))
        for i in range(3):
            one.put(f"layers/{i}", b"right", wait=True)
            assert one.get(f"layers/{i}", same)
            subprocess.run(["rm", "-r", str(tmp_path / "a")], check=True)
            assert one.get(f"layers/{i}", same) is None


RACER = """
import sys
from compress.shared import Shared

one, mine = Shared(sys.argv[1]), ("right " + sys.argv[2] * 100_000).encode()
print("ready", flush=True)
sys.stdin.readline()
for i in range(30):
    one.put(f"layers/{i}", mine, wait=i % 2 == 0)
    found = one.get(f"layers/{i}", bytes)
    assert found is None or (len(found) == len(mine) and len(set(found[6:])) == 1), i
assert one.flush(20)
print("done", flush=True)
"""


def test_many_nodes_write_the_same_at_once(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, letter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for url, letter in zip([str(tmp_path), f"file://{tmp_path}"] * 2, "ABCD", strict=True)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        said = [racer.communicate("go\n", timeout=60)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert said == ["done\n"] * 4
    blobs = [path.read_bytes() for path in (tmp_path / "layers").iterdir()]
    assert len(blobs) == 30
    assert {(len(blob), len(set(blob[6:]))) for blob in blobs} == {(100_006, 1)}


class TestTrouble:
    def test_one_that_fails_says_so_once_without_secrets_and_is_left_alone(
        self, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        one = Shared(f"broken://{tmp_path}?token=t0ken")
        with caplog.at_level(logging.WARNING):
            for _ in range(10):
                assert one.get(NAME, same) is None
            assert Broken.asked == 1
            for wait in (True, False):
                for _ in range(5):
                    one.put(NAME, b"right", wait=wait)
            assert one.flush(5)
        assert Broken.asked == 2
        (said,) = caplog.messages
        assert said.startswith(f"cache.shared: broken://{tmp_path} cannot be read: PermissionError: ")
        assert "t0ken" not in caplog.text

    def test_after_a_while_it_is_tried_again(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        clock = [1000.0]
        monkeypatch.setattr("compress.shared.time.monotonic", lambda: clock[0])
        one = Shared(f"broken://{tmp_path}")
        asked = []
        for _ in range(100):
            one.get(NAME, same)
            asked.append(Broken.asked)
            clock[0] += 10
        assert asked[0] == 1
        assert asked[-1] == 1 + sum(1 for total in (15, 45, 105, 225, 465, 945) if total <= 990)
        Broken.works = True
        (tmp_path / "layers" / "ab").mkdir(parents=True)
        (tmp_path / NAME).write_bytes(b"right")
        clock[0] += 600
        assert one.get(NAME, same) == b"right"

    def test_one_that_hangs_costs_so_many_seconds_once(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        one = Shared("slow://hangs", get_seconds=0.05, put_seconds=0.05)
        started = time.monotonic()
        for _ in range(50):
            assert one.get(NAME, same) is None
            one.put("artifacts/x", b"right", wait=True)
            one.put(NAME, b"right")
        assert time.monotonic() - started < 5
        assert len(caplog.messages) == 1
        assert "it takes too long" in caplog.text

    def test_an_upload_that_hangs_is_given_up(self) -> None:
        one = Shared("slow://uploads", put_seconds=0.01)
        one.put(NAME, b"right")
        while one._uploads.busy <= 0.02:
            time.sleep(0.005)
        one.put("layers/next", b"right")
        assert one._uploads.waiting == 0
        assert one._writing.is_open

    def test_what_waits_to_be_uploaded_is_bounded(self) -> None:
        one = Shared("slow://bounded")
        for i in range(5):
            one.put(f"layers/{i}", b"right" + bytes(WAITING_BYTES // 4))
        assert 0 < one._uploads.waiting <= WAITING_BYTES
        Slow.gate.set()
        assert one.flush(10)
        assert [one.get(f"layers/{i}", same) is not None for i in range(5)] == [True] * 3 + [False] * 2

    def test_one_that_may_only_be_read_is_read(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        Shared(str(tmp_path)).put(NAME, b"right", wait=True)
        (tmp_path / "artifacts").write_text("in the way")
        one = Shared(str(tmp_path))
        one.put("artifacts/x", b"right", wait=True)
        assert one.get(NAME, same) == b"right"
        assert len(caplog.messages) == 1


ENDS = """
import sys
from compress.shared import Shared
one = Shared(sys.argv[1])
for i in range(200):
    one.put(f"layers/{i}", bytes(10_000))
"""


def test_what_was_put_is_there_when_the_process_has_ended(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ENDS, f"file://{tmp_path}"], check=True)
    assert len(os.listdir(tmp_path / "layers")) == 200


def test_a_packed_file_is_fetched_once_it_is_right(tmp_path: Path) -> None:
    sha256, own = hashlib.sha256(b"right").hexdigest(), tmp_path / "own"
    for blob, there in ((None, False), (b"wrong", False), (b"right", True)):
        if blob is not None:
            artifact_path(tmp_path, sha256).parent.mkdir(exist_ok=True)
            artifact_path(tmp_path, sha256).write_bytes(blob)
        assert fetch_artifact(str(tmp_path), sha256, own) is there
        assert artifact_path(own, sha256).exists() is there
    (tmp_path / "file").write_text("in the way")
    assert not fetch_artifact(str(tmp_path), sha256, tmp_path / "file")
