"""The comparison as tables on a terminal and as plots of the anytime curves."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.searching.comparing import Pair, Row, Spread
from benchmarks.searching.measures import Moment

WIDTH = 150
COLOURS = (
    "#1f6feb", "#0b3d91", "#e8710a", "#a34a00", "#1a7f37", "#0e4d21", "#6e7781", "#8250df", "#bf3989", "#9a6700",
    "#24292f", "#57ab5a", "#d29922",
)  # fmt: skip
AXES = ("evaluations", "forwards", "seconds")
PLOTTED = (("hypervolume", "hypervolume, validation"), ("test_hypervolume5", "hypervolume5, test"))

Curves = Mapping[str, Sequence[Sequence[Moment]]]  # by searcher, for each seed


def show(workload: str, rows: Sequence[Row], pairs: Sequence[Pair]) -> None:
    """Print the rows and the pairs."""
    console = Console(width=WIDTH)
    table = Table(title=f"{workload}: fronts, mean ± deviation over seeds", title_justify="left")
    for heading in ("searcher", "evals", "hv", "hv5", "hv test", "hv5 test", "sample-forwards", "seconds", "stopped"):
        table.add_column(heading, justify="left" if heading == "searcher" else "right")
    for row in rows:
        measures = [_spread(one) for one in row.measures.values()]
        stopped = f"{row.stopped} ({row.wrongly} wrongly)" if row.stopped else ""
        numbers = f"{row.forwards.mean:,.0f}", f"{row.seconds.mean:,.1f}", stopped
        table.add_row(row.searcher, str(row.evaluations), *measures, *numbers)
    console.print(table)
    if not pairs:
        return
    table = Table(title="Ours against others, seed by seed: mean difference (wins-losses)", title_justify="left")
    for heading in ("ours", "theirs", "evals", "equal", "hv", "hv5", "hv test", "hv5 test", "bytes saved", "on test"):
        table.add_column(heading, justify="left" if heading in ("ours", "theirs", "equal") else "right")
    for pair in pairs:
        count = str(pair.evaluations)
        if pair.at == "evaluations" and pair.their_evaluations != pair.evaluations:
            count += f" v {pair.their_evaluations}"
        cells = [_difference(pair, one) for one in pair.differences]
        table.add_row(pair.ours, pair.theirs, count, pair.at, *cells, *(_saved(own) for own in pair.saved.values()))
    console.print(table)


def _spread(one: Spread) -> str:
    return f"{one.mean:.4f} ± {one.deviation:.4f}"


def _difference(pair: Pair, measure: str) -> str:
    own = pair.differences[measure]
    losses = len(own) - pair.wins[measure] - pair.ties[measure]
    return f"{statistics.fmean(own):+.4f} ({pair.wins[measure]}-{losses})"


def _saved(logs: Sequence[float | None]) -> str:
    known = [one for one in logs if one is not None]
    return f"{statistics.fmean(known):+.1%}".replace("%", " %") if known else "none"


def average(moments: Sequence[Sequence[Moment]], axis: str, measure: str) -> tuple[list[float], list[float]]:
    """The mean over seeds of a measure, as steps along an axis, from where all seeds have a front."""
    places = sorted({getattr(one, axis) for own in moments for one in own})
    start = max(getattr(own[0], axis) for own in moments)
    end = min(getattr(own[-1], axis) for own in moments)
    xs = [place for place in places if start <= place <= end]
    at, heights = [0] * len(moments), []
    for x in xs:
        for i, own in enumerate(moments):
            while at[i] + 1 < len(own) and getattr(own[at[i] + 1], axis) <= x:
                at[i] += 1
        heights.append(statistics.fmean(getattr(own[at[i]].worth, measure) for i, own in enumerate(moments)))
    return xs, heights


def plot(workload: str, curves: Curves, path: Path) -> None:
    """Draw the anytime curves: a page that needs nothing else, and a picture of the same name beside it."""
    _html(workload, curves, path.with_suffix(".html"))
    _png(workload, curves, path.with_suffix(".png"))


def _html(workload: str, curves: Curves, path: Path) -> None:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(PLOTTED), cols=len(AXES), horizontal_spacing=0.06, vertical_spacing=0.1)
    for i, (name, moments) in enumerate(curves.items()):
        line = {"color": COLOURS[i % len(COLOURS)], "shape": "hv"}
        for row, (measure, _) in enumerate(PLOTTED, start=1):
            for column, axis in enumerate(AXES, start=1):
                xs, ys = average(moments, axis, measure)
                first = row == column == 1
                trace = go.Scatter(x=xs, y=ys, mode="lines", name=name, line=line, legendgroup=name, showlegend=first)
                figure.add_trace(trace, row=row, col=column)
    for row, (_, title) in enumerate(PLOTTED, start=1):
        for column, axis in enumerate(AXES, start=1):
            figure.update_xaxes(title=_title(axis), row=row, col=column, type="linear" if column == 1 else "log")
            low = _floor(curves, PLOTTED[row - 1][0])
            figure.update_yaxes(title=title if column == 1 else None, range=[low, 1], row=row, col=column)
    figure.update_layout(title=f"{workload}: fronts against what they cost, mean over seeds", template="plotly_white")
    figure.write_html(path, include_plotlyjs=True, full_html=True, default_height="95vh")


def _png(workload: str, curves: Curves, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(15, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(PLOTTED), len(AXES))
    for i, (name, moments) in enumerate(curves.items()):
        for row, (measure, _) in enumerate(PLOTTED):
            for column, axis in enumerate(AXES):
                xs, ys = average(moments, axis, measure)
                grid[row, column].step(xs, ys, where="post", label=name, color=COLOURS[i % len(COLOURS)], linewidth=1.4)
    for row, (_, title) in enumerate(PLOTTED):
        for column, axis in enumerate(AXES):
            axes = grid[row, column]
            axes.set_xlabel(_title(axis))
            axes.set_ylabel(title if column == 0 else "")
            axes.set_xscale("linear" if column == 0 else "log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_ylim(bottom=_floor(curves, PLOTTED[row][0]))
            axes.grid(color="#d8dee4", linewidth=0.6)
    grid[0, 0].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"{workload}: fronts against what they cost, mean over seeds")
    figure.savefig(path, format="png")


def _floor(curves: Curves, measure: str) -> float:
    """Where plots of a measure start: somewhat below the worst of what is reached at the end."""
    ends = [getattr(own[-1].worth, measure) for moments in curves.values() for own in moments]
    return max(0.0, float(min(ends)) - 0.1)


def _title(axis: str) -> str:
    return {"evaluations": "evaluations", "forwards": "sample-forwards", "seconds": "seconds"}[axis]
