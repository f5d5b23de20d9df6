"""Scoring on Ray, on this machine or a cluster; the only package, beside `search.tune`, that imports ray."""

from typing import TYPE_CHECKING, Any

from search.pool.connecting import joined_address, ray_answers, start_ray, stop_ray

if TYPE_CHECKING:
    from search.pool.pool import RayPool as RayPool

__all__ = ["RayPool", "joined_address", "ray_answers", "start_ray", "stop_ray"]


def __getattr__(name: str) -> Any:
    """The pool is imported, and torch with it, when it is first used: jobs need neither."""
    if name != "RayPool":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from search.pool.pool import RayPool

    return RayPool
