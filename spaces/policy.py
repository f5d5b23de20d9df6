"""A policy: one choice per site plus the distillation settings, as a frozen value with a JSON form and a digest."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from spaces.errors import ConfigError

FORMAT: Final = "slimfront.policy"
VERSION: Final = 1


# -0.0 becomes 0.0: they are equal, so their digests must be
Share = Annotated[float, AfterValidator(lambda value: value + 0.0)]


class Value(BaseModel):
    """A frozen value that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoPruning(Value):
    """All weights of the site stay."""

    kind: Literal["none"] = "none"


class Unstructured(Value):
    """Single weights become zero: the `ratio` of them with the least `criterion`."""

    kind: Literal["unstructured"] = "unstructured"
    ratio: float = Field(gt=0, lt=1)
    criterion: Literal["magnitude"] = "magnitude"


class Float32(Value):
    """Weights stay as they are."""

    kind: Literal["float32"] = "float32"


class Float16(Value):
    """Weights are rounded to IEEE half precision."""

    kind: Literal["float16"] = "float16"


class Uniform(Value):
    """Weights are integers times one scale per output channel (symmetric: zero is a level)."""

    kind: Literal["uniform"] = "uniform"
    bits: int = Field(ge=2, le=8)
    scale_per: Literal["channel"] = "channel"
    symmetric: Literal[True] = True
    rounding: Literal["nearest"] = "nearest"


Prune = Annotated[NoPruning | Unstructured, Field(discriminator="kind")]
Weights = Annotated[Float32 | Float16 | Uniform, Field(discriminator="kind")]


class Choice(Value):
    """What is done at one site.

    Example:
        >>> Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)).label
        '4 bits, 50 % pruned'
    """

    prune: Prune = NoPruning()
    weights: Weights = Float32()
    activations: None = None

    @property
    def ratio(self) -> float:
        """Share of weights pruned, 0 to below 1."""
        return self.prune.ratio if isinstance(self.prune, Unstructured) else 0.0

    @property
    def label(self) -> str:
        """The choice in words."""
        weights = f"{self.weights.bits} bits" if isinstance(self.weights, Uniform) else self.weights.kind
        return f"{weights}, {self.ratio:.0%} pruned".replace("%", " %") if self.ratio else weights


class Distillation(Value):
    """How the compressed student learns from the float model on rungs above 0 (Hinton et al. 2015)."""

    temperature: float = Field(gt=0)
    alpha: Share = Field(ge=0, le=1, description="share of the soft loss")
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1, description="training samples a step")


class Policy(Value):
    """One choice per site and the distillation settings; equal policies have equal digests.

    Example:
        >>> policy = Policy(sites={"head": Choice(weights=Uniform(bits=4))})
        >>> Policy.model_validate_json(policy.model_dump_json()) == policy
        True
    """

    sites: dict[str, Choice]
    channels: dict[str, Share] = {}
    distillation: Distillation | None = None

    @property
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
    coding: Literal["packed"] = "packed"


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
    target: Literal["storage"]
    sites: dict[str, Choice]
    channels: dict[str, Share] = {}
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
