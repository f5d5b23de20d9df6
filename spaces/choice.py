"""What may be done at one site: how it is pruned, and how its weights and its input are quantized."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# -0.0 becomes 0.0: they are equal, so their digests must be
Share = Annotated[float, AfterValidator(lambda value: value + 0.0)]


class Value(BaseModel):
    """A frozen value that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Criterion = Literal["magnitude", "random", "taylor", "apoz", "wanda", "hessian"]
ChannelCriterion = Literal["l1", "l2", "random", "taylor", "apoz", "batchnorm", "wanda", "hessian"]
ScalePer = Literal["tensor", "channel", "group"]
Rounding = Literal["nearest", "gptq", "adaround"]
RangeBy = Literal["minmax", "percentile", "mse"]


class NoPruning(Value):
    """All weights of the site stay."""

    kind: Literal["none"] = "none"

    @property
    def label(self) -> str:
        """Nothing to say."""
        return ""


class Unstructured(Value):
    """Single weights become zero: the `ratio` of them with the least `criterion`."""

    kind: Literal["unstructured"] = "unstructured"
    ratio: float = Field(gt=0, lt=1)
    criterion: Criterion = "magnitude"

    @property
    def label(self) -> str:
        """The pruning in words."""
        return f"{self.ratio:.0%} pruned".replace("%", " %")


class SemiStructured(Value):
    """Of each `m` consecutive weights of a channel the `n` with the most `criterion` stay."""

    kind: Literal["nm"] = "nm"
    n: int = Field(ge=1, le=15)
    m: int = Field(ge=2, le=16)
    criterion: Criterion = "magnitude"

    @model_validator(mode="after")
    def _fewer(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n is {self.n} and m is {self.m}, but fewer than m of each m weights must stay")
        return self

    @property
    def label(self) -> str:
        """The pruning in words."""
        return f"{self.n}:{self.m} pruned"


class Threshold(Value):
    """Weights of an absolute value below `value` become zero."""

    kind: Literal["threshold"] = "threshold"
    value: float = Field(gt=0)

    @property
    def label(self) -> str:
        """The pruning in words."""
        return f"pruned below {self.value}"


class Float32(Value):
    """Weights stay as they are."""

    kind: Literal["float32"] = "float32"

    @property
    def label(self) -> str:
        """The kind in words."""
        return self.kind


class Float16(Value):
    """Weights are rounded to IEEE half precision."""

    kind: Literal["float16"] = "float16"

    @property
    def label(self) -> str:
        """The kind in words."""
        return self.kind


class Uniform(Value):
    """Weights are integers times a scale, one per tensor, per output channel or per `group_size` weights of a channel.

    Symmetric ones have as many levels below zero as above; of asymmetric ones zero is a level, too.
    """

    kind: Literal["uniform"] = "uniform"
    bits: int = Field(ge=2, le=8)
    scale_per: ScalePer = "channel"
    group_size: int | None = Field(default=None, ge=2)
    symmetric: bool = True
    rounding: Rounding = "nearest"

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if (self.group_size is not None) != (self.scale_per == "group"):
            raise ValueError(f"group_size is {self.group_size}, but scale_per is {self.scale_per}")
        return self

    @property
    def label(self) -> str:
        """The kind in words."""
        return f"{self.bits} bits"


class Codebook(Value):
    """Weights are zero or one of 2**bits - 1 values of k-means, weighted by Fisher information where asked."""

    kind: Literal["codebook"] = "codebook"
    bits: int = Field(ge=1, le=8)
    fisher: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"

    @property
    def label(self) -> str:
        """The kind in words."""
        return f"{self.bits}-bit codebook"


class StaticActivations(Value):
    """The site's input is rounded to unsigned integers over a range that calibration data gave."""

    kind: Literal["static"] = "static"
    bits: int = Field(ge=4, le=8)
    range: RangeBy = "mse"

    @property
    def label(self) -> str:
        """The kind in words."""
        return f"{self.bits}-bit static activations"


class DynamicActivations(Value):
    """The site's input is rounded to unsigned integers over the range that each sample has."""

    kind: Literal["dynamic"] = "dynamic"
    bits: int = Field(ge=4, le=8)

    @property
    def label(self) -> str:
        """The kind in words."""
        return f"{self.bits}-bit dynamic activations"


Prune = Annotated[NoPruning | Unstructured | SemiStructured | Threshold, Field(discriminator="kind")]
Weights = Annotated[Float32 | Float16 | Uniform | Codebook, Field(discriminator="kind")]
Activations = Annotated[StaticActivations | DynamicActivations, Field(discriminator="kind")]


class Choice(Value):
    """What is done at one site.

    Example:
        >>> Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)).label
        '4 bits, 50 % pruned'
    """

    prune: Prune = NoPruning()
    weights: Weights = Float32()
    activations: Activations | None = None

    @property
    def ratio(self) -> float:
        """Share of weights that unstructured pruning removes, 0 to below 1; 0 for other kinds."""
        return self.prune.ratio if isinstance(self.prune, Unstructured) else 0.0

    @property
    def label(self) -> str:
        """The choice in words."""
        parts = (self.weights.label, self.prune.label, self.activations.label if self.activations else "")
        return ", ".join(part for part in parts if part)
