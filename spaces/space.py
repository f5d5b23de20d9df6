"""The policies that are allowed for a workload and a target, as plain axes that any sampler can use."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from spaces.errors import ConfigError
from spaces.policy import Choice, Distillation, Float16, Float32, NoPruning, Policy, Uniform, Unstructured
from spaces.target import STORAGE, Target


@dataclass(frozen=True)
class Grid:
    """An axis with a few ordered numbers."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Range:
    """An axis of all numbers from low to high, on a log scale where asked."""

    name: str
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Options:
    """An axis of unordered names."""

    name: str
    values: tuple[str, ...]


Axis = Grid | Range | Options


class Rule(Protocol):
    """What a config says about the sites that match a glob; None leaves the space's own values."""

    @property
    def sites(self) -> str:
        """The glob."""

    @property
    def bits(self) -> tuple[int, ...] | None:
        """Bit widths of uniform weights."""

    @property
    def ratios(self) -> tuple[float, ...] | None:
        """Shares of weights pruned."""

    @property
    def weights(self) -> tuple[str, ...] | None:
        """Kinds of weights."""


@dataclass(frozen=True)
class SiteSpace:
    """The choices of one site: every kind of weights x every ratio (x every bit width where uniform)."""

    name: str
    kinds: tuple[str, ...]
    ratios: tuple[float, ...]
    bits: tuple[int, ...]

    def choice(self, kind: str, ratio: float, bits: int | None) -> Choice:
        """The choice with these settings; `bits` is looked at for uniform weights only."""
        prune = Unstructured(ratio=ratio) if ratio > 0 else NoPruning()
        match kind:
            case "uniform":
                if bits is None:
                    raise ValueError(f"site {self.name}: uniform weights need bits")
                return Choice(prune=prune, weights=Uniform(bits=bits))
            case "float16":
                return Choice(prune=prune, weights=Float16())
            case "float32":
                return Choice(prune=prune, weights=Float32())
            case _:
                raise ValueError(f"site {self.name}: unknown kind of weights {kind!r}, known are {self.kinds}")

    def choices(self) -> tuple[Choice, ...]:
        """All choices, in a fixed order."""
        return tuple(
            self.choice(kind, ratio, bits)
            for kind in self.kinds
            for ratio in self.ratios
            for bits in (self.bits if kind == "uniform" else (None,))
        )

    def axes(self) -> Iterator[Axis]:
        """The axes of this site; what has a single value is no axis."""
        if len(self.kinds) > 1:
            yield Options(f"{self.name}/kind", self.kinds)
        if len(self.ratios) > 1:
            yield Grid(f"{self.name}/ratio", self.ratios)
        if "uniform" in self.kinds and len(self.bits) > 1:
            yield Grid(f"{self.name}/bits", tuple(self.bits))

    def nearest(self, kind: str, ratio: float, bits: int) -> Choice:
        """The allowed choice closest to a wish (its own first kind where the wished one is not allowed)."""
        own = kind if kind in self.kinds else self.kinds[0]
        width = min(self.bits, key=lambda b: (abs(b - bits), b)) if self.bits else None
        return self.choice(own, min(self.ratios, key=lambda r: (abs(r - ratio), r)), width)


@dataclass(frozen=True)
class Space:
    """All policies that may be chosen.

    `temperature` and `alpha` are ranges (low, high) and None when nothing is distilled.
    """

    sites: tuple[SiteSpace, ...]
    temperature: tuple[float, float] | None = None
    alpha: tuple[float, float] | None = None
    learning_rate: float = 1e-3
    batch_size: int = 64

    def axes(self) -> tuple[Axis, ...]:
        """Every axis along which policies differ, sites first, in model order."""
        axes = [axis for site in self.sites for axis in site.axes()]
        for name, limits, log in (("temperature", self.temperature, True), ("alpha", self.alpha, False)):
            if limits is not None and limits[0] < limits[1]:
                axes.append(Range(name, *limits, log=log))
        return tuple(axes)

    def document(self) -> dict[str, Any]:
        """The space as JSON-able values, for `Space.read`."""
        return asdict(self)

    @staticmethod
    def read(document: Mapping[str, Any]) -> "Space":
        """The inverse of `document`.

        Raises:
            KeyError, TypeError: it is not such a document.
        """
        sites = tuple(
            SiteSpace(site["name"], tuple(site["kinds"]), tuple(site["ratios"]), tuple(site["bits"]))
            for site in document["sites"]
        )
        low_high = {key: tuple(document[key]) if document[key] else None for key in ("temperature", "alpha")}
        return Space(sites, **low_high, learning_rate=document["learning_rate"], batch_size=document["batch_size"])

    def size(self) -> int:
        """How many ways there are to choose for all sites (the continuous axes are not counted)."""
        return math.prod(len(site.choices()) for site in self.sites)

    def policy(self, params: Mapping[str, Any]) -> Policy:
        """The policy at a point of the axes.

        Raises:
            ValueError: an axis is missing, unknown, or off its values.
        """
        axes = {axis.name: axis for axis in self.axes()}
        if params.keys() != axes.keys():
            missing, unknown = sorted(axes.keys() - params.keys()), sorted(params.keys() - axes.keys())
            raise ValueError(f"missing axes {missing}, unknown axes {unknown}")
        at = {name: _on_axis(axes[name], value) for name, value in params.items()}
        sites = {}
        for site in self.sites:
            kind = at.get(f"{site.name}/kind", site.kinds[0])
            ratio = at.get(f"{site.name}/ratio", site.ratios[0])
            bits = at.get(f"{site.name}/bits", site.bits[0] if site.bits else None)
            sites[site.name] = site.choice(kind, ratio, int(bits) if bits is not None else None)
        if self.temperature is None or self.alpha is None:
            return Policy(sites=sites)
        return self.with_distillation(sites, at.get("temperature", self.temperature[0]), at.get("alpha", self.alpha[0]))

    def with_distillation(self, sites: Mapping[str, Choice], temperature: float, alpha: float) -> Policy:
        """A policy of these choices, distilled (where this space distils) at a temperature and alpha."""
        if self.temperature is None:
            return Policy(sites=dict(sites))
        settings = Distillation(
            temperature=temperature, alpha=alpha, learning_rate=self.learning_rate, batch_size=self.batch_size
        )
        return Policy(sites=dict(sites), distillation=settings)

    def params(self, policy: Policy) -> dict[str, Any]:
        """The point of the axes that gives this policy.

        Raises:
            ValueError: the policy is not in this space.
        """
        if others := sorted(policy.sites.keys() - {site.name for site in self.sites}):
            raise ValueError(f"sites {others} are not in this space")
        if (policy.distillation is None) != (self.temperature is None or self.alpha is None):
            raise ValueError(f"distillation: given {policy.distillation!r}, this space has {self.temperature}")
        at: dict[str, Any] = {}
        for site in self.sites:
            choice = policy.sites.get(site.name)
            if choice is None or choice not in site.choices():
                raise ValueError(f"site {site.name}: {choice!r} is not among its {len(site.choices())} choices")
            at[f"{site.name}/kind"] = choice.weights.kind
            at[f"{site.name}/ratio"] = choice.ratio
            bits = choice.weights.bits if isinstance(choice.weights, Uniform) else min(site.bits, default=None)
            at[f"{site.name}/bits"] = bits
        if policy.distillation is not None:
            at["temperature"] = policy.distillation.temperature
            at["alpha"] = policy.distillation.alpha
        point = {axis.name: at[axis.name] for axis in self.axes()}
        if (found := self.policy(point)) != policy:
            raise ValueError(f"distillation: given {policy.distillation!r}, this space has {found.distillation!r}")
        return point

    def uniform(self) -> list[dict[str, Choice]]:
        """The same wish at every site: unpruned ones first, wide to narrow, then by ratio.

        A site whose rules do not allow the wish takes the nearest choice that they do.
        """
        wishes = sorted(
            {(ratio, kind, bits) for site in self.sites for kind, ratio, bits in _wishes(site)},
            key=lambda wish: (wish[0], -wish[2]),
        )
        found: dict[tuple[Choice, ...], dict[str, Choice]] = {}
        for ratio, kind, bits in wishes:
            sites = {site.name: site.nearest(kind, ratio, bits) for site in self.sites}
            found.setdefault(tuple(sites.values()), sites)
        return list(found.values())


def _wishes(site: SiteSpace) -> Iterator[tuple[str, float, int]]:
    for kind in site.kinds:
        for ratio in site.ratios:
            for bits in site.bits if kind == "uniform" else (32 if kind == "float32" else 16,):
                yield kind, ratio, bits


def _on_axis(axis: Axis, value: Any) -> Any:
    match axis:
        case Grid(name, values):
            nearest = min(values, key=lambda v: abs(v - value))
            if not abs(nearest - value) <= 1e-6:  # NaN is none of them
                raise ValueError(f"{name}: {value!r} is not among {values}")
            return nearest
        case Range(name, low, high):
            if not low <= value <= high:
                raise ValueError(f"{name}: {value!r} is not in {low} to {high}")
            return float(value)
        case Options(name, names):
            if value not in names:
                raise ValueError(f"{name}: {value!r} is not among {names}")
            return value


def build_space(
    names: Sequence[str],
    *,
    bits: Sequence[int],
    ratios: Sequence[float],
    prune: Sequence[str],
    weights: Sequence[str],
    exclude: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    target: Target = STORAGE,
    temperature: tuple[float, float] | None = None,
    alpha: tuple[float, float] | None = None,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
) -> Space:
    """The space over the sites `names` (in model order), with globs that exclude sites or give them rules.

    Raises:
        ConfigError: a glob matches no site, or a site is left without any choice by the target.
    """
    for key, globs in (("exclude", exclude), ("rules", [rule.sites for rule in rules])):
        for i, glob in enumerate(globs):
            if not any(fnmatchcase(name, glob) for name in names):
                where = f"space.{key}[{i}]" + (".sites" if key == "rules" else "")
                raise ConfigError(f"{where}: given {glob!r}, which matches no site; the sites are {', '.join(names)}")
    sites = []
    for name in names:
        widths, levels, kinds = tuple(bits), tuple(ratios), tuple(weights)
        for rule in rules:
            if fnmatchcase(name, rule.sites):
                widths, levels, kinds = rule.bits or widths, rule.ratios or levels, rule.weights or kinds
        if any(fnmatchcase(name, glob) for glob in exclude):
            widths, levels, kinds = (), (0.0,), ("float32",)
        given = f"weights {list(kinds)}, bits {list(widths)}, ratios {list(levels)}, prune {list(prune)}"
        kinds = tuple(kind for kind in dict.fromkeys(kinds) if kind in target.weights)
        widths = tuple(sorted(set(widths) & target.bits)) if "uniform" in kinds else ()
        pruned = "unstructured" in prune and "unstructured" in target.prune
        levels = tuple(sorted({float(ratio) for ratio in levels if pruned or ratio == 0}))
        if not kinds or not levels or ("uniform" in kinds and not widths):
            raise ConfigError(
                f"site {name} has no choice left of {given}; target {target.name} allows weights "
                f"{sorted(target.weights)}, bits {sorted(target.bits)}, prune {sorted(target.prune)}"
            )
        sites.append(SiteSpace(name, kinds, levels, widths))
    return Space(tuple(sites), temperature, alpha, learning_rate, batch_size)
