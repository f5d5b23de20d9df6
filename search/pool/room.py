"""Whether the nodes of a Ray have what workers ask for, in words."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray

from spaces.errors import StudyError


def check_local(asked: Mapping[str, float], workers: int) -> None:
    """Check that this process's own Ray has room for all workers at once.

    Args:
        asked: what one worker asks for, by Ray's names.
        workers: how many.

    Raises:
        StudyError: it does not.
    """
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, amount in asked.items():
        if has.get(name, 0.0) < amount * workers * (1 - 1e-9):
            raise StudyError(
                f"this process's Ray has {_amount(name, has.get(name, 0.0))}, too few for {workers} workers: take "
                f"fewer, or less for each (ray.resources)"
            )


def waiting_for(asked: Mapping[str, float]) -> str:
    """Why no worker has started yet on a cluster, as far as it can be seen.

    Args:
        asked: what one worker asks for, by Ray's names.
    """
    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    wish = ", ".join(_amount(name, amount) for name, amount in asked.items())
    if any(all(node.get(name, 0.0) >= amount for name, amount in asked.items()) for node in nodes):
        return f"a worker asks for {wish}: it is starting, or what has that is taken"
    missing = [name for name, amount in asked.items() if not any(node.get(name, 0.0) >= amount for node in nodes)]
    lacking = ", ".join(_amount(name, asked[name]) for name in missing) or f"{wish} together"
    kinds = Counter(", ".join(_amount(name, node[name]) for name in sorted(node) if _shown(name)) for node in nodes)
    there = "; ".join(f"{count} with {kind or 'nothing'}" for kind, count in sorted(kinds.items()))
    return (
        f"a worker asks for {wish}, and no node has {lacking}. Nodes: {there or 'none'}. Unless the cluster grows by "
        "itself, ask for less (ray.resources) or add a node"
    )


def alive_nodes() -> set[str]:
    """The ids of the nodes that are alive, as far as the cluster has noticed."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def _shown(name: str) -> bool:
    return not name.startswith("node:") and name != "object_store_memory"


def _amount(name: str, amount: float) -> str:
    match name:
        case "CPU" | "GPU":
            return f"{amount:g} {name}s"
        case "memory":
            return f"{amount / 10**9:.3g} GB of memory"
        case _:
            return f"{amount:g} {name}"
