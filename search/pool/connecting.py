"""The Ray of this process: a quiet one of its own, or a cluster that it joins."""

import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import ray
from ray.exceptions import RayError

from search.config import Config
from search.pool.bringing import brought, hide_variables
from search.progress import say as say_on_stderr
from spaces.errors import StudyError

OBJECT_STORE_BYTES = 512 * 2**20
DOOR_SECONDS = 30.0  # a cluster that is just starting may take so long to open its port
JOIN_SECONDS = 60.0  # and so long to let us in
JOINS = 3  # tries, where the head's client server ended as it was forked, which a race in Ray's proxy does to some
_RACE = "Starting Ray client server failed"
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job
_FIXES = {
    "auto": "start Ray on this machine (`ray start`), name the cluster (ray://HOST:PORT), or leave ray.address out to "
    "search on this machine alone",
    "client": "check host, port and firewall, and that the head runs Ray's client server (ray start --head "
    "--ray-client-server-port=PORT, mostly 10001); a head that asks for Ray's token lets in only who has "
    "RAY_AUTH_MODE=token set",
    "native": "check host and port (mostly 6379), and that this machine is a node of that cluster (ray start "
    "--address=HOST:PORT); from other machines it is ray://HOST:10001",
}


def joined_address(config: Config) -> str | None:
    """The address of the cluster to join; None to start a Ray on this machine.

    Where the config names none, that of $RAY_ADDRESS, which Ray sets for its jobs, counts, as it does for Ray itself.
    """
    if config.ray.address is not None:
        return config.ray.address
    given = os.environ.get("RAY_ADDRESS", "")
    return None if given in ("", "local") or given.startswith("http") else given


def start_ray(config: Config, say: Callable[[str], None] = say_on_stderr) -> bool:
    """Start a quiet local Ray with room for the workers, or join the config's cluster.

    A Ray that this process has already is used as it is.

    Args:
        config: of the search.
        say: takes a line for people.

    Returns:
        Whether it was started or joined, and so is ours to stop.

    Raises:
        StudyError: Ray does not start, or the cluster cannot be joined.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return False
    address = joined_address(config)
    if address is None:
        _start(config)
    else:
        if config.ray.address is None:
            where = "this is a Ray job, so its cluster is used" if JOB_VARIABLE in os.environ else "it is joined"
            say(f"no ray.address, but $RAY_ADDRESS is {address}: {where}")
        _join(address, config)
    _end_printing()
    return True


def _start(config: Config) -> None:
    need, workers = config.ray.resources, max(1, config.workers)
    try:
        ray.init(
            address="local",
            num_cpus=math.ceil(workers * need.cpus),
            resources={name: workers * amount for name, amount in need.custom.items()},
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=True,
        )
    except Exception as error:
        raise StudyError(
            f"Ray does not start: {error}; `slimfront doctor` looks closer, --workers 0 does without"
        ) from error


def _join(address: str, config: Config) -> None:
    kind = "client" if address.startswith("ray://") else "auto" if address == "auto" else "native"
    if kind == "client" and find_spec("grpc") is None:
        raise StudyError(f"ray.address {address} needs Ray's client: pip install 'slimfront[cluster]'")
    if kind != "auto":
        _wait_for_door(address, _FIXES[kind])
    settings: dict[str, Any] = {
        "address": address,
        "runtime_env": _not_in_job(brought(config)[0]),
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    for left in reversed(range(JOINS)):
        found: list[Exception | None] = []
        joining = threading.Thread(target=_init, args=(settings, found), daemon=True)
        joining.start()
        joining.join(JOIN_SECONDS)
        if not found:
            raise StudyError(f"ray.address {address} did not let us in within {JOIN_SECONDS:g} s: {_FIXES[kind]}")
        if found[0] is None:
            return
        if left and _RACE in str(found[0]):
            continue
        reason = hide_variables(config, str(found[0]))
        raise StudyError(_refused(address, reason, _FIXES[kind])) from None  # Ray's own text may hold variables


def _init(settings: dict[str, Any], found: list[Exception | None]) -> None:
    try:
        ray.init(**settings)
    except Exception as error:
        found.append(error)
    else:
        found.append(None)


def _refused(address: str, reason: str, fix: str) -> str:
    """Why a cluster could not be joined, on one line."""
    words = " ".join(reason.split())
    if "ersion mismatch" in words or "different versions" in words or "version" in words.lower().split():
        return f"ray.address {address}: {words}. Install the same Ray and Python here and there, or use the same image"
    if "uthentication" in words or "token" in words.lower():
        return f"ray.address {address}: {words}"
    if "working_dir" in words or "runtime_env" in words or "exceeds the maximum size" in words:
        return f"ray.runtime_env: {words}; leave big files out by ray.runtime_env.excludes"
    if _RACE in words:
        fix = "set GRPC_ENABLE_FORK_SUPPORT=0 for `ray start` on the head, and look at its ray_client_server_*.err"
    return f"ray.address {address} cannot be joined: {words.rstrip('.')}: {fix}"


def _wait_for_door(address: str, fix: str) -> None:
    """Wait until something listens there.

    Raises:
        StudyError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    end = time.monotonic() + DOOR_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            unknown = isinstance(error, (socket.gaierror, OverflowError))
            if unknown or time.monotonic() > end:
                raise StudyError(f"ray.address {address} does not answer ({error}): {fix}") from error
            time.sleep(0.5)


def _not_in_job(environment: dict[str, Any]) -> dict[str, Any]:
    """What of an environment the job of this driver did not bring already: Ray refuses to have it twice."""
    given = json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("runtime_env") or {}
    left = {key: value for key, value in environment.items() if key not in given}
    if "env_vars" in environment and "env_vars" in given:
        left["env_vars"] = {k: v for k, v in environment["env_vars"].items() if k not in given["env_vars"]}
    if "working_dir" in given:
        left.pop("excludes", None)
    return left


def _end_printing() -> None:
    """End the thread by which Ray prints errors of workers and nodes on standard output: the pool says what happened.

    `log_to_driver` does not stop it, and no setting does; this is what Ray itself does when it shuts down.
    """
    worker = ray._private.worker.global_worker
    thread, subscriber = getattr(worker, "listener_thread", None), getattr(worker, "gcs_error_subscriber", None)
    if thread is None or subscriber is None or getattr(worker, "logger_thread", None) is not None:
        return
    worker.threads_stopped.set()
    subscriber.close()
    thread.join(5)
    if not thread.is_alive():
        worker.threads_stopped.clear()


def stop_ray() -> None:
    """Stop or leave this process's Ray: for whom `start_ray` said that it is theirs."""
    if ray.is_initialized():
        ray.shutdown()


def is_client() -> bool:
    """Whether this process reaches its Ray through Ray's client."""
    from ray.util.client import ray as client

    return bool(client.is_connected())  # type: ignore[no-untyped-call]


def home_node() -> str | None:
    """The id of the node that this process is on; None where it is none of the cluster's."""
    return None if is_client() else ray.get_runtime_context().get_node_id()


def _answer() -> int:
    """A task that says where it ran."""
    return os.getpid()


def ray_answers(address: str | None = None) -> str:
    """Start Ray, or join a cluster, run one task, and leave it again; what it answered, in words.

    Raises:
        StudyError: it does not start or answer.
    """
    started = time.perf_counter()
    config = Config.model_validate({"study": "any", "workload": "any:any", "workers": 1, "ray": {"address": address}})
    ours = start_ray(config)
    try:
        answer = ray.get(ray.remote(_answer).remote(), timeout=60)
    except RayError as error:
        raise StudyError(f"Ray starts, but does not run a task: {error}") from error
    finally:
        if ours:
            stop_ray()
    what = "joined" if address else "started"
    return (
        f"Ray {ray.__version__} {what} and ran a task in process {answer} after {time.perf_counter() - started:.1f} s"
    )
