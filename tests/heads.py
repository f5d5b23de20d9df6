"""A Ray cluster of one node with a job server, as a process of its own beside whatever Ray else runs here."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
STARTS_S = 120.0
_PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"),
    *("ray-client-server-port", "runtime-env-agent-port", "node-manager-port", "object-manager-port"),
)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextlib.contextmanager
def ray_head(cpus: int = 2, **variables: str) -> Iterator[str]:
    """The URL of a new cluster's job server; the cluster ends with the block.

    Args:
        cpus: that it offers.
        **variables: environment of its processes, beside this one's.
    """
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: short
        command = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
            *(f"--{name}={port}" for name, port in ports.items()),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", "--disable-usage-stats"),
            *(f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000", f"--temp-dir={folder}"),
        ]
        with (Path(folder) / "start.log").open("w+") as log:
            started = subprocess.Popen(
                command, stdout=log, stderr=log, env=_environment(variables), start_new_session=True
            )
            try:
                _wait_until_it_answers(url, started, Path(log.name))
                yield url
            finally:
                _end(started)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """That of this process less what would lead into another cluster; our code and this Python come first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLIMFRONT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def _wait_until_it_answers(url: str, started: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the job server and the agent that starts jobs are there."""
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end:
        assert started.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError:  # it answers, and asks for Ray's token, which clients find for themselves
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"Ray does not answer at {url}: {log.read_text()}")


def _end(started: "subprocess.Popen[bytes]") -> None:
    """End the cluster's processes, and those that outlive them."""
    started.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()
