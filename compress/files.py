"""Packed files on disk: where one is kept, and how one is written, all of it or nothing."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TRIES = 30  # somebody may remove the folder while it is written to
LONGEST_PAUSE = 0.02  # seconds between two tries
ABANDONED_SECONDS = 3600.0  # a file that is still being written is younger


def artifact_name(sha256: str) -> str:
    """Where below a cache folder the packed file of this hash is kept."""
    return f"artifacts/{sha256}.safetensors"


def artifact_path(cache: Path, sha256: str) -> Path:
    """Where the packed file of this hash is kept."""
    return cache / artifact_name(sha256)


def write_file(path: Path, blob: bytes, *, lasting: bool = True) -> None:
    """Write a file so that a reader sees all of it or nothing, whoever is killed when.

    Args:
        path: its folder is made where it is missing, also while another process removes it.
        blob: the content.
        lasting: whether it is on the disk at the end, also if the machine stops.
    """
    _write(path, blob, os.replace, lasting)


def write_once(path: Path, blob: bytes) -> None:
    """Write a file unless it is there: of several writers the first one wins, and the others change nothing."""
    _write(path, blob, _link, True)


def sweep(folder: Path, pattern: str = ".*") -> None:
    """Remove what processes that were killed while they wrote have left.

    Args:
        folder: where files are written.
        pattern: of such files below it.
    """
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                path.unlink()


def _link(source: str, path: Path) -> None:
    """Give a file its name if that is free, and take the old one away."""
    try:
        os.link(source, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: the last writer wins
        os.replace(source, path)
        return
    os.unlink(source)


def _write(path: Path, blob: bytes, place: Callable[[str, Path], None], lasting: bool) -> None:
    for tried in range(1, TRIES + 1):
        try:
            return _try_to_write(path, blob, place, lasting)
        except (FileNotFoundError, FileExistsError):
            in_the_way = path.parent.exists() and not path.parent.is_dir()
            if tried == TRIES or in_the_way:
                raise
        time.sleep(min(LONGEST_PAUSE, 0.001 * tried))


def _try_to_write(path: Path, blob: bytes, place: Callable[[str, Path], None], lasting: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.fileno(), 0o644)
        place(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
