"""A folder of files, found by a key, that stays below a bound in bytes.

A file is written aside and moved into place, so that any number of processes may fill the same folder at once and be
killed at any time: a reader sees a whole file or none.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from compress.files import sweep, write_file

LOOK_SHARE = 0.1  # of the bound: so many bytes are put between two looks at the whole folder


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
        self._oldest: deque[tuple[float, int, Path]] = deque()  # as `_files`, of the last look
        self._since = 0  # bytes that were to be put since then

    def path(self, key: str) -> Path:
        """Where the file of this key is, if there is one."""
        return self._folder / name_of(key)

    def use(self, key: str) -> None:
        """Note that the file of this key was used now."""
        self._used.add(key)
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(self.path(key))

    def put(self, key: str, blob: bytes) -> None:
        """Keep a file, if there is room or room can be made; a full disk keeps nothing and is no error."""
        with contextlib.suppress(OSError):
            if self._room_for(len(blob)):
                write_file(self.path(key), blob, lasting=False)
                self._used.add(key)
                self._total = (self._total or 0) + len(blob)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, its bytes and its path."""
        for path in self._folder.glob("??/*.safetensors"):
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path

    def _look(self) -> None:
        """See what is in the folder now."""
        sweep(self._folder, "??/.*")
        self._oldest = deque(sorted(self._files()))
        self._total, self._since = sum(size for _, size, _ in self._oldest), 0

    def _room_for(self, size: int) -> bool:
        """Make room; a full folder is not looked through for each file."""
        if size > self._max_bytes:
            return False
        if self._total is None or self._since + size > self._max_bytes * LOOK_SHARE:
            self._look()
        self._since += size
        assert self._total is not None  # noqa: S101 - for mypy
        while self._total + size > self._max_bytes and self._oldest:
            when, old, path = self._oldest.popleft()
            if self._spare and path.stem in self._used:
                continue
            if _removed(path, when):
                self._total -= old
        return self._total + size <= self._max_bytes


def _removed(path: Path, when: float) -> bool:
    """Remove a file unless it was used since; whether it is gone."""
    try:
        if path.stat().st_mtime != when:
            return False
        path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def name_of(key: str) -> str:
    """Where the file of a key is below its folder."""
    return f"{key[:2]}/{key}.safetensors"
