"""Searchers side by side on recorded outcomes: whose front is better after how many evaluations and sample-forwards.

`python -m benchmarks.search --workload digits --samplers front,front+racing,nsga2,nsga2+,tpe,tpe+ --seeds 3
--evaluations 100`. All have the same one-shot space and layer database. Behind a name, + gives a searcher the first
candidates that ours starts with, and +racing replays races. What a policy is worth is evaluated once and kept under
--records, as are the steps of each run: a killed benchmark goes on, and a longer one extends a shorter one. Ours is
kept by --tag: give a new one when its code has changed.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.searching.comparing import Runs as Played
from benchmarks.searching.comparing import before, document, pairs_of, rows_of
from benchmarks.searching.measures import curve
from benchmarks.searching.recorded import recorded
from benchmarks.searching.runs import Rules, Runs, Step, play
from benchmarks.searching.samplers import base_of
from benchmarks.searching.setting import Setting, set_up
from benchmarks.searching.showing import plot, show
from objectives.splits import SplitName

SAMPLERS = "front,front+racing,nsga2,nsga2+,tpe,tpe+,random,uniform,programme,spdy,spdy+,evopress,evopress+"
RECORDS = Path(".benchmarks")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Job:
    """Some seeds of one searcher, for one process."""

    workload: str
    records: Path
    split: SplitName
    shuffled: bool
    rules: Rules
    name: str
    seed: int
    evaluations: int


def files(setting: Setting, records: Path) -> tuple[Path, Path]:
    """The files of a setting's outcomes and runs."""
    stem = f"{Path(setting.workload).stem}-{setting.key}"
    return records / f"{stem}.outcomes.sqlite", records / f"{stem}.runs.sqlite"


def carry_out(job: Job, setting: Setting | None = None) -> list[Step]:
    """Play one searcher with one seed."""
    setting = setting or _setting(job.workload, job.records, job.split, job.shuffled)
    outcomes, runs = files(setting, job.records)
    since = time.perf_counter()
    with recorded(outcomes, setting.prepared.scorer) as table, contextlib.closing(Runs(runs)) as kept:
        steps = play(setting, table, kept, job.name, job.seed, job.evaluations, job.rules)
        new = table.evaluated
    if new or time.perf_counter() - since > 1:
        took = f"{time.perf_counter() - since:.1f} s, {new} policies evaluated"
        print(f"{job.workload}: {job.name}, seed {job.seed}: {len(steps)} steps, {took}", flush=True)
    return steps


@functools.cache
def _setting(workload: str, records: Path, split: SplitName, shuffled: bool) -> Setting:
    """The same for all jobs of a process."""
    return set_up(workload, records, split, shuffled=shuffled)


def carry_out_all(jobs: Sequence[Job], setting: Setting, processes: int) -> Played:
    """The steps of all jobs, by searcher and seed; the setting's layers are compressed already."""
    if processes == 1:
        done = [carry_out(job, setting) for job in jobs]
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn) as pool:
            done = list(pool.map(carry_out, jobs))
    found: dict[str, dict[int, Sequence[Step]]] = {}
    for job, steps in zip(jobs, done, strict=True):
        found.setdefault(job.name, {})[job.seed] = steps
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, print, write and draw."""
    options = _options(arguments)
    names = list(dict.fromkeys(options.samplers.split(",")))
    for name in names:
        base_of(name)
    setting = set_up(options.workload, options.records, options.split, shuffled=options.shuffle_sensitivities)
    window = options.window or setting.config.window
    rules = Rules(window, options.confidence, options.tag)
    split, shuffled = options.split, options.shuffle_sensitivities
    jobs = [
        Job(options.workload, options.records, split, shuffled, rules, name, seed, options.evaluations)
        for seed in range(options.seeds)
        for name in names
    ]
    runs = carry_out_all(jobs, setting, options.jobs)
    runs = {name: runs[name] for name in names}
    rows, pairs = rows_of(runs, setting, options.evaluations), pairs_of(runs, setting, options.evaluations)
    show(options.workload, rows, pairs)
    curves = {
        name: [curve(steps, setting, before(name, setting)) for steps in by_seed.values()]
        for name, by_seed in runs.items()
    }
    extra = "".join([f"-{split}" * (split != "validation"), "-shuffled" * shuffled])
    path = options.json or RESULTS / f"search-{Path(options.workload).stem}{extra}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    curves_document = {name: [[asdict(one) for one in own] for own in curves[name]] for name in names}
    text = json.dumps(
        {
            "workload": options.workload,
            "split": split,
            "shuffled": shuffled,
            "seeds": options.seeds,
            "evaluations": options.evaluations,
            "rules": asdict(rules),
            "samples": setting.samples,
            "before": {name: before(name, setting) for name in names},
            "boxes": {name: asdict(getattr(setting, name)) for name in ("box", "box5", "test_box", "test_box5")},
            **document(rows, pairs),
            "curves": curves_document,
        },
        indent=1,
    )
    path.write_text(text + "\n", encoding="utf-8")
    plot(f"{Path(options.workload).stem}{extra}", curves, path)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--workload", default="digits", help="digits, animals, lenet, or the path of a config")
    parser.add_argument("--samplers", default=SAMPLERS, help="names, with commas between them")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--evaluations", type=int, default=100, help="of each run")
    parser.add_argument("--split", choices=("validation", "train"), default="validation", help="what is scored on")
    parser.add_argument("--window", type=int, help="asked and not yet told candidates; the config's if not given")
    parser.add_argument("--confidence", type=float, default=0.95, help="of races")
    parser.add_argument("--shuffle-sensitivities", action="store_true", help="make the prediction wrong on purpose")
    parser.add_argument("--tag", default="", help="of our own code, whose runs are kept under it")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of outcomes, runs and layers")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="where to write the results; plots go beside it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
