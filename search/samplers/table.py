"""What is known before the first trial: the bytes and the sensitivities of each choice at each site, per setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Key = tuple[Any, ...]

LEAST = 1e-12  # of a sensitivity, relative to the site's largest: logs are taken


@dataclass(frozen=True, eq=False)
class SiteTable:
    """One site's choices.

    Attributes:
        name: of the site; the same site in two tables has the same name and the same choices.
        points: for each choice the values of the site's axes, by the axes' names.
        bytes: of each choice, int64 (choices,).
        losses: predicted loss of each choice by each kind of sensitivity, float64 (choices, kinds); NaN where one is
            not known. Kinds need not have a common scale.
        aliases: further points of the axes, with the number of the choice that they stand for.
    """

    name: str
    points: tuple[Mapping[str, Any], ...]
    bytes: Ints
    losses: Floats
    aliases: tuple[tuple[Mapping[str, Any], int], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.points)
        if self.bytes.shape != (count,) or self.losses.ndim != 2 or len(self.losses) != count:
            raise ValueError(
                f"site {self.name}: {count} points, bytes of shape {self.bytes.shape}, losses of shape "
                f"{self.losses.shape}; expected ({count},) and ({count}, kinds)"
            )

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The names of its axes."""
        return tuple(self.points[0])

    @cached_property
    def _numbers(self) -> Mapping[Key, int]:
        found = {key_of(point, self.axes): number for point, number in self.aliases}
        return found | {key_of(point, self.axes): number for number, point in enumerate(self.points)}

    def places(self) -> Floats:
        """Where each choice lies on each of the site's axes, 0..1, (choices, columns); names have a column each."""
        columns = []
        for name in self.axes:
            values = [point[name] for point in self.points]
            if all(isinstance(value, int | float) for value in values):
                low, high = min(values), max(values)
                columns.append([(value - low) / (high - low) if high > low else 0.0 for value in values])
            else:
                columns += [[float(value == one) for value in values] for one in dict.fromkeys(values)]
        return np.array(columns, np.float64).reshape(len(columns), len(self.points)).T

    def axis(self, what: str) -> Floats | None:
        """The numbers of the choices on the axis SITE/what, (choices,); None where there is no such axis."""
        name = next((name for name in self.axes if name.endswith(f"/{what}")), None)
        return None if name is None else np.array([float(point[name]) for point in self.points])

    def number(self, params: Mapping[str, Any]) -> int:
        """Which choice a trial's parameters make here; -1 if none."""
        return self._numbers.get(key_of(params, self.axes), -1)


@dataclass(frozen=True, eq=False)
class Table:
    """All choices in one setting of what is settled before: a model, its channels, its blocks.

    Attributes:
        sites: those that are left.
        fixed: the axes that make the setting, with their values.
        rest: bytes of everything that is no choice.
        loss: what the setting itself costs, in the unit of the measured losses; NaN where that is not known.
    """

    sites: tuple[SiteTable, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rest: int = 0
    loss: float = 0.0

    @cached_property
    def smallest(self) -> int:
        """Bytes of its smallest policy."""
        return self.rest + sum(int(site.bytes.min()) for site in self.sites)

    @cached_property
    def largest(self) -> int:
        """Bytes of its largest policy."""
        return self.rest + sum(int(site.bytes.max()) for site in self.sites)

    def numbers(self, params: Mapping[str, Any]) -> list[int] | None:
        """The number of the choice at each site, None where the parameters are not of this table."""
        if any(name in params and not _same(params[name], value) for name, value in self.fixed.items()):
            return None
        found = [site.number(params) for site in self.sites]
        return None if min(found, default=0) < 0 else found

    def params(self, numbers: Sequence[int] | Ints) -> dict[str, Any]:
        """The parameters of these choices, one a site."""
        found = dict(self.fixed)
        for site, number in zip(self.sites, numbers, strict=True):
            found.update(site.points[int(number)])
        return found

    def bytes(self, numbers: Ints) -> Ints:
        """Bytes of policies, int64 (policies,), from their choices' numbers, (policies, sites)."""
        parts = [site.bytes[numbers[:, i]] for i, site in enumerate(self.sites)]
        return np.asarray(sum(parts, np.full(len(numbers), self.rest, np.int64)), np.int64)


def key_of(params: Mapping[str, Any], axes: Sequence[str]) -> Key:
    """Values that can be looked up: stepped floats come back from a database with another last bit."""
    return tuple(
        round(value, 9) if isinstance(value, float) else value for value in (params.get(name) for name in axes)
    )


def _same(a: Any, b: Any) -> bool:
    return key_of({"": a}, ("",)) == key_of({"": b}, ("",))


def log_losses(site: SiteTable) -> Floats:
    """Logarithms of a site's sensitivities, (choices, kinds); NaN where one is not known."""
    losses = np.where(np.isfinite(site.losses) & (site.losses >= 0), site.losses, np.nan)
    largest = np.max(np.where(np.isnan(losses), 0.0, losses), axis=0)  # (kinds,)
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(losses, LEAST * largest))
    return np.where(largest > 0, logs, np.nan)
