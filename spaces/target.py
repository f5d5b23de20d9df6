"""Where the model will run, and what can be deployed there."""

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["storage", "onnxruntime-cpu"]
CodingName = Literal["packed", "entropy"]


@dataclass(frozen=True)
class Target:
    """A place to run, and what survives the way there.

    Attributes:
        prune: kinds of pruning.
        weights: kinds of weights.
        bits: widths of uniform weights and codebooks.
        activations: kinds of quantized activations.
        coding: how packed files are coded, if the config does not say.
        multiple: of what the channel counts are, if the config does not say.
    """

    name: TargetName
    prune: frozenset[str]
    weights: frozenset[str]
    bits: frozenset[int]
    activations: frozenset[str]
    coding: CodingName
    multiple: int


STORAGE = Target(
    name="storage",
    prune=frozenset({"none", "unstructured", "nm", "threshold"}),
    weights=frozenset({"float32", "float16", "uniform", "codebook"}),
    bits=frozenset(range(2, 9)),
    activations=frozenset({"static", "dynamic"}),
    coding="entropy",
    multiple=1,
)

# an ONNX file holds integers of 4 and 8 bits, tables and floats, and ONNX Runtime runs them; single zeros make nothing
# smaller or faster there, and channel counts that are no multiple of 8 run no faster than the dense layer
ONNXRUNTIME_CPU = Target(
    name="onnxruntime-cpu",
    prune=frozenset({"none"}),
    weights=frozenset({"float32", "float16", "uniform", "codebook"}),
    bits=frozenset({4, 8}),
    activations=frozenset({"static", "dynamic"}),
    coding="packed",
    multiple=8,
)

TARGETS: dict[TargetName, Target] = {"storage": STORAGE, "onnxruntime-cpu": ONNXRUNTIME_CPU}
