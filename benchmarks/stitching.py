"""What putting a model together from the layer database costs, against evaluating it once on validation.

`python -m benchmarks.stitching [digits animals] [--json FILE]`. Five kinds of choices take turns from site to site, all
of them in the database's memory; times are medians, turn by turn.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compress.apply import apply
from compress.inputs import outputs
from objectives.evaluation import Evaluation, teach
from objectives.score import Scorer
from objectives.workload import load_workload
from spaces.policy import Choice, Codebook, Float32, Uniform, Unstructured

WORKLOADS = ("digits", "animals")
CHUNK = 200
REPETITIONS = 15
CHOICES = (
    Choice(weights=Float32()),
    Choice(weights=Uniform(bits=3)),
    Choice(weights=Uniform(bits=8)),
    Choice(weights=Codebook(bits=4)),
    Choice(prune=Unstructured(ratio=0.7), weights=Uniform(bits=4)),
)


@dataclass(frozen=True)
class Row:
    """One workload.

    Attributes:
        share: of the evaluation's median that the stitching's is.
    """

    workload: str
    sites: int
    stitch_ms: float
    evaluate_ms: float
    share: float


def measure(name: str, folder: Path) -> Row:
    """Both medians of a workload, once everything is in the database."""
    loaded = load_workload(f"objectives.workloads.{name}:workload")
    evaluation = Evaluation(0, CHUNK, 1, "cpu", (), folder, coding="entropy", max_bytes=0)
    database = Scorer(loaded, evaluation, teach(loaded, evaluation)).models.database(None)
    for site in loaded.sites:
        database.layers(site, CHOICES)
    inputs = loaded.splits["validation"].inputs
    stitching, evaluating = [], []
    for repetition in range(REPETITIONS + 1):
        choices = {site.name: CHOICES[(repetition + i) % len(CHOICES)] for i, site in enumerate(loaded.sites)}
        since = time.perf_counter()
        applied = apply(loaded.model, loaded.sites, choices, database)
        between = time.perf_counter()
        outputs(applied.model, inputs, CHUNK)
        if repetition:  # the first one warms up
            stitching.append((between - since) * 1e3)
            evaluating.append((time.perf_counter() - between) * 1e3)
    stitch_ms, evaluate_ms = statistics.median(stitching), statistics.median(evaluating)
    return Row(name, len(loaded.sites), stitch_ms, evaluate_ms, stitch_ms / evaluate_ms)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write a JSON file if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stitching", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, Path(folder)) for name in options.workloads]
    table = Table(title=f"Stitching against evaluating once on validation, one thread, median of {REPETITIONS}")
    for column in ("workload", "sites", "stitch", "evaluate", "share"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for row in rows:
        times = f"{row.stitch_ms:.2f} ms", f"{row.evaluate_ms:.1f} ms", f"{row.share:.1%}"
        table.add_row(row.workload, str(row.sites), *times)
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
