"""A front to look at: as a table on a terminal, as a picture, or as a page with the numbers under the pointer."""

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.front import Front, Point
from search.storage.reading import Candidate
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

SIZE_LABEL = "size of the packed file (kB, log)"
ACCURACY_LABEL = "accuracy on validation"
BLUE, ORANGE, GREY, INK, GREEN, PALE = "#1f6feb", "#e8710a", "#6e7781", "#24292f", "#1a7f37", "#d8dee4"
PAPER = "#ffffff"
INTERVAL = "95 %\ninterval"
TEST_INTERVAL = 6  # the column
WIDE_COLUMNS = 100  # a table with all columns fits into this
NOISE_LABEL = "within noise of a smaller member, on test"
STOPPED_LABEL = "candidates stopped early (estimates)"
SHOWN_BELOW = 0.2  # share of the accuracy from chance to the float model that a plot shows


def plot(front: Front, path: Path, against: Front | None = None) -> None:
    """Draw a front over log size: the uniform policies beside it, the float model as a line, the knee marked.

    Args:
        front: the front.
        path: where to; .png is a picture, .html one page that needs nothing else.
        against: another front to compare with.

    Raises:
        ConfigError: another suffix, or a folder that cannot be written.
    """
    drawers = {".png": _png, ".html": _html}
    draw = drawers.get(path.suffix.lower())
    if draw is None:
        raise ConfigError(f"--plot: given {path}, allowed a file that ends in .png or .html")
    best = front.knee
    if best is None:
        raise ConfigError(f"--plot: study {front.study!r} has no finished trial to draw yet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(front, best, path, against)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error}") from error


def table(front: Front, columns: int = WIDE_COLUMNS) -> "Table":
    """The front as a table for a terminal; the knee, and what is within noise of a smaller member, are marked.

    Args:
        front: the front.
        columns: of the terminal; on a narrow one the intervals on the test split are left out.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    best = front.knee.trial if front.knee else None
    made = Table(title=f"front of {front.study}", title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    wide = columns >= WIDE_COLUMNS
    made.padding, made.pad_edge, made.show_edge = (0, int(wide), 0, 0), False, False
    names = ["trial", "bytes", "ratio", "accuracy", INTERVAL, "test\naccuracy", INTERVAL, "MACs", "rung", ""]
    shown = [at for at in range(len(names)) if wide or at != TEST_INTERVAL]
    for at in shown:
        made.add_column(names[at], justify="right", no_wrap=True)
    for point in front.points:
        cells = _cells(front, point, point.trial == best)
        made.add_row(*(cells[at] for at in shown), style="bold" if point.trial == best else "")
    made.add_section()
    model = _float_cells(front)
    made.add_row(*(model[at] for at in shown), style="dim")
    made.caption = f"hypervolume {front.hypervolume:.4f}, within 5 points of float {front.hypervolume5:.4f}"
    return made


def _cells(front: Front, point: Point, knee: bool) -> Sequence[str]:
    noise = "" if point.within_noise_of is None else f"~{point.within_noise_of}"
    return (
        str(point.trial),
        f"{point.bytes:,}",
        _smaller(front, point),
        f"{point.accuracy:.4f}",
        _interval(point.accuracy_ci95),
        "" if point.test_accuracy is None else f"{point.test_accuracy:.4f}",
        _interval(point.test_accuracy_ci95),
        _count(point.macs),
        str(point.rung),
        f"{noise} knee".strip() if knee else noise,
    )


def _float_cells(front: Front) -> Sequence[str]:
    model = front.float
    return (
        "float",
        f"{model.bytes:,}",
        "1.0x",
        f"{model.accuracy:.4f}",
        _interval(model.accuracy_ci95),
        f"{model.test_accuracy:.4f}",
        _interval(model.test_accuracy_ci95),
        _count(model.macs),
        "",
        "",
    )


def _smaller(front: Front, point: Point | Candidate) -> str:
    return f"{front.float.bytes / point.bytes:.1f}x"


def _interval(ci95: tuple[float, float] | None) -> str:
    return f"{ci95[0]:.3f}-{ci95[1]:.3f}" if ci95 else ""


def _count(macs: float) -> str:
    size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if macs >= s), (1.0, ""))
    return f"{macs / size:.3g} {unit}".rstrip()


def _kb(points: Sequence[Point | Candidate]) -> list[float]:
    return [point.bytes / 1000 for point in points]


def _accuracies(points: Sequence[Point | Candidate]) -> list[float]:
    return [point.accuracy for point in points]


def _stairs(front: Front, right_kb: float) -> tuple[list[float], list[float]]:
    """The front as a step line, drawn on to the right edge: what is reached there with at most so many kB."""
    sizes, heights = _kb(front.points), _accuracies(front.points)
    return [*sizes, max(right_kb, *sizes)], [*heights, heights[-1]]


def _limits(front: Front, against: Front | None) -> tuple[float, float, float, float]:
    """What is shown: from left to right in kB, from bottom to top in accuracy."""
    fronts = [front, *([against] if against is not None and against.points else [])]
    model = front.float
    top = max([model.accuracy, *(point.accuracy for one in fronts for point in one.points)])
    floor = model.accuracy - SHOWN_BELOW * (model.accuracy - front.reference.worst)
    shown = [point for one in fronts for point in one.points if point.accuracy >= floor]
    low = floor if shown else min(point.accuracy for one in fronts for point in one.points)
    edge = 0.05 * (top - low) or 0.05
    shown = shown or [point for one in fronts for point in one.points]
    return min(_kb(shown)) / 1.25, model.bytes / 1000 * 1.15, low - edge, top + 2 * edge


def _float_label(front: Front) -> str:
    return f"float model: {front.float.accuracy:.3f}, {front.float.bytes / 1000:,.0f} kB"


def _knee_label(front: Front, point: Point) -> str:
    return f"knee: {point.accuracy:.3f}, {point.bytes / 1000:,.1f} kB, {_smaller(front, point)} smaller"


def _fronts(front: Front, against: Front | None) -> list[tuple[Front, str]]:
    """What is drawn, with its colour, from back to front."""
    other = [(against, ORANGE)] if against is not None and against.points else []
    return [*other, (front, BLUE)]


def _candidates(front: Front) -> tuple[list[Candidate], list[Candidate]]:
    """All finished trials that are no uniform policies: those scored in full, and those that were stopped."""
    others = [point for point in front.complete if point.origin != "uniform"]
    return [point for point in others if not point.stopped], [point for point in others if point.stopped]


def _noisy(front: Front, against: Front | None) -> bool:
    return any(point.within_noise_of is not None for one, _ in _fronts(front, against) for point in one.points)


def _name(front: Front, bottom: float, left: float) -> str:
    """A front in the legend, with how many of its members lie outside of what is shown."""
    hidden = sum(point.accuracy < bottom or point.bytes / 1000 < left for point in front.points)
    return f"front of {front.study}" + (f" ({hidden} of less accuracy not shown)" if hidden else "")


def _png(front: Front, best: Point, path: Path, against: Front | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    left, right, bottom, top = _limits(front, against)
    figure = Figure(figsize=(9, 5.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", xlim=(left, right), ylim=(bottom, top))
    axes.axhline(front.float.accuracy, color=INK, linestyle=(0, (5, 4)), linewidth=1.1, label=_float_label(front))
    others, stopped = _candidates(front)
    axes.scatter(_kb(others), _accuracies(others), s=16, color=BLUE, alpha=0.35, linewidth=0, label="candidates")
    if stopped:
        axes.scatter(_kb(stopped), _accuracies(stopped), s=14, marker="|", color=GREY, alpha=0.5, label=STOPPED_LABEL)
    crosses: dict[str, Any] = {"s": 48, "marker": "x", "color": GREY, "linewidth": 1.8, "zorder": 3}
    axes.scatter(_kb(front.uniform), _accuracies(front.uniform), label="uniform policies", **crosses)
    for one, color in _fronts(front, against):
        for point in one.points:
            if point.accuracy_ci95:
                axes.vlines(point.bytes / 1000, *point.accuracy_ci95, color=color, alpha=0.18, linewidth=3)
        axes.step(*_stairs(one, right), where="post", color=color, linewidth=1.8)
        name = _name(one, bottom, left)
        filled = [PAPER if point.within_noise_of is not None else color for point in one.points]
        axes.scatter([], [], s=34, color=color, label=name)
        axes.scatter(_kb(one.points), _accuracies(one.points), s=34, facecolor=filled, edgecolor=color, zorder=3)
    if _noisy(front, against):
        axes.scatter([], [], s=34, facecolor=PAPER, edgecolor=INK, label=NOISE_LABEL)
    at = (best.bytes / 1000, best.accuracy)
    axes.scatter(*at, s=190, facecolor="none", edgecolor=GREEN, linewidth=2, label=_knee_label(front, best), zorder=4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(SIZE_LABEL, fontsize=11)
    axes.set_ylabel(ACCURACY_LABEL, fontsize=11)
    axes.set_title(f"{front.study}: accuracy against size", loc="left", fontsize=13, color=INK)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", framealpha=0.92, edgecolor=PALE, fontsize=9.5)
    figure.savefig(path, format="png")


def _html(front: Front, best: Point, path: Path, against: Front | None) -> None:
    import plotly.graph_objects as go

    left, right, bottom, top = _limits(front, against)
    figure = go.Figure()

    def scatter(
        one: Front, points: Sequence[Point | Candidate], name: str, marker: dict[str, Any], **more: Any
    ) -> None:
        hover = [_hover(one, point) for point in points]
        x, y = _kb(points), _accuracies(points)
        figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, text=hover, hoverinfo="text", **more)

    line = {"color": INK, "dash": "dash", "width": 1.2}
    ends = {"x": [left, right], "y": [front.float.accuracy] * 2}
    figure.add_scatter(**ends, mode="lines", line=line, name=_float_label(front), hoverinfo="name")
    others, stopped = _candidates(front)
    scatter(front, others, "candidates", {"color": BLUE, "size": 5, "opacity": 0.3})
    if stopped:
        scatter(front, stopped, STOPPED_LABEL, {"symbol": "line-ns-open", "color": GREY, "size": 5, "opacity": 0.5})
    crosses = {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": GREY}}
    scatter(front, front.uniform, "uniform policies", crosses)
    for one, color in _fronts(front, against):
        x, y = _stairs(one, right)
        steps = {"color": color, "shape": "hv", "width": 2}
        figure.add_scatter(x=x, y=y, mode="lines", line=steps, showlegend=False, hoverinfo="skip")
        symbols = ["circle-open" if point.within_noise_of is not None else "circle" for point in one.points]
        marker = {"color": color, "size": 8, "symbol": symbols, "line": {"width": 2}}
        scatter(one, one.points, _name(one, bottom, left), marker, error_y=_errors(one.points, color))
    if _noisy(front, against):
        hollow = {"symbol": "circle-open", "size": 8, "color": INK, "line": {"width": 2}}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=NOISE_LABEL, marker=hollow)
    ring = {"symbol": "circle-open", "size": 18, "color": GREEN, "line": {"width": 2.5}}
    scatter(front, [best], _knee_label(front, best), ring)
    ticks = [digit * 10.0**power for power in range(-1, 8) for digit in (1, 2, 5)]
    limits = [log10(left), log10(right)]
    figure.update_xaxes(title=SIZE_LABEL, type="log", range=limits, tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    figure.update_yaxes(title=ACCURACY_LABEL, range=[bottom, top])
    legend = {"x": 0.99, "y": 0.02, "xanchor": "right", "yanchor": "bottom", "bordercolor": PALE, "borderwidth": 1}
    figure.update_layout(title=f"{front.study}: accuracy against size", template="plotly_white", legend=legend)
    shown = {"displayModeBar": False, "responsive": True}
    figure.write_html(path, include_plotlyjs=True, full_html=True, config=shown, default_height="95vh")


def _errors(points: Sequence[Point], color: str) -> dict[str, Any]:
    """The intervals on validation, as plotly draws them; none has no length."""
    ends = [point.accuracy_ci95 or (point.accuracy, point.accuracy) for point in points]
    above = [high - point.accuracy for point, (_, high) in zip(points, ends, strict=True)]
    below = [point.accuracy - low for point, (low, _) in zip(points, ends, strict=True)]
    look = {"color": color, "thickness": 1, "width": 0}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def _hover(front: Front, point: Point | Candidate) -> str:
    full = point if isinstance(point, Point) else None
    lines = [
        f"<b>trial {point.trial}</b> ({(full and full.label) or point.origin}, rung {point.rung})",
        f"{point.bytes:,} bytes, {_smaller(front, point)} smaller",
        f"accuracy {point.accuracy:.4f} {_interval(full.accuracy_ci95 if full else None)}".rstrip(),
    ]
    if full is not None and full.test_accuracy is not None:
        lines.append(f"test accuracy {full.test_accuracy:.4f} {_interval(full.test_accuracy_ci95)}".rstrip())
    if full is not None:
        lines.append(f"MACs {_count(full.macs)}")
    if full is not None and full.within_noise_of is not None:
        lines.append(f"on test within noise of the smaller trial {full.within_noise_of}")
    if point.stopped:
        lines.append("stopped early: the accuracy is an estimate")
    return "<br>".join(lines)
