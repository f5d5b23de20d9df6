"""A folder of files, found by a key, that stays below a bound in bytes.

A file is written aside and moved into place, so that any number of processes may fill the same folder at once and be
killed at any time: a reader sees a whole file or none.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ABANDONED_SECONDS = 3600.0  # a file that is still being written is younger


class BoundedFolder:
    """Files below a bound; of several processes at once each keeps to it roughly.

    Args:
        folder: made when the first file is put; it may vanish at any time.
        max_bytes: bound on the files together. To make room, those that were used longest ago go first; what still
            does not fit is not kept.
        spare: whether the files that this process used never go.
    """

    def __init__(self, folder: Path, max_bytes: int, *, spare: bool) -> None:
        self._folder, self._max_bytes, self._spare = folder, max_bytes, spare
        self._used: set[str] = set()
        self._total: int | None = None  # bytes, as far as this process knows

    def path(self, key: str) -> Path:
        """Where the file of this key is, if there is one."""
        return self._folder / key[:2] / f"{key}.safetensors"

    def use(self, key: str) -> None:
        """Note that the file of this key was used now."""
        self._used.add(key)
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(self.path(key))

    def put(self, key: str, blob: bytes) -> None:
        """Keep a file, if there is room or room can be made; a full disk keeps nothing and is no error."""
        path = self.path(key)
        with contextlib.suppress(OSError):
            if not self._room_for(len(blob)):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(blob)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
            self._used.add(key)
            self._total = (self._total or 0) + len(blob)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, its bytes and its path."""
        for path in self._folder.glob("??/*.safetensors"):
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path

    def _sweep(self) -> None:
        """Remove what processes that were killed while they wrote have left."""
        for path in self._folder.glob("??/.*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    path.unlink()

    def _room_for(self, size: int) -> bool:
        if self._total is None or self._total + size > self._max_bytes:
            self._sweep()
            files = sorted(self._files())
            self._total = sum(one for _, one, _ in files)
            for _, one, path in files:
                if self._total + size <= self._max_bytes:
                    break
                if not (self._spare and path.stem in self._used):
                    path.unlink(missing_ok=True)
                    self._total -= one
        return self._total + size <= self._max_bytes
