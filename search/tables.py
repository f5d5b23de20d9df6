"""What the layer database and the sensitivities say about a space, as tables that a sampler looks up."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.layer import Cost
from objectives.sensitivities import KINDS
from search.prices import Price
from search.samplers.table import SiteTable, Table
from search.settings import Priced, Setting
from spaces.axes import Axis, Grid, Options, first_value
from spaces.site_space import SiteSpace
from spaces.space import TRAINED, Space

Floats = npt.NDArray[np.float64]


def tables_of(space: Space, priced: Sequence[Priced], losses: Sequence[float]) -> tuple[Table, ...]:
    """One table for each setting.

    Args:
        space: what may be chosen.
        priced: the settings and what their choices cost.
        losses: what each setting costs by itself.
    """
    return tuple(_table(space, one, loss) for one, loss in zip(priced, losses, strict=True))


def _table(space: Space, priced: Priced, loss: float) -> Table:
    setting = priced.setting
    prefix = f"{setting.model}:" if setting.model else ""
    sites = tuple(site_table(site, costs, prefix) for site, costs in zip(setting.sites, priced.costs, strict=True))
    smallest = sum(int(site.bytes.min()) for site in sites)
    return Table(sites, fixed_of(space, setting), priced.variant.layout.file_bytes(smallest) - smallest, loss)


def fixed_of(space: Space, setting: Setting) -> dict[str, Any]:
    """The axes that a setting settles, with its values."""
    names = {axis.name for axis in space.axes()}
    gone = {name for block in space.blocks if block.name in setting.dropped for name in block.groups}
    removed = {name: ratio for name, ratio in setting.channels.items() if name not in gone}
    fixed: dict[str, Any] = {f"{one.name}/channels": removed.get(one.name, one.ratios[0]) for one in space.groups}
    fixed |= {f"{block.name}/dropped": "yes" if block.name in setting.dropped else "no" for block in space.blocks}
    if setting.model is not None:
        fixed = {}  # a student's policies are the same whatever these say
    fixed["model"] = setting.model or TRAINED
    return {name: value for name, value in fixed.items() if name in names}


def site_table(site: SiteSpace, costs: Sequence[Cost], prefix: str = "") -> SiteTable:
    """The table of a site from what its choices cost.

    Args:
        site: its choices.
        costs: of each, `Price` where sensitivities are known.
        prefix: of the names of its axes.
    """
    axes, choices = tuple(site.axes(prefix)), site.choices()
    names = {axis.name for axis in axes}
    points = tuple(
        {name: value for name, value in site.point(choice, prefix).items() if name in names} for choice in choices
    )
    numbers = {choice: i for i, choice in enumerate(choices)}
    aliases = []
    for values in itertools.product(*(_values(axis) for axis in axes)):
        point = {axis.name: value for axis, value in zip(axes, values, strict=True)}
        aliases.append((point, numbers[site.at(point, prefix)]))
    return SiteTable(
        prefix + site.name,
        points,
        np.array([cost.bytes for cost in costs], np.int64),
        _losses(costs),
        tuple(aliases),
    )


def _values(axis: Axis) -> Sequence[Any]:
    return axis.values if isinstance(axis, Grid | Options) else (first_value(axis),)


def _losses(costs: Sequence[Cost]) -> Floats:
    """(choices, kinds), kinds as in `KINDS`."""
    output = np.array([cost.error for cost in costs], np.float64)
    rows = [output]
    for kind in KINDS[1:]:
        values = np.array([getattr(cost, kind) if isinstance(cost, Price) else math.nan for cost in costs])
        rows.append(filled(output, values) if kind == "kl" else values)
    return np.stack(rows, axis=1)


def filled(output: Floats, values: Floats) -> Floats:
    """Measured losses, and where none was measured one that follows the output's error between those that were.

    Args:
        output: relative output errors, (choices,).
        values: measured losses, (choices,); NaN where there is none.

    Returns:
        float64 (choices,); NaN where nothing was measured at the site.
    """
    known = np.isfinite(values) & (values > 0) & (output > 0)
    if not known.any():
        return values
    order = np.argsort(output[known], kind="stable")
    logs = np.log(output[known][order])
    offsets = np.log(values[known][order]) - logs
    with np.errstate(divide="ignore"):
        guessed = np.exp(np.log(output) + np.interp(np.log(output), logs, offsets))
    return np.where(np.isfinite(values), values, guessed)


def sensitivity_document(
    priced: Sequence[Priced], tables: Sequence[Table], losses: Sequence[float]
) -> Mapping[str, Any]:
    """All sensitivities as JSON values, for a study attribute: null where one was not measured."""
    every = [cost for one in priced for own in one.costs for cost in own if isinstance(cost, Price)]
    return {
        "kinds": list(KINDS),
        "forwards": sum(cost.forwards for cost in every),
        "backwards": sum(cost.backwards for cost in every),
        "settings": [
            {
                "fixed": dict(table.fixed),
                "loss": _number(loss),
                "sites": {
                    site.name: {"bytes": [cost.bytes for cost in own], "float32": _float_bytes(one, site.name)}
                    | _columns(own)
                    for site, own in zip(one.setting.sites, one.costs, strict=True)
                },
            }
            for one, table, loss in zip(priced, tables, losses, strict=True)
        ],
    }


def _float_bytes(priced: Priced, name: str) -> int:
    return 4 * next(site.size for site in priced.variant.sites if site.name == name)


def _columns(costs: Sequence[Cost]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {"output": [_number(cost.error) for cost in costs]}
    for kind in KINDS[1:]:
        found[kind] = [_number(getattr(cost, kind, math.nan)) for cost in costs]
    return found


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
