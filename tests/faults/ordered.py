"""The tiny workload with a metric that does what files beside its own file order: wait, crash, or take all memory."""

import os
import resource
import select
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from objectives.accuracy import accuracy
from objectives.workload import Workload
from tests import tiny

FILE = """from pathlib import Path

from tests.faults.ordered import {name}


def workload():
    return {name}(Path({folder!r}))
"""
LARGE = 2**30  # bytes
PIECE, SPARE = 2**26, 2**31  # bytes that are taken at a time, and that nobody may touch
HELD_S = 60.0
LONG_S = 1.0  # for each chunk, so that the others run while one takes memory
TOO_WRONG = 0.62  # few candidates of the tiny search are worse on some chunk


def write(folder: Path, name: str = "ordered") -> str:
    """Write a workload's file into a folder; the workload's entry in a config there, which packed files name."""
    (folder / "work.py").write_text(FILE.format(name=name, folder=str(folder)))
    return "work.py:workload"


def ordered(folder: Path) -> Workload:
    """Who scores does once what the folder's file `abort`, `eat` or `exit` says, and waits while there is `hold`."""

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        while (folder / "hold").exists():
            (folder / "held").write_bytes(b"")
            select.select([], [], [], 0.02)  # libfaketime breaks time.sleep
        for name, act in ORDERS.items():
            if _taken(folder / name):
                act()
        return accuracy(outputs, targets)

    return replace(tiny.workload(), metric=metric)


def refusing(folder: Path) -> Workload:
    """Candidates that are too wrong fail."""

    def refuse() -> None:
        raise ArithmeticError("too wrong")

    return _judging(refuse)


def crashing(folder: Path) -> Workload:
    """Candidates that are too wrong crash in native code."""
    return _judging(os.abort)


def hungry(folder: Path) -> Workload:
    """Candidates that are too wrong want more memory than there is."""
    return _judging(eat)


def greedy(folder: Path) -> Workload:
    """Candidates that are too wrong take memory until somebody ends their process; the others take their time."""
    return _judging(take, LONG_S)


def take() -> None:
    """Take memory, bit by bit, down to what is spared, and hold it until somebody ends this process.

    Raises:
        RuntimeError: nobody does.
    """
    taken = []
    while memory()[1] > SPARE:
        taken.append(torch.ones(PIECE, dtype=torch.uint8))
        time.sleep(0.01)
    time.sleep(HELD_S)
    raise RuntimeError(f"{sum(map(len, taken))} bytes were taken, and nobody minded")


def memory() -> tuple[int, int]:
    """Bytes of this machine: all, and those that are available."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {key: int(kilobytes) * 1024 for key, kilobytes, *_ in lines}
    return found["MemTotal:"], found["MemAvailable:"]


def eat() -> None:
    """Take more memory than this process may have, for a model's tensors."""
    free = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LARGE // 4, free[1]))
    try:
        torch.ones(LARGE, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, free)


ORDERS: dict[str, Callable[[], None]] = {"abort": os.abort, "eat": eat, "exit": lambda: os._exit(1)}


def _judging(act: Callable[[], None], seconds: float = 0.0) -> Workload:
    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        outcomes = accuracy(outputs, targets)
        if outcomes.mean() < TOO_WRONG:
            act()
        time.sleep(seconds)
        return outcomes

    return replace(tiny.workload(), metric=metric)


def _taken(file: Path) -> bool:
    """Whether this process is the one to obey."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
