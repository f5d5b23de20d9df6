"""Processes told apart by machine, id and start, as their ids are given again."""

import os
import socket
import subprocess
from pathlib import Path


def process_started(pid: int) -> str | None:
    """When a process of this machine started, in the system's own terms; "" if it hides that; None if it is dead.

    A process that has ended and was not yet waited for by its parent is dead. Two processes that get the same id
    differ in this.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    if not Path("/proc/self/stat").exists():
        return _started_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # hidden from us
        return ""
    fields = stat[stat.rindex(")") + 2 :].split()  # behind the name, which may hold anything
    return None if fields[0] in "ZX" else fields[19]  # state; start time in clock ticks since boot


def _started_by_ps(pid: int) -> str | None:
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    plain = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    said = subprocess.run(command, capture_output=True, text=True, env=plain, check=False)  # noqa: S603
    state, _, started = said.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def machine_id() -> str:
    """Where a process id means the same process.

    The host, this boot of it, and the process id namespace, for containers that share a host's name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
