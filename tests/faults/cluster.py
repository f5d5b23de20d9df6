"""A Ray cluster of this machine, in a process of its own, whose nodes come and go."""

import os
import subprocess
import sys
from typing import Final

from tests import processes
from tests.commands import ROOT

_SCRIPT: Final = """
import sys
from ray.cluster_utils import Cluster

made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = []
print(made.address, flush=True)
for line in sys.stdin:
    if line == "add\\n":
        nodes.append(made.add_node(num_cpus=1))
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
    "PYTHONPATH": str(ROOT),
}
WORKER: Final = "ray::_Worker"


class RayCluster:
    """A head without CPUs, and nodes that have one each."""

    def __init__(self, nodes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
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
