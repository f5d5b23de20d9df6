"""The space that a config allows on the sites of a model."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol

from spaces.errors import ConfigError
from spaces.policy import (
    Activations,
    Criterion,
    DynamicActivations,
    RangeBy,
    Rounding,
    ScalePer,
    SemiStructured,
    StaticActivations,
    Threshold,
)
from spaces.site_space import CODED, SiteSpace, Style
from spaces.target import STORAGE, Target


class Rule(Protocol):
    """What a config says about the sites that match a glob; None leaves the space's own values."""

    @property
    def sites(self) -> str:
        """The glob."""

    @property
    def bits(self) -> tuple[int, ...] | None:
        """Bit widths of uniform weights and codebooks."""

    @property
    def ratios(self) -> tuple[float, ...] | None:
        """Shares of weights pruned."""

    @property
    def weights(self) -> tuple[str, ...] | None:
        """Kinds of weights."""

    @property
    def patterns(self) -> tuple[str, ...] | None:
        """N:M patterns."""

    @property
    def activations(self) -> tuple[str, ...] | None:
        """Kinds of activations."""

    @property
    def scale_per(self) -> str | int | None:
        """What has a scale of its own."""

    @property
    def criterion(self) -> Criterion | None:
        """By what the weights to prune are ranked."""

    @property
    def rounding(self) -> Rounding | None:
        """How weights are rounded."""


@dataclass(frozen=True)
class Place:
    """What the space must know of a site.

    Attributes:
        name: of the site.
        columns: weights of an output channel.
        quantizes_input: whether its input can be quantized.
    """

    name: str
    columns: int
    quantizes_input: bool = True


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a config says may be chosen at a site.

    Attributes:
        scale_per: "tensor", "channel", or how many weights of a channel share a scale.
        patterns: such as "2:4".
        thresholds: absolute values below which weights are pruned.
        activations: "float", "static", "dynamic".
    """

    bits: tuple[int, ...]
    ratios: tuple[float, ...]
    prune: tuple[str, ...]
    weights: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    activations: tuple[str, ...] = ("float",)
    activation_bits: tuple[int, ...] = (8,)
    activation_range: RangeBy = "mse"
    criterion: Criterion = "magnitude"
    scale_per: str | int = "channel"
    symmetric: bool = True
    rounding: Rounding = "nearest"
    fisher: bool = False


def site_spaces(
    places: Sequence[Place],
    wishes: Wishes,
    *,
    exclude: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    target: Target = STORAGE,
) -> tuple[SiteSpace, ...]:
    """The choices of each site (in the order given), with globs that exclude sites or give them rules.

    Raises:
        ConfigError: a choice does not fit a site, or a site is left without any by the target.
    """
    found = []
    for place in places:
        own = wishes
        for rule in rules:
            if fnmatchcase(place.name, rule.sites):
                own = _under_rule(own, rule)
        excluded = any(fnmatchcase(place.name, glob) for glob in exclude)
        found.append(_left_alone(place) if excluded else _site_space(place, own, target))
    return tuple(found)


def check_globs(names: Collection[str], *, exclude: Sequence[str] = (), rules: Sequence[Rule] = ()) -> None:
    """Refuse a glob that matches no site.

    Raises:
        ConfigError: it names the glob and the sites there are.
    """
    for key, globs in (("exclude", exclude), ("rules", [rule.sites for rule in rules])):
        for i, glob in enumerate(globs):
            if not any(fnmatchcase(name, glob) for name in names):
                where = f"space.{key}[{i}]" + (".sites" if key == "rules" else "")
                raise ConfigError(f"{where}: given {glob!r}, which matches no site; the sites are {', '.join(names)}")


def _under_rule(wishes: Wishes, rule: Rule) -> Wishes:
    keys = ("bits", "ratios", "weights", "patterns", "activations", "scale_per", "criterion", "rounding")
    given = {key: getattr(rule, key, None) for key in keys}
    return replace(wishes, **{key: value for key, value in given.items() if value is not None})


def _left_alone(place: Place) -> SiteSpace:
    return SiteSpace(place.name, ("float32",), (0.0,), ())


def _site_space(place: Place, wishes: Wishes, target: Target) -> SiteSpace:
    kinds = tuple(kind for kind in dict.fromkeys(wishes.weights) if kind in target.weights)
    widths = tuple(sorted(set(wishes.bits) & target.bits)) if set(kinds) & set(CODED) else ()
    patterns = _patterns(place, wishes, target)
    pruned = "unstructured" in wishes.prune and "unstructured" in target.prune
    levels = tuple(sorted({float(ratio) for ratio in wishes.ratios if pruned or ratio == 0}))
    if patterns and not pruned:
        levels = (0.0,) if "none" in wishes.prune else ()
    if not kinds or not (levels or patterns) or (set(kinds) & set(CODED) and not widths):
        raise ConfigError(
            f"site {place.name} has no choice left of weights {list(wishes.weights)}, bits {list(wishes.bits)}, ratios "
            f"{list(wishes.ratios)}, prune {list(wishes.prune)}; target {target.name} allows weights "
            f"{sorted(target.weights)}, bits {sorted(target.bits)}, prune {sorted(target.prune)}"
        )
    if "codebook" in kinds and wishes.rounding == "adaround":
        raise ConfigError(
            f"space.rounding: adaround does not fit site {place.name}, whose weights may be codebooks: it chooses from "
            "the two levels of a uniform grid around a weight; take gptq, or leave codebook out of its weights"
        )
    scale_per, size = _scale(place, wishes, kinds)
    style = Style(wishes.criterion, scale_per, size, wishes.symmetric, wishes.rounding, wishes.fisher)
    return SiteSpace(place.name, kinds, levels, widths, patterns, _activations(place, wishes, target), style)


def _patterns(place: Place, wishes: Wishes, target: Target) -> tuple[SemiStructured | Threshold, ...]:
    found: list[SemiStructured | Threshold] = []
    if "nm" in wishes.prune and "nm" in target.prune:
        for pattern in wishes.patterns:
            n, m = map(int, pattern.split(":"))
            if place.columns % m:
                raise ConfigError(
                    f"space.patterns: {pattern} does not fit site {place.name}, whose channels have {place.columns} "
                    f"weights, which is no multiple of {m}: give it a rule with patterns: [], or exclude it"
                )
            found.append(SemiStructured(n=n, m=m, criterion=wishes.criterion))
    if "threshold" in wishes.prune and "threshold" in target.prune:
        found += [Threshold(value=value) for value in wishes.thresholds]
    return tuple(found)


def _scale(place: Place, wishes: Wishes, kinds: Sequence[str]) -> tuple[ScalePer, int | None]:
    match wishes.scale_per:
        case "tensor":
            return "tensor", None
        case int(size):
            if "uniform" in kinds and place.columns % size:
                raise ConfigError(
                    f"space.scale_per: {size} does not fit site {place.name}, whose channels have {place.columns} "
                    f"weights, which is no multiple of {size}: give it a rule with scale_per: channel, or exclude it"
                )
            return "group", size
        case _:
            return "channel", None


def _activations(place: Place, wishes: Wishes, target: Target) -> tuple[Activations | None, ...]:
    """The kinds of activations of a site; one whose input cannot be quantized keeps it in float.

    Raises:
        ConfigError: the target allows none of the wished ones.
    """
    found: list[Activations | None] = []
    for kind in wishes.activations if place.quantizes_input else ("float",):
        match kind:
            case "static" if kind in target.activations:
                found += [
                    StaticActivations(bits=bits, range=wishes.activation_range) for bits in wishes.activation_bits
                ]
            case "dynamic" if kind in target.activations:
                found += [DynamicActivations(bits=bits) for bits in wishes.activation_bits]
            case "float":
                found.append(None)
    if not found:
        raise ConfigError(
            f"space.activations: given {list(wishes.activations)} for site {place.name}, target {target.name} allows "
            f"{sorted({'float', *target.activations})}"
        )
    return tuple(found)


def group_ratios(channels: int, ratios: Sequence[float], multiple: int) -> tuple[float, ...]:
    """Those of the ratios that leave a group of channels with different numbers of them.

    Of ratios that are rounded to the same number the smallest stays, so that no two policies are one model.
    """
    left: Mapping[int, float] = {kept_count(channels, ratio, multiple): ratio for ratio in sorted(ratios, reverse=True)}
    return tuple(sorted(left.values()))


def kept_count(channels: int, ratio: float, multiple: int) -> int:
    """How many of a group's channels stay: at least one multiple (all where there are no more), at most all.

    A half is rounded up, as where channels are removed.
    """
    wished = math.floor(channels * (1 - ratio) / multiple + 0.5) * multiple
    return channels if ratio == 0 else min(channels, max(wished, min(multiple, channels)))
