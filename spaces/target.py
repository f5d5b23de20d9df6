"""Where the model will run, and what can be deployed there."""

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["storage"]


@dataclass(frozen=True)
class Target:
    """A place to run: the kinds of pruning and weights that survive the way there, and its bit widths."""

    name: TargetName
    prune: frozenset[str]
    weights: frozenset[str]
    bits: frozenset[int]


STORAGE = Target(
    name="storage",
    prune=frozenset({"none", "unstructured"}),
    weights=frozenset({"float32", "float16", "uniform"}),
    bits=frozenset(range(2, 9)),
)

TARGETS: dict[TargetName, Target] = {"storage": STORAGE}
