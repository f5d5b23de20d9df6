"""Files that nodes share, found by name in a folder that all see or behind an fsspec URL.

It saves time and decides nothing: where it is slow, full or gone, each node makes for itself what it would have found.
"""

import atexit
import contextlib
import hashlib
import logging
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from compress.files import artifact_name, artifact_path, write_file
from compress.lane import Lane
from compress.places import hidden, opened, shown

GET_SECONDS = 10.0
PUT_SECONDS = 30.0
END_SECONDS = 10.0  # for what is still to be uploaded when the process ends
FIRST_PAUSE, LONGEST_PAUSE = 15.0, 600.0  # seconds without it after a failure; each failure in a row doubles them
SLOWEST = 1e6  # bytes a second
WAITING_BYTES = 64 * 2**20  # of what is still to be uploaded; what would be more is not

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Shared:
    """A store of files by name; none of its methods raises over what is wrong with the storage.

    Args:
        url: a folder, or an fsspec URL (see `compress.places.checked_url`).
        get_seconds: that a read may take.
        put_seconds: that a write may take, beyond a second for each million bytes.

    Raises:
        ConfigError: no driver for the URL.
    """

    def __init__(self, url: str, get_seconds: float = GET_SECONDS, put_seconds: float = PUT_SECONDS) -> None:
        self._url, self._files = url, opened(url)
        self._get_seconds, self._put_seconds = get_seconds, put_seconds
        self._reads, self._writes, self._uploads = Lane(), Lane(), Lane()
        self._reading, self._writing = _Breaker(), _Breaker()
        self._warned = self._ends = False
        self._damaged: set[str] = set()

    def get(self, name: str, check: Callable[[bytes], T | None]) -> T | None:
        """What a file holds; None where it is missing, damaged, or cannot be had in a few seconds.

        Args:
            name: with folders, separated by slashes.
            check: makes something of the content; None where it is not as it was written.
        """
        if self._reading.is_open:
            return None
        try:
            found = self._reads.call(lambda: self._files.read(name), self._get_seconds)
        except FileNotFoundError:
            return None
        except Exception as error:
            self._failed("read", error, self._reading)
            return None
        self._reading.worked()
        made = check(found)
        if made is None:
            self._damaged.add(name)
        return made

    def put(self, name: str, blob: bytes, *, wait: bool = False) -> None:
        """Store a file, unless it is there already.

        Args:
            name: with folders, separated by slashes.
            blob: the content.
            wait: for it to be there, or to have failed; else that is left to a thread of its own.
        """
        if self._writing.is_open:
            return
        seconds = self._put_seconds + len(blob) / SLOWEST
        if wait:
            try:
                self._writes.call(lambda: self._write(name, blob), seconds)
            except Exception as error:
                self._failed("written", error, self._writing)
        elif self._uploads.busy > seconds:
            self._uploads.give_up()
            self._failed("written", TimeoutError(), self._writing)
        elif self._uploads.waiting + len(blob) <= WAITING_BYTES:
            self._end_with_it()
            self._uploads.post(lambda: self._upload(name, blob), len(blob))

    def flush(self, seconds: float) -> bool:
        """Wait for what was put; whether all of it is done."""
        try:
            self._uploads.post(lambda: None).result(seconds)
        except TimeoutError:
            return False
        return True

    def _upload(self, name: str, blob: bytes) -> None:
        if not self._writing.is_open:
            try:
                self._write(name, blob)
            except Exception as error:
                self._failed("written", error, self._writing)

    def _write(self, name: str, blob: bytes) -> None:
        self._files.write(name, blob, anew=name in self._damaged)
        self._damaged.discard(name)
        self._writing.worked()

    def _failed(self, done: str, error: Exception, breaker: "_Breaker") -> None:
        """Do without the storage for a while; say so once."""
        breaker.failed()
        if not self._warned:
            self._warned = True
            why = "it takes too long" if isinstance(error, TimeoutError) else hidden(str(error), self._url)
            _log.warning(
                "cache.shared: %s cannot be %s: %s: %s; it is tried again now and then, and meanwhile each node makes "
                "for itself what it would find there",
                shown(self._url),
                done,
                type(error).__name__,
                why,
            )

    def _end_with_it(self) -> None:
        """When the process ends, give what is still to be uploaded a few seconds."""
        if not self._ends:
            self._ends = True
            atexit.register(_finish, weakref.ref(self._uploads))


class _Breaker:
    """Whether to do without something that failed, for a while: twice as long after each failure in a row."""

    def __init__(self) -> None:
        self._pause, self._until = FIRST_PAUSE, 0.0

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self._until

    def failed(self) -> None:
        self._until = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def worked(self) -> None:
        self._pause = FIRST_PAUSE


def fetch_artifact(url: str, sha256: str, cache: Path) -> bool:
    """Bring a packed file from a shared folder below a cache folder; whether it is there now.

    Raises:
        ConfigError: no driver for the URL.
    """

    def checked(blob: bytes) -> bytes | None:
        return blob if hashlib.sha256(blob).hexdigest() == sha256 else None

    blob = Shared(url).get(artifact_name(sha256), checked)
    if blob is None:
        return False
    try:
        write_file(artifact_path(cache, sha256), blob)
    except OSError:
        return False
    return True


def _finish(reference: "weakref.ref[Lane]") -> None:
    lane = reference()
    if lane is not None and lane.waiting:
        with contextlib.suppress(TimeoutError):
            lane.post(lambda: None).result(END_SECONDS)
