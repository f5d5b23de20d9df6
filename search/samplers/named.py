"""Samplers by name: ours, short names for Optuna's that fit a two-objective search, a dotted path for any other."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from search.pareto import Box
from search.samplers.front_sampler import FrontSampler
from search.samplers.table import Table
from spaces.errors import ConfigError

# A generation of the default 50 would outlast most searches, whose first candidates are generation 0 already.
POPULATION = 20

OURS = "front"

_DEFAULTS: dict[str, tuple[type[BaseSampler], dict[str, Any]]] = {
    "nsga2": (NSGAIISampler, {"population_size": POPULATION}),
    "tpe": (TPESampler, {"multivariate": True}),
    "random": (RandomSampler, {}),
    "gp": (GPSampler, {}),
}

MakeSampler = Callable[[int], BaseSampler]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What our sampler knows before the first trial.

    Attributes:
        tables: bytes and sensitivities of each choice.
        boxes: where hypervolume counts.
        best: accuracy of the float model.
    """

    tables: tuple[Table, ...] = ()
    boxes: tuple[Box, ...] | None = None
    best: float | None = None


def sampler_maker(
    name: str,
    options: Mapping[str, Any],
    seed: int = 0,
    knowledge: Knowledge | None = None,
    focus: Callable[[int], tuple[float, float] | None] | None = None,
) -> MakeSampler:
    """A function that gives the named sampler for a seed; ours is one and the same, for the seed of the search.

    Args:
        name: of the sampler.
        options: for it.
        seed: of the search.
        knowledge: for our sampler.
        focus: for our sampler: the sizes that a trial of a number should have.

    Raises:
        ConfigError: there is no such sampler, or it does not take these options.
    """
    if name == OURS:
        if options:
            raise ConfigError(f"sampler.options: given {', '.join(sorted(options))}, but the sampler front takes none")
        known = knowledge or Knowledge()
        ours = FrontSampler(
            known.tables, seed=seed, uniform=0, predicted=0, boxes=known.boxes, best=known.best, focus=focus
        )
        return lambda _: ours
    kind, defaults = _DEFAULTS[name] if name in _DEFAULTS else (_imported(name), {})
    if "seed" in options:
        raise ConfigError("sampler.options: given seed, which is drawn from the search's own: set the key seed instead")
    arguments = {**defaults, **options}
    taken = inspect.signature(kind).parameters
    if unknown := sorted(set(arguments) - set(taken)):
        raise ConfigError(
            f"sampler.options: given {', '.join(unknown)}, which {kind.__name__} does not take; it takes "
            f"{', '.join(sorted(taken))}"
        )

    def make(seed: int) -> BaseSampler:
        seeded = {"seed": seed % 2**32} if "seed" in taken else {}
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
            f"sampler.name: given {path!r}, which cannot be imported ({error}); allowed: "
            f"{OURS}, {', '.join(_DEFAULTS)}, or the dotted path of a class such as optuna.samplers.NSGAIIISampler"
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseSampler)):
        raise ConfigError(f"sampler.name: given {path!r}, which is no subclass of optuna.samplers.BaseSampler")
    return found
