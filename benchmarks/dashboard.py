"""What the dashboard's page asks for, and how long it takes to be drawn: Optuna Dashboard given a URL, and ours."""

import contextlib
import json
import os
import random
import shutil
import socket
import statistics
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

from search.dashboard_app import DashboardApp
from search.storage import End, Start, Storage, open_storage

TRIALS, PARAMETERS, POLLS = 2_000, 100, 3
DRAWINGS = {"ours": 5, "given the URL": 1}  # which takes half a minute a page
QUIET = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
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


def browser() -> str | None:
    """What draws a page, None where something is missing, which is said."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        print("first page drawn: skipped, no playwright: pip install playwright")
        return None
    if (chromium := shutil.which("chromium")) is None:
        print("first page drawn: skipped, no chromium on the path: apt-get install chromium")
    return chromium


def draw(page: Any, address: str) -> float:
    """Opens a study's page; seconds until each of its trials is a point in the first graph."""
    since = time.perf_counter()
    page.goto(address, wait_until="commit")
    graph = page.locator(".MuiCard-root").filter(has_text="Pareto Front").first
    graph.locator(".point").nth(TRIALS - 1).wait_for(timeout=300_000, state="attached")
    return time.perf_counter() - since


@contextlib.contextmanager
def served(command: list[str], port: int) -> Iterator[int]:
    """A dashboard in a process of its own, whose id this is, from when it can be asked."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # our own
    try:
        while process.poll() is None:
            with socket.socket() as asking:
                if asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def drawings(url: str, study_id: int, chromium: str, *, both: bool) -> dict[str, dict[str, dict[str, float]]]:
    """The page in a browser that is opened as soon as the dashboard answers, and in another one after that; medians."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    theirs = f"from optuna_dashboard import run_server; run_server({url!r}, '127.0.0.1', {port})"
    commands = {
        "ours": [sys.executable, "-m", "search.cli", "dashboard", "--port", str(port), "--storage", url],
        "given the URL": [sys.executable, "-c", theirs],
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    with sync_playwright() as playwright:
        for name, command in list(commands.items())[: 1 + both]:
            runs: dict[str, list[tuple[float, float]]] = {"first page drawn": [], "next page drawn": []}
            for _ in range(DRAWINGS[name]):
                with served(command, port) as pid:
                    for run in runs.values():
                        opened = playwright.chromium.launch(executable_path=chromium, args=QUIET)
                        page, before = opened.new_page(), cpu_s(pid)
                        wall = draw(page, f"http://127.0.0.1:{port}/dashboard/studies/{study_id}")
                        run.append((wall, cpu_s(pid) - before))
                        opened.close()
            found[name] = {
                when: {
                    "wall_s": statistics.median(wall for wall, _ in run),
                    "server_cpu_s": statistics.median(cpu for _, cpu in run),
                }
                for when, run in runs.items()
            }
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, with Linux alone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show_drawings(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a table of drawn pages by way."""
    title = f"in Chromium, while a search writes, load {os.getloadavg()[0]:.1f}: s (of CPU of the server)"
    print_table(title, "page", found, lambda one: f"{one['wall_s']:.1f} ({one['server_cpu_s']:.1f})")


def show(when: str, found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a table of requests by way."""
    title = f"{TRIALS} trials x {PARAMETERS} parameters, SQLite, {when}: CPU / wall ms (MB)"
    print_table(title, "request", found, lambda one: f"{one['cpu_ms']:,.0f} / {one['wall_ms']:,.0f} ({one['mb']:.2f})")


def print_table(
    title: str, what: str, found: dict[str, dict[str, dict[str, float]]], shown: Callable[[dict[str, float]], str]
) -> None:
    """Print what was found: a column for each way, and a row for each thing that was measured on it."""
    table = Table(title=title)
    table.add_column(what)
    for name in found:
        table.add_column(name, justify="right")
    for row in next(iter(found.values())):
        table.add_row(row, *(shown(one[row]) for one in found.values()))
    Console(width=100).print(table)


def main_drawn() -> None:
    """Measure and print how long our page takes to be drawn, no more."""
    if (chromium := browser()) is None:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/large.db"
        storage = open_storage(url, create=True)
        study_id = fill(storage, TRIALS)
        storage.close()
        with writing(url):
            show_drawings(drawings(url, study_id, chromium, both=False))


def main() -> None:
    """Measure, print, and write benchmarks/results/dashboard.json."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/large.db"
        storage = open_storage(url, create=True)
        study_id = fill(storage, TRIALS)
        apps: dict[str, Callable[[], Any]] = {
            "ours": lambda: DashboardApp(storage),
            "given the URL": lambda: optuna_dashboard.wsgi(url),
        }
        found["at rest"] = {name: measure(made(), study_id, TRIALS) for name, made in apps.items()}
        show("at rest", found["at rest"])
        with writing(url):
            fixed = sum(trial.state.is_finished() for trial in storage.load_trials(study_id))
            found["while a search writes"] = {name: measure(made(), study_id, fixed) for name, made in apps.items()}
        show("while a search writes", found["while a search writes"])
        storage.close()
        if (chromium := browser()) is not None:
            with writing(url):
                found["in a browser"] = drawings(url, study_id, chromium, both=True)
            show_drawings(found["in a browser"])
    target = Path(__file__).parent / "results" / "dashboard.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--drawn"]:
        main_drawn()
    elif len(sys.argv) > 1:
        write(sys.argv[1])
    else:
        main()
