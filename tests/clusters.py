"""Ray clusters of several nodes on this machine, and scripts that use them, each in a process of its own."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]

_START = '''
import atexit, os, shutil, signal, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

os.environ |= {{"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500",
                "RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3",
                "GRPC_ENABLE_FORK_SUPPORT": "0"}}  # Ray's proxy forks while others of its threads are in gRPC
import ray
from ray.cluster_utils import Cluster

from objectives.evaluation import Evaluation, teach
from objectives.judging import FixedJudge
from objectives.score import Scorer
from objectives.workload import load_workload
from search.config import Config
from search.crew import Crew
from search.pool import RayPool, start_ray, stop_ray
from search.tasks import Result, ScoreTask, TestTask
from spaces.errors import StudyError
from spaces.policy import Choice, Policy, Unstructured, Uniform

FOLDER = Path({folder!r})
SAID = []


class Nodes(Cluster):
    """A cluster whose nodes share no folder: what one of them unpacks is not removed below another."""

    def add_node(self, **given):
        if self.head_node is not None:
            given["temp_dir"] = tempfile.mkdtemp(prefix="ray")  # a short path: there are sockets in it
            atexit.register(shutil.rmtree, given["temp_dir"], ignore_errors=True)
        return super().add_node(**given)


def cluster(**head):
    """A cluster without workers' CPUs on its head."""
    return Nodes(initialize_head=True, head_node_args={{"num_cpus": 0, "include_dashboard": False, **head}})


def settings(config):
    return Evaluation(seed=0, chunk=32, threads=1, device="cpu", steps=(), cache=config.cache_folder())


def config_of(address, workload, workers, **ray_settings):
    """A search of a workload's file, and that workload."""
    config = Config.model_validate(
        {{"study": "any", "workload": workload, "workers": workers, "cache": str(FOLDER / "cache"),
          "ray": {{"address": address, **ray_settings}}}},
        context={{"folder": FOLDER}},
    )
    return config, load_workload(config.workload_entry(), config.workload)


def launched(address, workload, workers):
    """The same as a launch does it, which joins the cluster beside its other work; the crew, and its pool."""
    config, loaded = config_of(address, workload, workers)
    evaluation = settings(config)
    crew = Crew(config, ThreadPoolExecutor(1).submit(start_ray, config))
    return crew, crew.pool(Scorer(loaded, evaluation, teach(loaded, evaluation)))


def pool_of(address, workload, workers, **ray_settings):
    """A pool on the cluster, of workers that score a workload's file."""
    config, loaded = config_of(address, workload, workers, **ray_settings)
    evaluation = settings(config)
    return RayPool(config, loaded, evaluation, teach(loaded, evaluation), SAID.append)


def policy(number):
    """A policy; number 0 prunes all."""
    ratio = 0.97 if number == 0 else 0.1 + 0.01 * number
    return Policy(sites={{"0": Choice(prune=Unstructured(ratio=ratio)), "2": Choice(weights=Uniform(bits=4))}})


def task(number):
    return ScoreTask(number, policy(number), FixedJudge())


def drain(pool, count, seconds=90):
    """The results of so many tasks, by number."""
    found, end = {{}}, time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < end, (sorted(found), SAID)
        for result in pool.collect(0.5):
            assert result.number not in found
            found[result.number] = result
    return found


def running(name="ray::_Worker"):
    """The processes of workers that this process started, also by way of others."""
    from tests import processes

    return processes.below(os.getpid(), name)
'''

WORKLOAD = """
import os
import time
from pathlib import Path

import torch
from torch import nn
from slimfront import Workload

HERE = Path(__file__).parent


def network():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, 8, generator=generator)
    return inputs, inputs[:, :4].argmax(dim=1)


def made(metric):
    return Workload(model=network(), train=data(1), calibration=data(2), validation=data(3), test=data(4),
                    example_input=torch.zeros(1, 8), metric=metric)


def hits(outputs, targets):
    return (outputs.argmax(dim=1) == targets).float()


def slow(outputs, targets):
    time.sleep(SECONDS)
    return hits(outputs, targets)


def deadly(outputs, targets):
    if float(outputs.std()) < LIMIT:
        os.abort()
    return hits(outputs, targets)


SECONDS = float(os.environ.get("SECONDS_EACH", "0.3"))
LIMIT = 0.8  # policy 0 comes to 0.47, the others to 1.18


def plain():
    return made(hits)


def sleepy():
    return made(slow)


def crashing():
    return made(deadly)
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run(folder: Path, script: str, seconds: float = 150.0, **environment: str) -> str:
    """Run a script that makes a cluster; what it printed on both outputs.

    Args:
        folder: its own, into which the workload is written.
        script: Python, which finds `cluster`, `pool_of`, `task`, `drain` and what they need.
        seconds: that it may take.
        **environment: variables of its.
    """
    user = folder / "user"
    user.mkdir(exist_ok=True)
    (user / "work.py").write_text(WORKLOAD)
    text = _START.format(folder=str(user)) + textwrap.dedent(script)
    variables = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"} | environment
    done = subprocess.run(
        [sys.executable, "-c", text],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
