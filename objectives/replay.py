"""The conditions of a search, set up again: its workload, its settings and its number of threads."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from objectives.evaluation import Evaluation, needs_gradients, resolve_device
from objectives.workload import LoadedWorkload, load_workload
from spaces.errors import WorkloadError
from spaces.policy import PolicyFile

SHIPPED = tuple(f"objectives.workloads.{name}:workload" for name in ("digits", "animals", "lenet"))


def workload_of(entry: str, given: str | None, what: str) -> LoadedWorkload:
    """The given workload, under the name `entry`; without one, the workload of that name if it ships.

    Args:
        entry: as a file names it: compared, never imported.
        given: what the user named.
        what: was made for it, for the message.

    Raises:
        WorkloadError: it is not known or cannot be loaded.
    """
    if given is not None:
        return load_workload(given, entry)
    for shipped in SHIPPED:
        if entry == shipped:
            return load_workload(shipped)
    raise WorkloadError(
        f"{what} for the workload {entry!r}, which does not ship with Slimfront, and what a file names is not "
        "imported: name the workload with --workload (workload= in Python), module:function or file.py:function"
    )


def evaluation_of(policy: PolicyFile, device: str | None, steps: tuple[int, ...], cache: Path) -> Evaluation:
    """The settings that a policy was scored under, with a cache folder of one's own.

    Args:
        policy: it carries every setting that shapes its file.
        device: "cpu", "cuda" or "auto"; None is that of the search.
        steps: at which rungs end.
        cache: the folder.
    """
    provenance, found = policy.provenance, policy.policy
    return Evaluation(
        provenance.seed,
        provenance.chunk,
        provenance.threads,
        resolve_device(device or provenance.device),
        steps,
        cache,
        coding=policy.artifact.coding,
        distillation=found.distillation,
        smoothing=policy.smoothing,
        gradients=needs_gradients(found.sites.values(), found.channel_pruning),
    )


@contextlib.contextmanager
def own_threads(count: int) -> Iterator[None]:
    """Evaluate with the search's number of torch threads; the caller's number and determinism are restored."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
