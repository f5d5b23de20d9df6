"""The public names of Slimfront, imported when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objectives.serving import load as load
    from objectives.workload import Workload as Workload
    from search.front import front as front
    from search.loop import launch as launch
    from spaces.policy import Policy as Policy

_HOME = {
    "Workload": "objectives.workload",
    "Policy": "spaces.policy",
    "launch": "search.loop",
    "front": "search.front",
    "load": "objectives.serving",
}

__version__ = "0.1.0"
__all__ = ["Policy", "Workload", "front", "launch", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'slimfront' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
