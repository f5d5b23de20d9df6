"""Packed files of candidates below a cache folder: one by its hash, whole or not at all."""

import hashlib
from pathlib import Path

from compress.files import artifact_path, write_file
from objectives.failures import cache_written


def keep_packed(cache: Path, sha256: str, blob: bytes) -> None:
    """Keep a packed file; one that is there, whole, is not written again.

    Raises:
        RetryableError: the folder cannot be written.
    """
    if read_packed(cache, sha256) is None:
        with cache_written(cache):
            write_file(artifact_path(cache, sha256), blob)


def read_packed(cache: Path, sha256: str) -> bytes | None:
    """The packed file of this hash; None where it is missing, damaged, or cannot be read."""
    try:
        blob = artifact_path(cache, sha256).read_bytes()
    except OSError:
        return None
    return blob if hashlib.sha256(blob).hexdigest() == sha256 else None
