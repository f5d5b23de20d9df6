"""CPU and wall time of what the dashboard's page asks for: Optuna Dashboard given a URL, and ours."""

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from search.dashboard_app import dashboard_app
from search.storage import End, Start, Storage, open_storage

TRIALS, PARAMETERS, POLLS = 2_000, 100, 3
RUNNING = 12  # a window of 8 workers
WRITES_PER_S = 5.0
DRAWN: dict[str, BaseDistribution] = {
    **{f"layer{i}/ratio": FloatDistribution(0.0, 0.9, step=0.05) for i in range(PARAMETERS // 2)},
    **{f"layer{i}/bits": IntDistribution(2, 8) for i in range(PARAMETERS // 2 - 1)},
    "temperature": FloatDistribution(0.5, 20.0, log=True),
}


def begun(number: int) -> Start:
    """A candidate with made-up choices."""
    draw = random.Random(number)  # noqa: S311  # not for secrets
    params: dict[str, Any] = {}
    for name, drawn in DRAWN.items():
        if isinstance(drawn, IntDistribution):
            params[name] = draw.randint(2, 8)
        elif name.endswith("ratio"):
            params[name] = round(0.05 * draw.randint(0, 18), 2)
        else:
            params[name] = draw.uniform(0.5, 20.0)
    return Start(number, params, DRAWN, {"origin": "sampler", "digest": "0" * 64}, {})


def ended(number: int) -> End:
    """Its made-up score, on a front of about twenty, with the attributes that the loop stores."""
    draw = random.Random(-number)  # noqa: S311  # not for secrets
    size = draw.random()
    values = [1 - 2.0 ** (-6 * size) + draw.gauss(0, 0.02), 1e5 * size]
    rung = {"rung": 0, "accuracy": values[0], "bytes": values[1], "macs": 1e6, "loss": 0.3, "seconds": 0.5}
    attrs = {"macs": 1e6, "rung": 1, "artifact": "0" * 64, "seconds": 1.2, "rungs": [rung, rung], "host": "one"}
    return End(number, TrialState.COMPLETE, values, attrs)


def fill(storage: Storage, trials: int) -> int:
    """A study of so many ended trials."""
    study = optuna.create_study(storage=storage, study_name="large", directions=["maximize", "minimize"])
    for first in range(0, trials, 100):
        numbers = range(first, min(first + 100, trials))
        storage.write_trials(study._study_id, [begun(n) for n in numbers], [ended(n) for n in numbers])
    return study._study_id


def write(url: str) -> None:
    """What a search does to the database: starts and ends trials until it is stopped."""
    storage = open_storage(url, create=False)
    study_id = storage.get_study_id_from_name("large")
    first = len(storage.load_trials(study_id))
    storage.write_trials(study_id, [begun(first + one) for one in range(RUNNING)], [])
    print("writing", flush=True)
    for number in range(first, first + 1_000_000):
        storage.write_trials(study_id, [begun(number + RUNNING)], [ended(number)])
        time.sleep(1 / WRITES_PER_S)


@contextlib.contextmanager
def writing(url: str) -> Iterator[None]:
    """A process that writes to the study meanwhile."""
    command = [sys.executable, "-m", "benchmarks.dashboard", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # ourselves
    try:
        assert process.stdout is not None  # noqa: S101  # for mypy
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def ask(app: Any, path: str, query: str = "") -> tuple[float, float, bytes]:
    """CPU and wall milliseconds of a request, and its body."""
    from tests.wsgi import ask as get

    cpu, wall = time.process_time(), time.perf_counter()
    answer = get(app, path, query, HTTP_ACCEPT_ENCODING="gzip")
    assert answer.status == 200, answer.body[:500]  # noqa: S101
    return (time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3, answer.body


def measure(app: Any, study_id: int, fixed: int) -> dict[str, dict[str, float]]:
    """The first answer, the next page's, polls (those that a page makes: with a pause, median), and the others."""
    path = f"/api/studies/{study_id}"
    found = {}
    for name in ("first page", "second page"):
        cpu, wall, body = ask(app, path, "after=0")
        found[name] = {"cpu_ms": cpu, "wall_ms": wall, "mb": len(body) / 1e6}
    polls = []
    for _ in range(POLLS):
        time.sleep(1)
        polls.append(ask(app, path, f"after={fixed}"))
    cpu, wall, body = sorted(polls, key=lambda poll: poll[0])[POLLS // 2]
    found["poll"] = {"cpu_ms": cpu, "wall_ms": wall, "mb": len(body) / 1e6}
    for name, where in {
        "study list": "/api/studies",
        "importances": f"{path}/param_importances",
        "importances again": f"{path}/param_importances",
        "csv": f"/csv/{study_id}",
    }.items():
        cpu, wall, body = ask(app, where)
        found[name] = {"cpu_ms": cpu, "wall_ms": wall, "mb": len(body) / 1e6}
    return found


def show(when: str, found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a table of requests by way."""
    table = Table(title=f"{TRIALS} trials x {PARAMETERS} parameters, SQLite, {when}: CPU / wall ms (MB)")
    table.add_column("request")
    for name in found:
        table.add_column(name, justify="right")
    for request in next(iter(found.values())):
        cells = [one[request] for one in found.values()]
        shown = [f"{one['cpu_ms']:,.0f} / {one['wall_ms']:,.0f} ({one['mb']:.2f})" for one in cells]
        table.add_row(request, *shown)
    Console(width=100).print(table)


def main() -> None:
    """Measure, print, and write benchmarks/results/dashboard.json."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/large.db"
        storage = open_storage(url, create=True)
        study_id = fill(storage, TRIALS)
        apps: dict[str, Callable[[], Any]] = {
            "ours": lambda: dashboard_app(storage),
            "given the URL": lambda: optuna_dashboard.wsgi(url),
        }
        found["at rest"] = {name: measure(made(), study_id, TRIALS) for name, made in apps.items()}
        show("at rest", found["at rest"])
        with writing(url):
            fixed = sum(trial.state.is_finished() for trial in storage.load_trials(study_id))
            found["while a search writes"] = {name: measure(made(), study_id, fixed) for name, made in apps.items()}
        show("while a search writes", found["while a search writes"])
        storage.close()
    target = Path(__file__).parent / "results" / "dashboard.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(sys.argv[1])
    else:
        main()
