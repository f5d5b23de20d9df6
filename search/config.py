"""A search as one frozen `Config`, read from YAML and checked before torch, optuna or ray are imported."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from search import config_fields as fields
from search import config_places as places
from search.config_errors import Key, key_path, problems_of, shown
from search.config_file import Origins, origin_of, read_config_file
from search.config_ray import RayConfig
from search.config_sections import (
    BudgetConfig,
    CacheConfig,
    DistillationConfig,
    RacingConfig,
    SamplerConfig,
    Section,
    SpaceConfig,
    as_cache,
    as_racing,
)
from spaces.errors import ConfigError
from spaces.target import TARGETS, CodingName, TargetName

DEFAULT_STORAGE = "sqlite:///slimfront.db"


class Config(Section):
    """A search: what is compressed, how, within which limits, and where.

    Example:
        >>> config = Config(study="digits", workload="objectives.workloads.digits:workload")
        >>> config.budget.trials, config.sampler.name
        (120, 'front')
    """

    study: fields.Study = Field(description="name of the study")
    workload: places.WorkloadEntry = Field(
        description="module:function, or file.py:function relative to this file's folder"
    )
    target: TargetName = Field(default="storage", description="where the model will run")
    space: SpaceConfig = Field(default=SpaceConfig(), description="what may be chosen")
    distillation: DistillationConfig = Field(default=DistillationConfig(), description="how they are trained on")
    racing: Annotated[RacingConfig, BeforeValidator(as_racing)] = Field(
        default=RacingConfig(), description="when evaluations are stopped early; null for never"
    )
    objectives: fields.Objectives = Field(default=("accuracy", "bytes"), description="what is optimised")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="who proposes policies")
    budget: BudgetConfig = Field(default=BudgetConfig(), description="when the search ends")
    workers: fields.Number = Field(default=2, description="workers that score candidates; 0 scores in the driver")
    engine: Literal["pool", "tune"] = Field(
        default="pool", description="who hands candidates to workers: Slimfront's pool, or Ray Tune (slower)"
    )
    ray: RayConfig = Field(default=RayConfig(), description="the Ray that workers run on")
    threads: fields.Count = Field(default=1, description="torch threads of a worker; changes the last bits of scores")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="seed of everything random")
    window: fields.Count = Field(default=8, description="candidates that may be asked and not yet told")
    chunk: fields.Count = Field(
        default=100,
        description="samples in a forward pass, and between two looks at a race; changes the last bits of scores",
    )
    storage: places.Url = Field(
        default=None,
        repr=False,
        description=f"SQLAlchemy URL; null for $SLIMFRONT_STORAGE, else {DEFAULT_STORAGE}",
    )
    coding: CodingName | None = Field(
        default=None, description="how packed files are coded; null for the target's (entropy for storage)"
    )
    cache: Annotated[CacheConfig, BeforeValidator(as_cache)] = Field(
        default=CacheConfig(), description="where compressed layers and packed models are kept; a text is the folder"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where models are evaluated and trained")
    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    def model_post_init(self, context: Any, /) -> None:
        """Keep the folder of the config file, which relative paths start from."""
        self._folder = places.folder_of(context)

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the workload and of ``ray.runtime_env`` start from, absolute."""
        return self._folder

    def workload_entry(self) -> str:
        """The workload as it is to be loaded: that of a file with the file's absolute path."""
        file = places.file_of(self.workload, self._folder)
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
        folder = Path(self.cache.folder or os.environ.get("SLIMFRONT_CACHE") or base / "slimfront")
        try:
            return folder.expanduser().absolute()
        except RuntimeError as error:
            raise ConfigError(f"cache: given {folder}, whose home folder is not known ({error})") from error

    def resolved_coding(self) -> CodingName:
        """How packed files are coded."""
        return self.coding or TARGETS[self.target].coding

    def fingerprint(self) -> dict[str, Any]:
        """The settings that determine the search, as JSON: a study is resumed only under the same ones."""
        return self.model_dump(mode="json", exclude={"budget", "workers", "engine", "ray", "storage", "cache"})

    def document(self) -> dict[str, Any]:
        """All settings as JSON, except what may hold a secret: the storage, variables of workers, a shared folder."""
        secret: dict[str, Any] = {
            "storage": True,
            "cache": {"shared": True},
            "ray": {"runtime_env": {"env_vars": True}},
        }
        return self.model_dump(mode="json", exclude=secret)


def storage_url(given: str | None = None) -> str:
    """The URL of the study database: the one given, else $SLIMFRONT_STORAGE, else a file in this folder.

    Raises:
        ConfigError: it is no URL.
    """
    url = given or os.environ.get("SLIMFRONT_STORAGE") or DEFAULT_STORAGE
    if not places.is_url(url):
        source = "--storage" if given else "$SLIMFRONT_STORAGE"  # not its value: it may hold a password
        raise ConfigError(f"{source}: given text that is not a URL, allowed one such as {DEFAULT_STORAGE}")
    return url


def load_config(path: Path, overrides: Sequence[str] = (), **replaced: object) -> Config:
    """Read a config file, with what the command line changes in it.

    Args:
        path: the YAML file.
        overrides: ``KEY=VALUE`` each, the value in YAML, such as ``space.bits=[4, 8]``.
        **replaced: values of `OPTIONS` from the command line, by name; None leaves the file's.

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
