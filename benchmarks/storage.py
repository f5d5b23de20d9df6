"""What a trial costs in Optuna's own storage and in ours, and what loading a study costs: turn by turn, in one run."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from search.storage import End, Start, Storage, open_storage
from tests.stores import KINDS, fresh_url

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
ASKED = {"origin": "sampler", "digest": "0" * 64}
TOLD = {
    "macs": 1e6,
    "rung": 1,
    "rungs": [{"rung": rung, "accuracy": 0.9, "bytes": 10_000, "loss": 0.1, "seconds": 1.0} for rung in range(2)],
    "ci95": [0.88, 0.92],
    "artifact": "0" * 64,
    "host": "worker-1",
}
BATCH = 50
MOST_STOCK_VALUES = 500_000  # trials x parameters that stock storage is made to load: that takes it half a minute


@dataclass
class Cost:
    """What one trial cost."""

    cpu_ms: float
    wall_ms: float
    statements: int
    commits: int


def axes(parameters: int) -> dict[str, BaseDistribution]:
    """Half of them pruning ratios, half of them bits, and a temperature."""
    found: dict[str, BaseDistribution] = {"temperature": FloatDistribution(1.0, 20.0, log=True)}
    for site in range(parameters // 2):
        found[f"layers.{site}.conv/ratio"] = FloatDistribution(0.0, 0.9, step=0.1)
    for site in range(parameters - len(found)):
        found[f"layers.{site}.conv/bits"] = IntDistribution(2, 8)
    return found


def drawn(number: int, drawn_from: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Parameters of a trial."""
    return {
        name: 2 + (number + k) % 7 if isinstance(one, IntDistribution) else 1.0 if one.log else (number + k) % 10 / 10
        for k, (name, one) in enumerate(drawn_from.items())
        if isinstance(one, IntDistribution | FloatDistribution)
    }


def started(number: int, drawn_from: dict[str, BaseDistribution]) -> Start:
    """A trial as our loop starts it."""
    return Start(number, drawn(number, drawn_from), drawn_from, ASKED, {}, {"sampler:generation": number})


def ended(number: int) -> End:
    """How it ends."""
    return End(number, TrialState.COMPLETE, [0.9, 10_000.0 + number], TOLD)


def ours_one(storage: Storage, study_id: int, number: int, drawn_from: dict[str, BaseDistribution]) -> None:
    """A trial in a transaction for its start and one for its end."""
    storage.write_trials(study_id, [started(number, drawn_from)], [])
    storage.write_trials(study_id, [], [ended(number)])


def stock_one(storage: RDBStorage, study_id: int, number: int, drawn_from: dict[str, BaseDistribution]) -> None:
    """The same as `study.ask`, `suggest` and `study.tell` do it."""
    trial_id = storage.create_new_trial(study_id)
    params = drawn(number, drawn_from)
    for name, one in drawn_from.items():
        storage.set_trial_param(trial_id, name, one.to_internal_repr(params[name]), one)
    storage.set_study_user_attr(study_id, "sampler:generation", number)
    for key, value in {**ASKED, **TOLD}.items():
        storage.set_trial_user_attr(trial_id, key, value)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.9, 10_000.0 + number])


@contextmanager
def counted(storage: RDBStorage) -> Iterator[list[int]]:
    """Statements and commits while the block runs."""
    counts = [0, 0]

    def statement(*_: Any) -> None:
        counts[0] += 1

    def commit(*_: Any) -> None:
        counts[1] += 1

    event.listen(storage.engine, "before_cursor_execute", statement)
    event.listen(storage.engine, "commit", commit)
    yield counts
    event.remove(storage.engine, "before_cursor_execute", statement)
    event.remove(storage.engine, "commit", commit)


def measured(storage: RDBStorage, act: Callable[[], None]) -> Cost:
    """What an act costs this process; a server's own work is not in the CPU."""
    with counted(storage) as counts:
        cpu, wall = time.process_time(), time.perf_counter()
        act()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu * 1e3, wall * 1e3, *counts)


def middle(costs: Sequence[Cost]) -> dict[str, float]:
    """The medians."""
    names = ("cpu_ms", "wall_ms", "statements", "commits")
    return {name: statistics.median(getattr(one, name) for one in costs) for name in names} if costs else {}


def loaded(way: str, url: str, study_id: int) -> dict[str, float]:
    """CPU and wall seconds and MB that a process of its own takes to load a study."""
    command = [sys.executable, "-m", "benchmarks.storage", "--load", way, "--url", url, "--study", str(study_id)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def load(way: str, url: str, study_id: int) -> None:
    """Load a study, and print what that took."""
    storage = open_storage(url, create=False)
    stock = RDBStorage(storage.url) if way == "stock" else None
    if stock is not None:
        stock.get_study_directions(study_id)
    else:
        storage.get_study_directions(study_id)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    trials = storage.load_trials(study_id) if stock is None else stock.get_all_trials(study_id)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"trials": len(trials), "cpu_s": cpu, "wall_s": wall, "mb": (after - before) / 1024}))


def at(kind: str, parameters: int, counts: Sequence[int], turns: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The costs in a study with so many trials, for each of some counts, on a new database of a kind.

    The trials before those that are measured are written by our storage: the rows are the same.
    """
    url, drawn_from = fresh_url(kind, folder), axes(parameters)
    ours = open_storage(url, create=True)
    stock = RDBStorage(ours.url)
    study, other = (ours.create_new_study(DIRECTIONS, name) for name in ("ours", "stock"))
    held = 0
    for count in counts:
        batches: list[float] = []
        while held < count - turns:
            numbers = range(held, min(held + BATCH, count - turns))
            for study_id in (study, other):
                trials = [started(number, drawn_from) for number in numbers], [ended(number) for number in numbers]
                cost = measured(ours, lambda s=study_id, t=trials: ours.write_trials(s, *t))  # type: ignore[misc]
                batches.append(cost.cpu_ms / len(numbers))
            held = numbers[-1] + 1
        mine: list[Cost] = []
        theirs: list[Cost] = []
        while held < count:
            mine.append(measured(ours, lambda n=held: ours_one(ours, study, n, drawn_from)))  # type: ignore[misc]
            theirs.append(measured(stock, lambda n=held: stock_one(stock, other, n, drawn_from)))  # type: ignore[misc]
            held += 1
        affordable = count * parameters <= MOST_STOCK_VALUES
        yield {
            "database": kind,
            "parameters": parameters,
            "trials": count,
            "ours": {
                **middle(mine),
                "batch_cpu_ms": statistics.median(batches[-20:]),
                "load": loaded("ours", url, study),
            },
            "stock": {**middle(theirs), "load": loaded("stock", url, other) if affordable else None},
        }
    for storage in (ours, stock):
        storage.remove_session()
        storage.engine.dispose()


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """The costs as a table, stock / ours in each cell."""
    table = Table(title="a trial's start and end, and loading a study: stock RDBStorage / ours")
    for name in ("database", "params", "trials", "CPU ms", "ratio", "in batches", "wall ms", "statements", "commits"):
        table.add_column(name, justify="left" if name == "database" else "right")
    for name in ("load CPU s", "load MB"):
        table.add_column(name, justify="right")
    for row in rows:
        ours, stock = row["ours"], row["stock"]
        before = stock["load"]
        table.add_row(
            row["database"],
            str(row["parameters"]),
            f"{row['trials']:,}",
            f"{stock['cpu_ms']:.0f} / {ours['cpu_ms']:.1f}",
            f"{stock['cpu_ms'] / ours['cpu_ms']:.0f}x",
            f"{ours['batch_cpu_ms']:.1f}",
            f"{stock['wall_ms']:.0f} / {ours['wall_ms']:.1f}",
            f"{stock['statements']:.0f} / {ours['statements']:.0f}",
            f"{stock['commits']:.0f} / {ours['commits']:.0f}",
            f"{before['cpu_s'] if before else float('nan'):.1f} / {ours['load']['cpu_s']:.2f}",
            f"{before['mb'] if before else float('nan'):.0f} / {ours['load']['mb']:.0f}",
        )
    table.caption = (
        f"medians; CPU of this process, without a server's; in batches of {BATCH}: ours; nan: stock storage is not "
        f"made to load more than {MOST_STOCK_VALUES:,} parameter values; all but the measured trials of its study "
        "were written by ours, as the rows are the same"
    )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--databases", default=",".join(KINDS), help="kinds, of %(default)s")
    parser.add_argument("--parameters", default="10,100,500", help="of a trial; default %(default)s")
    parser.add_argument("--trials", default="100,1000,5000,20000", help="in the study; default %(default)s")
    parser.add_argument("--turns", type=int, default=15, help="trials measured at each; default %(default)s")
    parser.add_argument("--quick", action="store_true", help="a short form: 10 and 100 parameters, 100 and 1000 trials")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "storage.json")
    parser.add_argument("--load", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--study", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.load:
        return load(options.load, options.url, options.study)
    if options.quick:
        options.parameters, options.trials, options.turns = "10,100", "100,1000", 7
    console, rows, absent = Console(width=150), list[dict[str, Any]](), list[str]()
    counts = sorted(int(count) for count in options.trials.split(","))
    for kind in options.databases.split(","):
        for parameters in (int(one) for one in options.parameters.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    for row in at(kind, parameters, counts, options.turns, Path(folder)):
                        rows.append(row)
                        console.print(f"{kind}, {parameters} parameters, {row['trials']} trials: measured")
                except pytest.skip.Exception as error:
                    absent.append(f"{kind}: {error}")
                    break
    console.print(show(rows), *absent, sep="\n")
    options.json.parent.mkdir(exist_ok=True)
    found = {"turns": options.turns, "batch": BATCH, "absent": absent, "rows": rows}
    options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
