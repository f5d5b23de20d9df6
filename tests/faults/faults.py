"""What may go wrong while a search runs, each as something that a test can do to it at a random moment."""

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.faults.searching import INTERRUPTED, Search
from tests.searches import TRIALS

FAKETIME: Final = [
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    Path("/usr/local/lib/faketime/libfaketimeMT.so.1"),
]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        act: does it, and what an operator would do about it.
        ends: the exit code of the driver that meets it; it is then launched again.
        workers: that the search has, on a cluster.
        place: prepares the search before it starts.
    """

    act: Callable[[Search, Random], None]
    ends: int = 0
    workers: int = 0
    place: Callable[[Search], None] | None = None


def kill_driver(search: Search, random: Random) -> None:
    """The driver is gone without a word."""
    send(search, signal.SIGKILL)


def terminate_driver(search: Search, random: Random) -> None:
    """The driver is asked to end, once it has begun: before, it dies as any process does."""
    search.wait(lambda: search.count("select count(*) from slimfront_lease") > 0)
    send(search, random.choice([signal.SIGTERM, signal.SIGINT]))


def send(search: Search, number: signal.Signals) -> None:
    """Signal the driver, unless it has just ended."""
    with suppress(ProcessLookupError):
        os.kill(search.pid, number)


def kill_workers(search: Search, random: Random) -> None:
    """Workers are gone, as by the system's own choice when memory is short."""
    found = _workers(search)
    for pid in random.sample(found, random.randint(1, len(found))) if found else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def crash_worker(search: Search, random: Random) -> None:
    """Native code crashes while a candidate is scored."""
    search.order("abort")


def eat_memory(search: Search, random: Random) -> None:
    """A worker gets no more memory."""
    search.order("eat")


def remove_node(search: Search, random: Random) -> None:
    """A node is gone, and another one comes sooner or later."""
    assert search.cluster is not None
    search.cluster.remove()
    time.sleep(random.uniform(0, 3))
    search.cluster.add()


def restart_database(search: Search, random: Random) -> None:
    """The server is shut down, or crashes, and is started again; SQLite has none, its file is locked meanwhile."""
    take_database_away(search, random.uniform(0.5, 3), random.choice(["stop", "kill"]))


def pause_database(search: Search, random: Random) -> None:
    """The server stands still for a while."""
    take_database_away(search, random.uniform(1, 4), "pause")


def take_database_away(search: Search, seconds: float, how: str) -> None:
    """The database does not answer for a while."""
    if search.server is None:
        with locked(search):
            time.sleep(seconds)
        return
    {"stop": search.server.stop, "kill": search.server.kill, "pause": search.server.pause}[how]()
    try:
        time.sleep(seconds)
    finally:
        (search.server.resume if how == "pause" else search.server.start)()


@contextmanager
def locked(search: Search) -> Iterator[None]:
    """Another process writes to the SQLite file all the time."""
    file = search.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as other:
        other.execute("begin immediate")
        yield
        other.rollback()


def remove_cache(search: Search, random: Random) -> None:
    """Somebody removes the cache folder, again and again."""
    for _ in range(random.randint(2, 5)):
        shutil.rmtree(search.folder / "cache", ignore_errors=True)
        time.sleep(random.uniform(0, 0.2))


def jump_clock(search: Search, random: Random) -> None:
    """The clock of the driver's machine is wrong, otherwise wrong, and right again."""
    for jump in random.sample(["+3600", "-3600", "-86400"], 2):
        (search.folder / "clock").write_text(jump)
        time.sleep(random.uniform(0, 1))
    (search.folder / "clock").write_text("+0")


def place_clock(search: Search) -> None:
    """The driver sees a clock that `jump_clock` can set, and would end if it went by it; the monotonic one goes on."""
    search.changed = {"budget": {"trials": TRIALS, "timeout": 1800.0}}
    (search.folder / "clock").write_text("+0")
    search.environment = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(search.folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def fill(search: Search, folder: Path, seconds: float) -> None:
    """Fill a small disk, wait until the search says that it waits, and make room."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    search.wait(lambda: "No space left" in search.said() or "full" in search.said())
    time.sleep(seconds)
    ballast.unlink()


@contextmanager
def small_disk(folder: Path, megabytes: int, user: int = 0) -> Iterator[None]:
    """A small file system at a folder, of this user's."""
    folder.mkdir(exist_ok=True)
    options = f"size={megabytes}m,uid={user},mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _workers(search: Search) -> list[int]:
    assert search.cluster is not None
    search.wait(lambda: bool(search.cluster and search.cluster.workers()))
    return search.cluster.workers()


FAULTS: Final[dict[str, Fault]] = {
    "driver killed": Fault(kill_driver, ends=-signal.SIGKILL),
    "driver terminated": Fault(terminate_driver, ends=INTERRUPTED),
    "database restarted": Fault(restart_database),
    "database paused": Fault(pause_database),
    "cache removed": Fault(remove_cache),
    "clock jumped": Fault(jump_clock, place=place_clock),
    "worker killed": Fault(kill_workers, workers=2),
    "worker crashed": Fault(crash_worker, workers=2),
    "worker out of memory": Fault(eat_memory, workers=2),
    "node removed": Fault(remove_node, workers=2),
    "driver killed on workers": Fault(kill_driver, ends=-signal.SIGKILL, workers=2),
    "driver terminated on workers": Fault(terminate_driver, ends=INTERRUPTED, workers=2),
}
