"""Writing a file: a reader sees the old one or the new one, whoever is killed when."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.files import artifact_path, write_file, write_once

WRITER = """
import sys
from itertools import cycle
from pathlib import Path
from compress.files import write_file

for letter in cycle(b"AB"):
    write_file(Path(sys.argv[1]), bytes([letter]) * 300_000)
"""


def test_it_makes_the_folder_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for blob in (b"", b"one", b"another"):
        write_file(path, blob)
        assert path.read_bytes() == blob
        assert list(path.parent.iterdir()) == [path]


def test_others_may_read_it(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"one")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_reader_never_sees_half_a_file_though_writers_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"A" * 300_000)
    seen = set()
    for wait in (0.0, 0.01, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        try:
            while not list(tmp_path.glob(".file.*")):
                assert writer.poll() is None
            until = time.monotonic() + 0.1 + wait
            while time.monotonic() < until:
                blob = path.read_bytes()
                assert len(blob) == 300_000
                assert len(set(blob)) == 1
                seen.add(blob[0])
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        blob = path.read_bytes()
        assert (len(blob), len(set(blob))) == (300_000, 1)
        for left in tmp_path.glob(".file.*"):
            left.unlink()
    assert seen == set(b"AB")


FULL = """
import resource, signal, sys
from pathlib import Path
from compress.files import write_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_file(Path(sys.argv[1]), bytes(5000))
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("OSError")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_in_the_way_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_file(tmp_path / "file", b"one")
    assert os.listdir(tmp_path) == ["file"]


RACER = """
import sys
from pathlib import Path
from compress.files import write_once

write_once(Path(sys.argv[1]), sys.argv[2].encode() * 300_000)
found = Path(sys.argv[1]).read_text()
print(found == found[0] * 300_000, found[0])
"""


def test_of_several_that_write_once_the_first_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for blob in (b"one", b"another", b""):
        write_once(path, blob)
        assert path.read_bytes() == b"one"
        assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_nlink == 1


def test_processes_that_write_once_together_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(path), letter], stdout=subprocess.PIPE, text=True)
        for letter in "ABCD"
    ]
    said = {racer.communicate()[0] for racer in racers}
    assert said == {f"True {path.read_text()[0]}\n"}
    assert os.listdir(tmp_path) == ["file"]


def test_write_once_leaves_nothing_where_it_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(OSError, match="file"):
        write_once(tmp_path / "file" / "new", b"one")
    assert os.listdir(tmp_path) == ["file"]


def test_a_packed_file_is_kept_under_its_hash(tmp_path: Path) -> None:
    assert artifact_path(tmp_path, "ab" * 32) == tmp_path / "artifacts" / f"{'ab' * 32}.safetensors"


REMOVER = """
import shutil, sys
print("ready", flush=True)
while True:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


@pytest.mark.parametrize("write", [write_file, write_once])
def test_a_folder_that_somebody_removes_all_the_time_is_made_again(
    write: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    with subprocess.Popen([sys.executable, "-c", REMOVER, str(folder)], stdout=subprocess.PIPE) as remover:
        try:
            assert remover.stdout is not None
            remover.stdout.readline()
            for i in range(20):
                try:
                    write(folder / f"c{i}" / "file", b"one")
                except FileNotFoundError:  # it did not find a gap, in thirty tries
                    continue
        finally:
            remover.kill()
    write(folder / "c0" / "last", b"one")
    assert (folder / "c0" / "last").read_bytes() == b"one"
    assert not [path for path in folder.rglob(".*")]


def test_a_file_in_the_way_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for path in (tmp_path / "file" / "new", tmp_path / "file" / "folder" / "new"):
        with pytest.raises(OSError, match="file"):
            write_file(path, b"one")
    assert pauses == []
