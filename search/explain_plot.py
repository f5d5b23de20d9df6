"""An explanation to look at: as a table on a terminal, and as a heat map of sites and choices."""

from collections.abc import Iterable
from math import log10, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.explain import MEANINGS, Explanation, Option, SiteReason
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

WIDE_COLUMNS = 130  # a table with all sensitivities fits into this
MISSING, CHOSEN = "#d8dee4", "#e8710a"
COLORS = "Viridis"
DECADES = 8  # that colours span at most: what is less looks like nothing


def table(found: Explanation, columns: int = WIDE_COLUMNS) -> "Table":
    """Each site's choice, what it saves and is predicted to cost, and what its neighbours would.

    Args:
        found: the explanation.
        columns: of the terminal; on a narrow one there is only the sensitivity that choices are compared by, no
            bytes saved, and neighbours have no names.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    wide = columns >= WIDE_COLUMNS
    kinds = [kind for kind in found.kinds if wide or kind == found.by]
    title = f"why: trial {found.trial} of {found.study}, {found.bytes:,} bytes, accuracy {found.accuracy:.4f}"
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    made.padding, made.pad_edge, made.show_edge = (0, 1, 0, 0), False, False
    for name in ("site", "choice", "bytes", *(["saved"] if wide else []), *kinds, "next\nsmaller", "next\nlarger"):
        left = name in ("site", "choice") or (wide and name.startswith("next"))
        made.add_column(name, justify="left" if left else "right", overflow="fold")
    for one in found.sites:
        own = one.option
        losses = [_number(own.losses[kind]) for kind in kinds]
        others = [Text(_step(found, one, at, named=wide)) for at in (one.smaller, one.larger)]
        mark = "" if one.better is None else " *"
        numbers = [f"{own.bytes:,}", *(["" if one.saved is None else f"{one.saved:,}"] if wide else [])]
        made.add_row(Text(one.site), Text(own.choice + mark), *numbers, *losses, *others)
    return made


def lines(found: Explanation) -> Iterable[str]:
    """What the table is to be read with."""
    yield f"loss is predicted by {found.by}: {MEANINGS.get(found.by, found.by)}"
    if better := [one for one in found.sites if one.better is not None]:
        yield f"* {len(better)} of {len(found.sites)} sites: a choice of no more bytes is predicted to lose less:"
        yield from (f"  {one.site}: {_step(found, one, one.better)}" for one in better)
    if found.loss:
        yield f"the model of this setting, uncompressed, is {found.loss:.2g} from the brought one's outputs"
    if not found.exact:
        fixed = ", ".join(f"{name} {value}" for name, value in found.fixed.items())
        yield f"sensitivities were not computed for what this policy leaves of the model; these are with {fixed}"
    if found.rung:
        yield "bytes of sites and losses are before training, which moved both"
    spent = f"{found.forwards:,} samples forward and {found.backwards:,} backward"
    yield f"all sensitivities of the study took {spent}"


def _step(found: Explanation, site: SiteReason, at: int | None, *, named: bool = True) -> str:
    """Another choice against the one that a site got."""
    if at is None:
        return "none"
    other, own = site.options[at], site.option
    after, before = other.losses[found.by], own.losses[found.by]
    loss = "" if after is None or before is None else f"{', ' if named else chr(10)}{after - before:+.2g}"
    return f"{other.choice + ': ' if named else ''}{other.bytes - own.bytes:+,} B{loss}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def plot(found: Explanation, path: Path) -> None:
    """Draw predicted loss as a heat map of sites (rows) and choices (columns), the choices made are marked.

    Args:
        found: the explanation.
        path: where to; .png is a picture, .html one page that needs nothing else.

    Raises:
        ConfigError: another suffix, or a folder that cannot be written.
    """
    drawers = {".png": _png, ".html": _html}
    draw = drawers.get(path.suffix.lower())
    if draw is None:
        raise ConfigError(f"--plot: given {path}, allowed a file that ends in .png or .html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(found, path)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error}") from error


def columns_of(found: Explanation) -> list[str]:
    """The choices of all sites, smallest first as far as they agree on that."""
    share: dict[str, list[float]] = {}
    for site in found.sites:
        largest = max(one.bytes for one in site.options) or 1
        for one in site.options:
            share.setdefault(one.choice, []).append(one.bytes / largest)
    return sorted(share, key=lambda name: sum(share[name]) / len(share[name]))


def grid(found: Explanation) -> list[list[Option | None]]:
    """The choices as a grid of sites and `columns_of`; None where a site does not have one."""
    names = columns_of(found)
    rows = [{one.choice: one for one in site.options} for site in found.sites]
    return [[row.get(name) for name in names] for row in rows]


def heat(found: Explanation) -> list[list[float]]:
    """log10 of the predicted losses, as `grid`; NaN where there is none, at least `DECADES` below the largest."""
    losses = [[None if one is None else one.losses[found.by] for one in row] for row in grid(found)]
    positive = [log10(one) for row in losses for one in row if one is not None and one > 0]
    least = max(min(positive, default=0.0), max(positive, default=0.0) - DECADES)
    return [[nan if one is None else max(least, log10(one)) if one > 0 else least for one in row] for row in losses]


def _chosen(found: Explanation) -> tuple[list[int], list[int]]:
    """Columns and rows of the choices that were made."""
    names = columns_of(found)
    return [names.index(site.option.choice) for site in found.sites], list(range(len(found.sites)))


def _title(found: Explanation) -> str:
    return f"{found.study}, trial {found.trial}: predicted loss of each choice by {found.by}"


def _label(found: Explanation) -> str:
    return f"log10 of loss ({found.by})"


def _png(found: Explanation, path: Path) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, sites = columns_of(found), [site.site for site in found.sites]
    figure = Figure(figsize=(3 + 0.28 * len(names), 2 + 0.24 * len(sites)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = colormaps[COLORS.lower()].with_extremes(bad=MISSING)
    image = axes.imshow(np.ma.masked_invalid(np.array(heat(found))), cmap=colors, aspect="auto")
    axes.scatter(*_chosen(found), s=42, facecolor="none", edgecolor=CHOSEN, linewidth=2, label="chosen")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(sites)), sites, fontsize=7)
    axes.set_title(_title(found), loc="left", fontsize=10)
    figure.colorbar(image, ax=axes, label=_label(found))
    figure.legend(loc="outside lower right", fontsize=8)
    figure.savefig(path, format="png")


def _html(found: Explanation, path: Path) -> None:
    import plotly.graph_objects as go

    names, sites = columns_of(found), [site.site for site in found.sites]
    hover = [
        ["" if one is None else _hover(site, one) for one in row]
        for site, row in zip(found.sites, grid(found), strict=True)
    ]
    figure = go.Figure()
    shades: dict[str, Any] = {"colorscale": COLORS, "colorbar": {"title": _label(found)}, "hoverongaps": False}
    figure.add_heatmap(z=_gaps(heat(found)), x=names, y=sites, text=hover, hoverinfo="text", **shades)
    x, y = _chosen(found)
    ring = {"symbol": "circle-open", "size": 12, "color": CHOSEN, "line": {"width": 3}}
    across, down = [names[i] for i in x], [sites[i] for i in y]
    figure.add_scatter(x=across, y=down, mode="markers", marker=ring, name="chosen", hoverinfo="skip")
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category", tickangle=-90)
    height = 260 + 22 * len(sites)
    look = {"template": "plotly_white", "plot_bgcolor": MISSING, "height": height}
    figure.update_layout(title=_title(found), legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, **look)
    figure.write_html(path, include_plotlyjs=True, full_html=True, config={"displayModeBar": False, "responsive": True})


def _gaps(rows: list[list[float]]) -> list[list[float | None]]:
    return [[None if one != one else one for one in row] for row in rows]  # JSON has no NaN


def _hover(site: SiteReason, one: Option) -> str:
    losses = [f"{kind} {_number(value)}" for kind, value in one.losses.items() if value is not None]
    mark = " (chosen)" if one is site.option else ""
    return "<br>".join([f"<b>{site.site}</b>: {one.choice}{mark}", f"{one.bytes:,} bytes", *losses])
