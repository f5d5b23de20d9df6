"""The axes of a space: plain ones, that any sampler can use and a dashboard can plot."""

from dataclasses import dataclass
from typing import Any, assert_never


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


def on_axis(axis: Axis, value: Any) -> Any:
    """The value as the axis has it.

    Raises:
        ValueError: it is off the axis.
    """
    match axis:
        case Grid(name, values):
            if value in values:
                return values[values.index(value)]
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
        case _:
            assert_never(axis)


def first_value(axis: Axis) -> Any:
    """A value of an axis that nothing depends on."""
    match axis:
        case Grid(values=values) | Options(values=values):
            return values[0]
        case Range(low=low):
            return low
        case _:
            assert_never(axis)
