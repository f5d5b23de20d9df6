"""Optuna's samplers by name: short names for those that fit a two-objective search, a dotted path for any other."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from spaces.errors import ConfigError

# A generation of the default 50 would outlast most searches, whose first candidates are generation 0 already.
POPULATION = 20

_DEFAULTS: dict[str, tuple[type[BaseSampler], dict[str, Any]]] = {
    "nsga2": (NSGAIISampler, {"population_size": POPULATION}),
    "tpe": (TPESampler, {"multivariate": True}),
    "random": (RandomSampler, {}),
    "gp": (GPSampler, {}),
}

MakeSampler = Callable[[int], BaseSampler]


def sampler_maker(name: str, options: Mapping[str, Any]) -> MakeSampler:
    """A function that makes the named sampler anew from a seed.

    Raises:
        ConfigError: there is no such sampler, or it does not take these options.
    """
    kind, defaults = _DEFAULTS[name] if name in _DEFAULTS else (_imported(name), {})
    if "seed" in options:
        raise ConfigError("sampler.options: given seed, which is drawn from the search's own: set the key seed instead")
    arguments = {**defaults, **options}
    known = inspect.signature(kind).parameters
    if unknown := sorted(set(arguments) - set(known)):
        raise ConfigError(
            f"sampler.options: given {', '.join(unknown)}, which {kind.__name__} does not take; it takes "
            f"{', '.join(sorted(known))}"
        )

    def make(seed: int) -> BaseSampler:
        seeded = {"seed": seed % 2**32} if "seed" in known else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: BaseSampler = kind(**{**arguments, **seeded})
        return sampler

    try:
        make(0)
    except Exception as error:
        raise ConfigError(f"sampler: {kind.__name__} cannot be made with options {dict(options)}: {error}") from error
    return make


def _imported(path: str) -> type[BaseSampler]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"sampler.name: given {path!r}, which cannot be imported ({error}); allowed: {', '.join(_DEFAULTS)} or the "
            "dotted path of a sampler class such as optuna.samplers.NSGAIIISampler"
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseSampler)):
        raise ConfigError(f"sampler.name: given {path!r}, which is no subclass of optuna.samplers.BaseSampler")
    return found
