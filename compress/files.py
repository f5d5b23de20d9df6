"""Packed files on disk: where one is kept, and how one is written, all of it or nothing."""

import os
import tempfile
from pathlib import Path


def artifact_path(cache: Path, sha256: str) -> Path:
    """Where the packed file of this hash is kept."""
    return cache / "artifacts" / f"{sha256}.safetensors"


def write_file(path: Path, blob: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, whoever is killed when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
