"""A policy: one choice per site plus the distillation settings, as a frozen value with a JSON form and a digest."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from spaces.choice import (
    Activations,
    ChannelCriterion,
    Choice,
    Codebook,
    Criterion,
    DynamicActivations,
    Float16,
    Float32,
    NoPruning,
    Prune,
    RangeBy,
    Rounding,
    ScalePer,
    SemiStructured,
    Share,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Value,
    Weights,
)
from spaces.errors import ConfigError
from spaces.target import TargetName

__all__ = [
    "Activations",
    "ArtifactRecord",
    "ChannelCriterion",
    "ChannelPruning",
    "Choice",
    "Codebook",
    "Criterion",
    "Distillation",
    "DistillationRecord",
    "DynamicActivations",
    "Float16",
    "Float32",
    "NoPruning",
    "Penalty",
    "Policy",
    "PolicyFile",
    "Provenance",
    "Prune",
    "RangeBy",
    "Rounding",
    "ScalePer",
    "ScoreRecord",
    "SemiStructured",
    "Share",
    "StaticActivations",
    "Threshold",
    "Uniform",
    "Unstructured",
    "Value",
    "Weights",
    "WorkloadRecord",
    "read_policy",
]

FORMAT: Final = "slimfront.policy"
VERSION: Final = 1

Removed = Annotated[Share, Field(ge=0, lt=1)]
Smoothing = Annotated[Share, Field(ge=0, le=1)]


class Penalty(Value):
    """Shrinks weights in training: L1 on weights, group lasso on channels, or L1 on BatchNorm scales."""

    kind: Literal["l1", "group_lasso", "batchnorm_l1"]
    strength: float = Field(gt=0)


class Distillation(Value):
    """How the compressed student learns from the float model on rungs above 0 (Hinton et al. 2015).

    Attributes:
        optimizer: who takes the steps.
        schedule: how the learning rate falls within a rung.
        masks: "static" weights once pruned stay so; "dynamic" they are chosen anew from the current weights;
            "gradual" likewise, while the ratio rises to the policy's (cubic).
        rewind: start from the weights that the workload offers as early ones, where it does.
        grids: "fixed" scales and codebook entries stay; "learned" they are trained, too.
        features: weight of the squared error between inner features of student and teacher.
        labels: "given" targets, or what the "teacher" answers.
        penalty: shrinks weights.
        cache_bytes: bound on the kept outputs of the teacher; beyond it fewer are kept, or none.
        student_steps: steps that a smaller model learns for before it is compressed.
    """

    temperature: float = Field(gt=0)
    alpha: Share = Field(ge=0, le=1, description="share of the soft loss")
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1, description="training samples a step")
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    masks: Literal["static", "dynamic", "gradual"] = "static"
    rewind: bool = False
    grids: Literal["fixed", "learned"] = "fixed"
    features: float = Field(default=0.0, ge=0)
    labels: Literal["given", "teacher"] = "given"
    penalty: Penalty | None = None
    cache_bytes: int = Field(default=10**9, ge=0)
    student_steps: int = Field(default=0, ge=0)


class ChannelPruning(Value):
    """Which channels go first (the least by `criterion`), and of what the number of those that stay is a multiple.

    With `refit` the weights that are left are fitted to the inputs that are left.
    """

    criterion: ChannelCriterion = "wanda"
    multiple: int = Field(default=1, ge=1)
    refit: bool = True


class Policy(Value):
    """One choice per site and the distillation settings; equal policies have equal digests.

    Attributes:
        sites: one choice per site that is left; those of a dropped block have none.
        channels: share of a group's channels that are removed, by group.
        channel_pruning: which of them; None where none are.
        dropped: residual blocks that are left out.
        model: which of the models that the workload offers; None is the trained one.
        smoothing: alpha of SmoothQuant, applied before all else; None is not at all.

    Example:
        >>> policy = Policy(sites={"head": Choice(weights=Uniform(bits=4))})
        >>> Policy.model_validate_json(policy.model_dump_json()) == policy
        True
    """

    sites: dict[str, Choice]
    channels: dict[str, Removed] = Field(default_factory=dict)
    channel_pruning: ChannelPruning | None = None
    dropped: tuple[str, ...] = ()
    model: str | None = None
    smoothing: Smoothing | None = None
    distillation: Distillation | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON form."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class WorkloadRecord(Value):
    """Which workload the policy was found for; `entry` is compared, never imported."""

    entry: str
    model_sha256: str
    data_sha256: str


class DistillationRecord(Distillation):
    """The distillation settings and the training steps that were really spent (0: one-shot).

    `ladder` has the steps at which each rung reached ended, the last one is `steps`: the learning rate falls to
    zero within each rung, so the total alone does not tell how the student was trained.
    """

    steps: int = Field(ge=0)
    ladder: tuple[Annotated[int, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _ends_with_steps(self) -> Self:
        if list(self.ladder) != sorted(set(self.ladder)) or self.steps != (self.ladder[-1] if self.ladder else 0):
            raise ValueError(f"steps is {self.steps}, but ladder {self.ladder} must increase and end with it")
        return self


class ArtifactRecord(Value):
    """The packed file that was scored; `sha256` is None where the search did not keep it (off the front)."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    bytes: int = Field(gt=0)
    coding: Literal["packed", "entropy"] = "packed"


class ScoreRecord(Value):
    """What the policy is worth: accuracy on validation and test, bytes of the file, MACs of one example."""

    accuracy: float
    accuracy_ci95: tuple[float, float] | None
    test_accuracy: float | None
    bytes: int
    macs: float
    float_accuracy: float
    float_test_accuracy: float | None
    float_bytes: int
    rung: int = Field(ge=0)


class Provenance(Value):
    """Where the policy comes from, and how it was evaluated there: these settings shape the last bits of a score."""

    study: str
    trial: int = Field(ge=0)
    seed: int
    chunk: int = Field(ge=1, description="samples a forward pass")
    threads: int = Field(ge=1, description="torch threads of a worker")
    device: str
    versions: dict[str, str]


class PolicyFile(Value):
    """The policy JSON, version 1: a policy with its artifact, score and provenance."""

    format: Literal["slimfront.policy"] = FORMAT
    version: Literal[1] = VERSION
    workload: WorkloadRecord
    target: TargetName
    sites: dict[str, Choice]
    channels: dict[str, Removed] = Field(default_factory=dict)
    channel_pruning: ChannelPruning | None = None
    dropped: tuple[str, ...] = ()
    model: str | None = None
    smoothing: Smoothing | None = None
    distillation: DistillationRecord | None
    artifact: ArtifactRecord
    score: ScoreRecord
    provenance: Provenance

    @property
    def policy(self) -> Policy:
        """The policy alone, as it was searched."""
        settings = self.distillation.model_dump(exclude={"steps", "ladder"}) if self.distillation else None
        return Policy(
            sites=self.sites,
            channels=self.channels,
            channel_pruning=self.channel_pruning,
            dropped=self.dropped,
            model=self.model,
            smoothing=self.smoothing,
            distillation=Distillation(**settings) if settings else None,
        )

    def text(self) -> str:
        """The JSON document, indented, ending in a newline."""
        return self.model_dump_json(indent=2) + "\n"


def read_policy(path: Path) -> PolicyFile:
    """Read and check a policy JSON file.

    Raises:
        ConfigError: the file is missing, is no JSON, or has a key, value or version that is not known.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such policy file; `slimfront export -o {path}` writes one") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a number too long
        raise ConfigError(f"{path}: cannot be read as policy JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f'{path}: not a policy file: "format" must be "{FORMAT}"')
    if document.get("version") != VERSION:
        raise ConfigError(
            f"{path}: version: given {document.get('version')!r}, this Slimfront reads version {VERSION}; upgrade it"
        )
    try:
        return PolicyFile.model_validate(document)
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(str(part) for part in one['loc'])}: "
            + ("is missing" if one["type"] == "missing" else f"given {one['input']!r}: {one['msg']}")
            for one in error.errors()
        )
        raise ConfigError(f"{path} is not a valid policy:\n{problems}") from error
