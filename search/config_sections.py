"""The sections of a config: each a frozen model whose fields say what is allowed."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from search import config_fields as fields
from search import config_places as places
from search.config_errors import Key, refusal, shown
from spaces.policy import ChannelCriterion, Criterion, RangeBy, Rounding


def as_cache(given: Any) -> Any:
    """Let a text stand for the folder alone."""
    match given:
        case None:
            return {}
        case str():
            return {"folder": given}
        case Mapping() | CacheConfig():
            return given
        case _:
            kind = "a list" if isinstance(given, list) else ""  # its values may be secrets
            raise refusal("a folder, or keys and values (folder, max_bytes, shared)", given=kind)


def as_racing(given: Any) -> Any:
    """Let null stand for no races."""
    return {"confidence": None} if given is None else given


class Section(BaseModel):
    """A frozen part of a config that takes each value in its own type only, and no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class RuleConfig(Section):
    """Values that replace the space's own at the sites that match a glob; later rules win."""

    sites: fields.Glob = Field(description="glob of the sites this rule is for")
    bits: fields.AllBits | None = Field(default=None, description="bit widths of weights here; one fixes it")
    ratios: fields.AllRatios | None = Field(default=None, description="pruning ratios here; one fixes it")
    weights: fields.AllWeights | None = Field(default=None, description="kinds of weights here; one fixes it")
    patterns: fields.AllPatterns | None = Field(default=None, description="N:M patterns here; [] for none")
    activations: fields.AllActivations | None = Field(default=None, description="kinds of activations here")
    scale_per: fields.ScalePer | None = Field(default=None, description="what has a scale of its own here")
    criterion: Criterion | None = Field(default=None, description="by what the weights to prune are ranked here")
    rounding: Rounding | None = Field(default=None, description="how weights are rounded here")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.model_fields_set <= {"sites"}:
            others = [name for name in type(self).model_fields if name != "sites"]
            raise refusal(f"at least one of {', '.join(others)} beside sites")
        return self


class SpaceConfig(Section):
    """What may be chosen at the sites."""

    bits: fields.AllBits = Field(
        default=(2, 3, 4, 5, 6, 7, 8), description="bit widths of uniform weights and codebooks, 2 to 8"
    )
    ratios: fields.AllRatios = Field(
        default=(0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.96),
        description="shares of a site's weights that are pruned",
    )
    prune: fields.AllPrune = Field(
        default=("unstructured",),
        description="kinds of pruning; without unstructured the ratio is 0",
    )
    weights: fields.AllWeights = Field(default=("uniform",), description="kinds of weights")
    patterns: fields.AllPatterns = Field(
        default=("2:4",), description="N:M, where prune has nm: N of each M weights stay"
    )
    thresholds: fields.AllThresholds = Field(
        default=(), description="absolute values below which weights are pruned, where prune has threshold"
    )
    criterion: Criterion = Field(
        default="hessian", description="by what the weights to prune are ranked; hessian is the layer's output error"
    )
    scale_per: fields.ScalePer = Field(
        default="channel",
        description="what has a scale of its own: tensor, channel (an output channel), or a number k: each k "
        "consecutive weights of a channel, whose number k divides",
    )
    symmetric: bool = Field(default=True, description="whether uniform weights have as many levels below zero as above")
    rounding: Rounding = Field(
        default="gptq", description="how weights are rounded; gptq also moves scales and codebook entries"
    )
    fisher: bool = Field(default=False, description="whether codebooks weigh errors by the Fisher information")
    activations: fields.AllActivations = Field(default=("float",), description="kinds of activations")
    activation_bits: fields.AllActivationBits = Field(
        default=(8,), description="bit widths of quantized activations, 4 to 8"
    )
    activation_range: RangeBy = Field(
        default="mse", description="how the ranges of static activations are found; percentile is the inner 99.8 %"
    )
    smoothing: float | None = Field(
        default=None, ge=0, le=1, description="alpha of SmoothQuant behind LayerNorms, 0 to 1; null for none"
    )
    channels: fields.AllChannelRatios = Field(
        default=(),
        description="shares of a group's channels that may be removed, beside none; [] for no channel pruning",
    )
    channel_criterion: ChannelCriterion = Field(
        default="wanda", description="by what the channels to remove are ranked"
    )
    channel_refit: bool = Field(default=True, description="fit the weights that are left to the inputs that are left")
    channel_multiple: fields.Count | None = Field(
        default=None,
        description="channel counts are multiples of it, and of the lengths in patterns and scale_per; null for the "
        "target's (8 for onnxruntime-cpu)",
    )
    blocks: bool = Field(default=False, description="whether residual blocks may be dropped")
    students: bool = Field(default=True, description="whether smaller models that the workload offers may be taken")
    exclude: fields.Globs = Field(default=(), description="globs of sites that stay float32 and unpruned")
    rules: Annotated[tuple[RuleConfig, ...], fields.AsTuple] = Field(
        default=(), description="values of their own for some sites; later rules win"
    )

    @model_validator(mode="before")
    @classmethod
    def _unpruned(cls, given: Any) -> Any:
        """Let what prunes nothing at a ratio, as ``prune: [none]``, stand for a ratio of 0."""
        prune = given.get("prune") if isinstance(given, Mapping) else None
        if isinstance(prune, list | tuple) and prune and "unstructured" not in prune:
            return {"ratios": [0.0], **given}
        return given

    @model_validator(mode="after")
    def _prune_fits(self) -> Self:
        if "threshold" in self.prune and not self.thresholds:
            raise refusal("one or more, because space.prune has threshold", given="[]", at=("thresholds",))
        if "unstructured" not in self.prune:
            keys: list[Key] = [("ratios",), *(("rules", i, "ratios") for i in range(len(self.rules)))]
            for key, ratios in zip(keys, [self.ratios, *(rule.ratios for rule in self.rules)], strict=True):
                if any(ratios or ()):
                    raise refusal("[0.0] only, because space.prune has no unstructured", given=shown(ratios), at=key)
        return self


class PenaltyConfig(Section):
    """What shrinks weights in training."""

    kind: Literal["l1", "group_lasso", "batchnorm_l1"] = Field(description="which penalty")
    strength: float = Field(gt=0, description="its weight in the loss")


class DistillationConfig(Section):
    """How promising candidates are trained on under the teacher's eyes."""

    temperature: fields.Temperatures = Field(
        default=(1.0, 8.0), description="range of temperatures [low, high], searched on a log scale"
    )
    alpha: fields.Shares = Field(default=(0.5, 1.0), description="range of the soft loss's share [low, high]")
    learning_rate: float = Field(default=0.001, gt=0, le=1, description="learning rate of the training")
    batch_size: fields.Count = Field(default=64, description="samples in a training batch")
    steps: fields.Steps = Field(
        default=(60,), description="training steps at which rungs 1, 2, ... end; [] for one-shot only"
    )
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="who takes the steps")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate falls within a rung"
    )
    masks: Literal["static", "dynamic", "gradual"] = Field(
        default="static",
        description="static: pruned weights stay so; dynamic: every few steps some of them change places with others; "
        "gradual: ever more are pruned during the first rung",
    )
    grids: Literal["fixed", "learned"] = Field(
        default="fixed", description="learned: scales (LSQ) and codebook entries are trained with the weights"
    )
    rewind: bool = Field(
        default=False, description="start training from the early weights that the workload must then give"
    )
    features: float = Field(default=0.0, ge=0, description="weight of the loss between inner features; 0 for none")
    labels: Literal["given", "teacher"] = Field(
        default="given",
        description="whose labels the hard loss takes; without targets the class that the teacher finds most likely",
    )
    penalty: PenaltyConfig | None = Field(
        default=None,
        description="what shrinks weights in training, {kind: l1 or group_lasso or batchnorm_l1, strength: its weight "
        "in the loss}; null for none",
    )
    cache_bytes: fields.ByteCount = Field(default=10**9, description="bound on the kept outputs of the teacher")
    student_steps: fields.Number = Field(
        default=600,
        description="steps that a smaller model learns for beforehand; 0, as steps: [] needs, takes it as it comes",
    )
    share: float = Field(
        default=0.33, ge=0, le=1, description="share of the candidates on a rung that go on, by Pareto rank"
    )


class SamplerConfig(Section):
    """Who proposes the policies, and which ones are tried before."""

    name: fields.SamplerName = Field(
        default="front", description="sampler: a short name or an Optuna class's dotted path"
    )
    options: fields.Options = Field(default={}, description="keyword arguments of the sampler")
    uniform: fields.Number = Field(default=10, description="uniform policies that are tried first")
    predicted: fields.Number = Field(default=30, description="policies of the predicted front that are tried next")
    samples: fields.Number = Field(
        default=16, description="calibration samples on which the loss of single choices is measured; 0 for none"
    )
    measured: fields.Count | None = Field(
        default=12, description="choices of a site whose loss is measured, others follow them; null for all"
    )


class RacingConfig(Section):
    """When an evaluation is stopped because its candidate cannot reach the front any more."""

    confidence: float | None = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="how sure one must be that a candidate cannot win before its evaluation is stopped, more than 0.5 "
        "and less than 1; null evaluates all in full",
    )


class PatienceConfig(Section):
    """When the search ends because the front has stopped growing."""

    candidates: fields.Count = Field(default=40, description="candidates that the front may go without growing")
    growth: float = Field(default=0.001, ge=0, le=1, description="growth of its hypervolume that does not count")


class BudgetConfig(Section):
    """When the search ends, and which sizes it looks at until then."""

    trials: fields.Count = Field(default=120, description="trials of the whole study")
    timeout: fields.Seconds = Field(default=None, description="seconds this launch may search, also as 90s, 30m or 2h")
    until: fields.Until = Field(
        default=None,
        description="local time at which this launch ends, as in 18:00 (the next one) or 2026-12-24 18:00",
    )
    patience: PatienceConfig | None = Field(
        default=None,
        description="end when the front's hypervolume has not grown by more than growth over so many candidates, "
        "{candidates: 40, growth: 0.001}; null for never",
    )
    focus: fields.Focus = Field(
        default=None,
        description="range of bytes [low, high] that new candidates aim at, also as 40kB..120kB; null for all sizes",
    )
    grace: fields.GraceSeconds = Field(
        default=30.0,
        description="seconds that running candidates get to finish after Ctrl-C, SIGTERM or `slimfront stop`, also as "
        "30s or 2m; 0 for none",
    )


class CacheConfig(Section):
    """Where compressed layers and packed models are kept."""

    folder: places.Folder | None = Field(
        default=None, description="the folder; null for $SLIMFRONT_CACHE, else ~/.cache/slimfront"
    )
    max_bytes: fields.ByteCount = Field(
        default=2 * 10**9,
        description="bound on the compressed layers, and one on students between rungs; what does not fit is made "
        "again when needed",
    )
    shared: places.SharedFolder = Field(
        default=None,
        repr=False,
        description="where nodes share compressed layers and packed files: a folder that all see, or an fsspec URL, "
        "as s3://bucket/slimfront; each node keeps a copy in its own folder; null does not share",
    )
