"""Packed files on disk: where one is kept, and how one is written, all of it or nothing."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def artifact_path(cache: Path, sha256: str) -> Path:
    """Where the packed file of this hash is kept."""
    return cache / "artifacts" / f"{sha256}.safetensors"


def write_file(path: Path, blob: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, whoever is killed when."""
    _write(path, blob, os.replace)


def write_once(path: Path, blob: bytes) -> None:
    """Write a file unless it is there: of several writers the first one wins, and the others change nothing."""
    _write(path, blob, _link)


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


def _write(path: Path, blob: bytes, place: Callable[[str, Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        place(name, path)
    except BaseException:
        os.unlink(name)
        raise
