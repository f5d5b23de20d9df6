"""A search as one frozen `Config`, read from YAML and checked before torch, optuna or ray are imported."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from search import config_fields as fields
from search.config_errors import Key, key_path, problems_of, refusal, shown
from search.config_file import Origins, origin_of, read_config_file
from spaces.errors import ConfigError
from spaces.target import TargetName

DEFAULT_STORAGE = "sqlite:///slimfront.db"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class RuleConfig(_Section):
    """Values that replace the space's own at the sites that match a glob; later rules win."""

    sites: fields.Glob = Field(description="glob of the sites this rule is for")
    bits: fields.AllBits | None = Field(default=None, description="bit widths of uniform weights here; one fixes it")
    ratios: fields.AllRatios | None = Field(default=None, description="pruning ratios here; one fixes it")
    weights: fields.AllWeights | None = Field(default=None, description="kinds of weights here; one fixes it")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.bits is None and self.ratios is None and self.weights is None:
            raise refusal("at least one of bits, ratios, weights beside sites")
        return self


class SpaceConfig(_Section):
    """What may be chosen at the sites."""

    bits: fields.AllBits = Field(default=(2, 3, 4, 5, 6, 7, 8), description="bit widths of uniform weights")
    ratios: fields.AllRatios = Field(
        default=(0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.96),
        description="shares of a site's weights that are pruned",
    )
    prune: fields.AllPrune = Field(default=("unstructured",), description="kinds of pruning; none alone means ratio 0")
    weights: fields.AllWeights = Field(default=("uniform",), description="kinds of weights")
    exclude: fields.Globs = Field(default=(), description="globs of sites that stay float32 and unpruned")
    rules: Annotated[tuple[RuleConfig, ...], fields.AsTuple] = Field(
        default=(), description="values of their own for some sites; later rules win"
    )

    @model_validator(mode="before")
    @classmethod
    def _unpruned(cls, given: Any) -> Any:
        """Let ``prune: [none]`` alone stand for a ratio of 0."""
        if isinstance(given, Mapping) and given.get("prune") in (["none"], ("none",)):
            return {"ratios": [0.0], **given}
        return given

    @model_validator(mode="after")
    def _ratios_fit(self) -> Self:
        if self.prune == ("none",):
            keys: list[Key] = [("ratios",), *(("rules", i, "ratios") for i in range(len(self.rules)))]
            for key, ratios in zip(keys, [self.ratios, *(rule.ratios for rule in self.rules)], strict=True):
                if any(ratios or ()):
                    raise refusal("[0.0] only, because space.prune is [none]", given=shown(ratios), at=key)
        return self


class DistillationConfig(_Section):
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
    margin: float = Field(
        default=0.02,
        ge=0,
        description="accuracy that a candidate may lack to the one-shot front and still be promoted",
    )


class SamplerConfig(_Section):
    """Who proposes the policies, and which ones are tried before."""

    name: fields.SamplerName = Field(
        default="nsga2", description="sampler: a short name or an Optuna class's dotted path"
    )
    options: fields.Options = Field(default={}, description="keyword arguments of the sampler")
    uniform: fields.Number = Field(default=10, description="uniform policies that are tried first")
    predicted: fields.Number = Field(default=30, description="policies of the predicted front that are tried next")


class BudgetConfig(_Section):
    """When the search ends."""

    trials: fields.Count = Field(default=120, description="trials of the whole study")
    timeout: fields.Seconds = Field(default=None, description="seconds this launch may search, also as 90s, 30m or 2h")


class Config(_Section):
    """A search: what is compressed, how, within which limits, and where.

    Example:
        >>> config = Config(study="digits", workload="objectives.workloads.digits:workload")
        >>> config.budget.trials, config.sampler.name
        (120, 'nsga2')
    """

    study: fields.Study = Field(description="name of the study")
    workload: fields.WorkloadEntry = Field(
        description="module:function, or file.py:function relative to this file's folder"
    )
    target: TargetName = Field(default="storage", description="where the model will run")
    space: SpaceConfig = Field(default=SpaceConfig(), description="what may be chosen")
    distillation: DistillationConfig = Field(default=DistillationConfig(), description="how they are trained on")
    objectives: fields.Objectives = Field(default=("accuracy", "bytes"), description="what is optimised")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="who proposes policies")
    budget: BudgetConfig = Field(default=BudgetConfig(), description="when the search ends")
    workers: fields.Number = Field(default=2, description="workers that score candidates; 0 scores in the driver")
    threads: fields.Count = Field(default=1, description="torch threads of a worker; changes the last bits of scores")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="seed of everything random")
    window: fields.Count = Field(default=8, description="candidates that may be asked and not yet told")
    chunk: fields.Count = Field(default=200, description="samples in a forward pass; changes the last bits of scores")
    storage: fields.Url = Field(
        default=None,
        repr=False,
        description=f"SQLAlchemy URL; null for $SLIMFRONT_STORAGE, else {DEFAULT_STORAGE}",
    )
    cache: fields.Folder | None = Field(
        default=None,
        description="folder of packed models; null for $SLIMFRONT_CACHE, else ~/.cache/slimfront",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where models are evaluated and trained")
    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    def model_post_init(self, context: Any, /) -> None:
        """Keep the folder of the config file, which relative paths start from."""
        self._folder = fields.folder_of(context)

    def workload_entry(self) -> str:
        """The workload as it is to be loaded: that of a file with the file's absolute path."""
        file = fields.file_of(self.workload, self._folder)
        return f"{file[0].resolve()}:{file[1]}" if file else self.workload

    def resolved_storage(self) -> str:
        """The URL of the study database.

        Raises:
            ConfigError: $SLIMFRONT_STORAGE is needed and is no URL.
        """
        return storage_url(self.storage)

    def cache_folder(self) -> Path:
        """The folder of packed models, absolute.

        Raises:
            ConfigError: it starts with the home of a user that does not exist.
        """
        home = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(home) if os.path.isabs(home) else Path("~/.cache")  # XDG: ignore a relative one
        folder = Path(self.cache or os.environ.get("SLIMFRONT_CACHE") or base / "slimfront")
        try:
            return folder.expanduser().absolute()
        except RuntimeError as error:
            raise ConfigError(f"cache: given {folder}, whose home folder is not known ({error})") from error

    def fingerprint(self) -> dict[str, Any]:
        """The settings that determine the search, as JSON: a study is resumed only under the same ones."""
        return self.model_dump(mode="json", exclude={"budget", "workers", "storage", "cache"})

    def document(self) -> dict[str, Any]:
        """All settings as JSON, except the storage, which may hold a password."""
        return self.model_dump(mode="json", exclude={"storage"})


def storage_url(given: str | None = None) -> str:
    """The URL of the study database: the one given, else $SLIMFRONT_STORAGE, else a file in this folder.

    Raises:
        ConfigError: it is no URL.
    """
    url = given or os.environ.get("SLIMFRONT_STORAGE") or DEFAULT_STORAGE
    if not fields.is_url(url):
        source = "--storage" if given else "$SLIMFRONT_STORAGE"  # not its value: it may hold a password
        raise ConfigError(f"{source}: given text that is not a URL, allowed one such as {DEFAULT_STORAGE}")
    return url


def load_config(path: Path, overrides: Sequence[str] = (), **replaced: object) -> Config:
    """Read a config file, with what the command line changes in it.

    Args:
        path: the YAML file.
        overrides: ``KEY=VALUE`` each, the value in YAML, such as ``space.bits=[4, 8]``.
        **replaced: trials, timeout, workers, seed and storage from the command line; None leaves the file's.

    Raises:
        ConfigError: one message with everything that is wrong: key, what was given, what is allowed.
    """
    data, problems, origins = read_config_file(path, overrides, replaced)
    try:
        config = Config.model_validate(data, context={"folder": path.parent})
    except ValidationError as error:
        found = problems_of(error, Config.model_json_schema())
        problems += [f"{key_path(key)}{origin_of(key, origins)}: {words}" for key, words in found]
        raise _refused(path, problems, origins) from error
    if problems:
        raise _refused(path, problems, origins)
    return config


def _refused(path: Path, problems: Sequence[str], origins: Origins) -> ConfigError:
    source = f"{path} with {' and '.join(sorted(set(origins.values())))}" if origins else str(path)
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    return ConfigError("\n  ".join([f"{source} has {count}:", *problems]))


def difference(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Compare two fingerprints, one line for each key that differs or stands on one side only.

    >>> difference({"seed": 0, "space": {"bits": [2, 4]}}, {"seed": 0, "space": {"bits": [2, 8]}})
    ['space.bits: stored [2, 4], given [2, 8]']
    """
    return list(_differing(stored, given, ()))


def _differing(stored: Mapping[str, Any], given: Mapping[str, Any], above: Key) -> Iterator[str]:
    for name in {**stored, **given}:
        key = (*above, name)
        if name not in given:
            yield f"{key_path(key)}: stored {shown(stored[name])}, not given"
        elif name not in stored:
            yield f"{key_path(key)}: not stored, given {shown(given[name])}"
        elif isinstance(stored[name], Mapping) and isinstance(given[name], Mapping):
            yield from _differing(stored[name], given[name], key)
        elif stored[name] != given[name]:
            yield f"{key_path(key)}: stored {shown(stored[name])}, given {shown(given[name])}"
