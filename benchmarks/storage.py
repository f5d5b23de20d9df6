"""CPU of starting and ending a trial: Optuna's own storage and ours, turn by turn in one run, on SQLite."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from rich.table import Table

from search.storage import open_storage

TRIALS = 60
PARAMETERS = (10, 30, 100)
ATTRIBUTES = {"origin": "sampler", "digest": "0" * 64}
RESULTS = {"macs": 1e6, "rung": 1, "artifact": "0" * 64}


def measure(parameters: int, folder: Path) -> dict[str, float]:
    """Median CPU milliseconds a trial (start with all parameters, end with values and attributes)."""
    drawn: dict[str, BaseDistribution] = {f"site{i}/ratio": FloatDistribution(0.0, 1.0) for i in range(parameters)}
    params = {name: 0.5 for name in drawn}
    stock = optuna.storages.RDBStorage(f"sqlite:///{folder}/stock{parameters}.db")
    ours = open_storage(f"sqlite:///{folder}/ours{parameters}.db", create=True)
    studies = [
        optuna.create_study(storage=storage, directions=["maximize", "minimize"])._study_id for storage in (stock, ours)
    ]

    def with_stock(number: int) -> None:
        template = create_trial(
            state=TrialState.RUNNING, params=params, distributions=drawn, user_attrs=dict(ATTRIBUTES)
        )
        trial = stock.create_new_trial(studies[0], template)
        for key, value in RESULTS.items():
            stock.set_trial_user_attr(trial, key, value)
        stock.set_trial_state_values(trial, TrialState.COMPLETE, [0.9, 1e4])

    def with_ours(number: int) -> None:
        trial = ours.start_trial(studies[1], number, params, drawn, ATTRIBUTES, {})
        ours.finish_trial(trial, TrialState.COMPLETE, [0.9, 1e4], RESULTS)

    spent: dict[str, list[float]] = {"stock": [], "ours": []}
    ways: list[tuple[str, Callable[[int], None]]] = [("stock", with_stock), ("ours", with_ours)]
    for number in range(TRIALS):
        for name, way in ways:
            since = time.process_time()
            way(number)
            spent[name].append((time.process_time() - since) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    """Measure, print, and write benchmarks/results/storage.json."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = Table(title=f"CPU a trial on SQLite, median of {TRIALS}, turn by turn")
    for column in ("parameters", "stock RDBStorage", "ours", "ratio"):
        table.add_column(column, justify="right")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for parameters in PARAMETERS:
            one = measure(parameters, Path(folder))
            ratio = one["stock"] / one["ours"]
            found[parameters] = {"stock_ms": one["stock"], "ours_ms": one["ours"], "ratio": ratio}
            table.add_row(str(parameters), f"{one['stock']:.1f} ms", f"{one['ours']:.1f} ms", f"{ratio:.0f}x")
    Console(width=100).print(table)
    target = Path(__file__).parent / "results" / "storage.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
