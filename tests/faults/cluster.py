"""A Ray cluster of this machine, in a process of its own, whose nodes come and go."""

import os
import subprocess
import sys
from typing import Final

from tests import processes
from tests.clusters import free_port
from tests.commands import ROOT

_SCRIPT: Final = """
import sys
from ray.cluster_utils import Cluster

head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": int(sys.argv[1])}
made = Cluster(initialize_head=True, head_node_args=head)
nodes = []
print(made.address, flush=True)
for line in sys.stdin:
    if line == "add\\n":
        nodes.append(made.add_node(num_cpus=1))
    elif line == "behead\\n":
        made.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    else:
        made.remove_node(nodes.pop(0), allow_graceful=False)
    print("done", flush=True)
made.shutdown()
"""
_SETTINGS: Final = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # Ray's proxy forks while others of its threads are in gRPC
    "PYTHONPATH": str(ROOT),
}
WORKER: Final = "ray::_Worker"


class RayCluster:
    """A head without CPUs, and nodes that have one each."""

    def __init__(self, nodes: int, port: int | None = None) -> None:
        self._port = port or free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(self._port)],
            env={**os.environ, **_SETTINGS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._line()
        for _ in range(nodes):
            self.add()

    def add(self) -> None:
        """One more node."""
        self._ask("add")

    def remove(self) -> None:
        """The oldest node is gone, as by a power cut."""
        self._ask("remove")

    def behead(self) -> None:
        """The head's processes are killed; those of the other nodes go on, until they notice."""
        self._ask("behead")

    @property
    def port(self) -> int:
        """Where Ray's client is answered."""
        return self._port

    @property
    def client_address(self) -> str:
        """The same cluster for a driver that is on none of its nodes."""
        return f"ray://127.0.0.1:{self._port}"

    def workers(self) -> list[int]:
        """The processes of the workers that score."""
        return processes.below(self._process.pid, WORKER)

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def _ask(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n")
        self._process.stdin.flush()
        assert self._line() == "done"

    def _line(self) -> str:
        """The script's next line; Ray prints some of its own."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline().strip():
            if line == "done" or line.replace(".", "").replace(":", "").isdigit():
                return line
        raise AssertionError("the cluster has ended")
