"""How busy one driver keeps its workers: 256 and 1,024 simulated ones, and one and two real ones."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scaling.made_up import config_of
from benchmarks.scaling.running import Run, run
from search.pool import start_ray, stop_ray
from search.storage import open_storage

RESULTS = Path(__file__).parent / "results" / "scale.json"
SIMULATED = ((256, 384, 10_000, 2.0, 6.0), (256, 384, 10_000, 1.0, 1.0), (1024, 1536, 10_000, 2.0, 6.0))
SHORT = ((64, 96, 500, 2.0, 6.0),)
SAMPLERS = ("front", "nsga2")
TRIALS = 40  # on real workers; those before FIRST are told while workers start and caches fill
FIRST = 4


def simulated(given: tuple[int, int, int, float, float], sampler: str, url: str | None) -> Run:
    """One made-up search in a Ray of its own."""
    workers, window, trials, low, high = given
    with tempfile.TemporaryDirectory() as folder:
        store = url or f"sqlite:///{folder}/scale.db"
        start_ray(config_of("start", trials=1, window=1, workers=2, sampler=sampler, url=store))
        try:
            return run(
                Path(folder), store, workers=workers, window=window, trials=trials, low=low, high=high, sampler=sampler
            )
        finally:
            stop_ray()


def real(config: str, workers: int, folder: Path, study: str, trials: int) -> float:
    """Candidates a second of the command line's search, from the told trials' own times."""
    store = f"sqlite:///{folder}/{study}.db"
    command = [
        *(sys.executable, "-m", "search.cli", "launch", config, "--workers", str(workers)),
        *("--trials", str(trials), "--storage", store, "--set", f"cache={folder / 'cache'}", "--set", f"study={study}"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    storage = open_storage(store, create=False)
    try:
        told = storage.load_trials(storage.get_study_id_from_name(study))
    finally:
        storage.close()
    ends = sorted(one.datetime_complete for one in told if isinstance(one.datetime_complete, datetime))
    return (len(ends) - FIRST) / (ends[-1] - ends[FIRST - 1]).total_seconds()


def scaling(config: str, rounds: int, trials: int) -> dict[str, Any]:
    """Candidates a second on 1 and 2 workers, turn by turn, with compressed layers at hand."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real(config, 2, folder, "warm", FIRST + 2)
        for turn in range(rounds):
            for workers, found in rates.items():
                found.append(real(config, workers, folder, f"turn-{turn}-{workers}", trials))
    one, two = (statistics.median(found) for found in rates.values())
    return {"config": config, "trials": trials, "rates": rates, "one": one, "two": two, "ratio": two / one}


def show(runs: list[Run], scaled: dict[str, Any] | None) -> None:
    """Both tables."""
    table = Table(title="One driver and simulated workers; 100 parameters a candidate")
    columns = (
        "workers",
        "window",
        "candidates",
        "each",
        "sampler",
        "busy",
        "with start and end",
        "driver",
        "sampler's CPU",
    )
    for name in columns:
        table.add_column(name, justify="right")
    for one in runs:
        each = f"{one.low:g} s" if one.low == one.high else f"{one.low:g} to {one.high:g} s"
        table.add_row(
            *(f"{one.workers:,}", f"{one.window:,}", f"{one.trials:,}", each, one.sampler_name),
            *(f"{one.busy:.1%}", f"{one.busy_whole:.1%}", f"{one.driver:.1f} ms", f"{one.sampler:.1f} ms"),
        )
    console = Console()
    if runs:
        console.print(table)
    if scaled:
        console.print(
            f"{scaled['config']}: {scaled['one']:.3f} candidates a second on one worker, {scaled['two']:.3f} on two: "
            f"{scaled['ratio']:.2f} times"
        )


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="64 workers and 500 candidates, and no real ones")
    parser.add_argument("--only", choices=("simulated", "real"))
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--config", default="configs/animals.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=TRIALS, help="of a search on real workers")
    parser.add_argument("--storage", help="URL of an empty database; else SQLite")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    runs = [
        simulated(one, sampler, given.storage)
        for one in ((SHORT if given.short else SIMULATED) if given.only != "real" else ())
        for sampler in given.samplers.split(",")
    ]
    scaled = None if given.short or given.only == "simulated" else scaling(given.config, given.rounds, given.trials)
    show(runs, scaled)
    given.json.parent.mkdir(exist_ok=True)
    given.json.write_text(json.dumps({"simulated": [asdict(one) for one in runs], "real": scaled}, indent=2) + "\n")


if __name__ == "__main__":
    main()
