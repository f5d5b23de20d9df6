"""Searches with distillation rungs beside others, at equal CPU seconds of scoring: what is each of their parts worth?

`python -m benchmarks.rungs --workload digits --seeds 3 --trials 60`. These are real searches in this process. The one
with rungs has so many trials; each other one goes on until its scoring has taken as many seconds as that one's, however
many trials that takes. Fronts are compared at that time and at half of it. Seconds are CPU seconds of scoring, in the
order in which trials were told; preparation (the layer database, sensitivities) is the same for all and left out.
Searches are kept under --records: a killed benchmark goes on. Give a new --tag when the code has changed.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import accumulate
from math import ceil, inf, isinf
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from benchmarks.searching.equal_seconds import Run, Told, dominance, fronts, members_of, within, worth
from benchmarks.searching.measures import saved_bytes
from benchmarks.searching.setting import CONFIGS
from compress.files import artifact_path
from objectives.judging import FixedJudge
from search.candidates import prepare
from search.config import Config, load_config
from search.describe import describe
from search.front import DEPLOYED_DROP, front
from search.goals import Deadline
from search.lease import Lease
from search.loop import search as search_on
from search.storage import Storage, open_storage
from search.study import open_study
from search.tasks import LocalPool, Result

RUNGS, ONE_SHOT = "rungs", "one-shot"
ARMS: Mapping[str, Sequence[str]] = {
    RUNGS: (),
    ONE_SHOT: ("distillation.steps=[]", "distillation.student_steps=0"),
    "distil all": ("distillation.share=1.0", "racing=null"),
    "T = 1": ("distillation.temperature=[1, 1]",),
    "T = 4": ("distillation.temperature=[4, 4]",),
    "T = 1, alpha = 1": ("distillation.temperature=[1, 1]", "distillation.alpha=[1, 1]"),
}
TIMES = {"half": 0.5, "end": 1.0}
MEASURES = ("hypervolume", "hypervolume5", "test_hypervolume", "test_hypervolume5")
MOST = 20  # times the trials of the search with rungs that another one may need for the same seconds
FEWEST = 20  # trials before it is seen how long one takes
EVERY = 5  # trials between two points of a curve
RECORDS, RESULTS = Path(".benchmarks"), Path(__file__).parent / "results"
TESTED, PREPARATION = "benchmark_tested", "benchmark_preparation"  # study attributes of ours


Runs = Mapping[str, Sequence[Run]]  # by arm, for each seed


class CpuPool(LocalPool):
    """Scores in this process, and says how many CPU seconds that took, which other processes change less."""

    def collect(self, timeout: float) -> list[Result]:
        """The result of the oldest task."""
        since = time.process_time()
        results = super().collect(timeout)
        return [replace(result, seconds=time.process_time() - since) for result in results]


def search(config: Config, seconds: float) -> Run:
    """Search until the config's trials are told, or until scoring has taken so many CPU seconds.

    Args:
        config: of a study of ours; what its store holds already is kept.
        seconds: infinite for all trials.
    """
    url, most = config.resolved_storage(), config.budget.trials
    with contextlib.closing(open_storage(url, create=True)) as storage:
        study_id, _ = open_study(storage, config.study)
        told = _told(storage, study_id)
        tested = storage.get_study_user_attrs(study_id).get(TESTED, {})
        if tested.get("trials") != len(told) or not _enough(told, most, seconds):
            _go_on(config, storage, study_id, seconds)
        attrs = storage.get_study_user_attrs(study_id)
        known = attrs[TESTED]["accuracies"]
        told = [replace(one, test=known.get(str(one.trial))) for one in _told(storage, study_id)]
    found = front(config.study, url)
    test = found.float.test_accuracy
    near = replace(found.reference5, worst=test - DEPLOYED_DROP, best=test)
    return Run(tuple(told), attrs[PREPARATION], found.reference, found.reference5, near)


def _enough(told: Sequence[Told], most: int, seconds: float) -> bool:
    return len(told) >= most or sum(one.seconds for one in told) >= seconds


def _go_on(config: Config, storage: Storage, study_id: int, seconds: float) -> None:
    """Search on as `search.loop.launch` does, with our pool; then score all that was on a front on the test split."""
    since, fresh = time.process_time(), not storage.get_n_trials(study_id)
    cache, most = config.cache_folder(), config.budget.trials
    cache.mkdir(parents=True, exist_ok=True)
    if fresh:  # what other searches have trained would save this one seconds
        shutil.rmtree(cache / "students" / "kept", ignore_errors=True)
    prepared = prepare(config)
    preparation = time.process_time() - since
    warm = FixedJudge(len(config.distillation.steps), kept=False)
    prepared.scorer.score(prepared.first[0][1], warm)  # what a process does once, such as imports, is no search's own
    with Lease(storage, study_id, takeover=False) as lease:
        describe(storage, study_id, config, prepared, lease)
        if fresh:
            storage.set_study_attrs(study_id, {PREPARATION: preparation})
        while not _enough(told := _told(storage, study_id), most, seconds):
            wanted = int(min(most, _next_stop(told, seconds)))
            budget = config.budget.model_copy(update={"trials": wanted})
            again, deadline = config.model_copy(update={"budget": budget}), Deadline(None, None, datetime.now(UTC))
            pool = CpuPool(prepared.scorer, cache)
            if search_on(again, prepared, storage, study_id, lease, deadline, pool):
                raise KeyboardInterrupt
    members = {one.trial: one for at in range(len(told)) for one in members_of(told[: at + 1])}
    accuracies = {
        str(one.trial): prepared.scorer.score_file(artifact_path(cache, one.artifact), "test").value
        for one in members.values()
        if one.artifact
    }
    storage.set_study_attrs(study_id, {TESTED: {"trials": len(told), "accuracies": accuracies}})


def _next_stop(told: Sequence[Told], seconds: float) -> float:
    """So many trials should take these seconds; at first, and where that is a long way, fewer."""
    if isinf(seconds) or not told:
        return seconds if isinf(seconds) else FEWEST
    spent = sum(one.seconds for one in told)
    return len(told) + min(len(told), max(EVERY, ceil((seconds - spent) * len(told) / max(spent, 1e-9))))


def _told(storage: Storage, study_id: int) -> list[Told]:
    """The told trials of a study, in order."""
    found = []
    for trial in storage.load_trials(study_id):
        if not trial.state.is_finished():
            break
        attrs = trial.user_attrs
        complete = trial.state is TrialState.COMPLETE
        found.append(
            Told(
                trial.number,
                int(trial.values[1]) if complete else 0,
                trial.values[0] if complete and not attrs.get("stopped") else None,
                attrs["rung"] if complete else 0,
                0.0 if "repeat_of" in attrs else attrs["seconds"],
                attrs["artifact"] if complete else None,
            )
        )
    return found


def compared(runs: Runs) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Each search when the quickest one of its seed has finished and at half of it, by time and arm, for each seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {time: {arm: [] for arm in runs} for time in TIMES}
    for side_by_side in zip(*runs.values(), strict=True):
        end = min(run.seconds for run in side_by_side)
        ours = dict(zip(runs, side_by_side, strict=True))[RUNGS]
        for when, share in TIMES.items():
            mine = fronts(within(ours.told, end * share))
            for arm, run in zip(runs, side_by_side, strict=True):
                told = within(run.told, end * share)
                other = fronts(told)
                found[when][arm].append(
                    {
                        "seconds": end * share,
                        "trials": len(told),
                        "trained": sum(one.rung > 0 for one in told),
                        **asdict(worth(run, end * share)),
                        "dominated": asdict(dominance(mine.validation, other.validation)),
                        "test_dominated": asdict(dominance(mine.test, other.test)),
                        "saved": saved_bytes(mine.validation, other.validation, run.box5.worst, run.box5.best),
                        "test_saved": saved_bytes(mine.test, other.test, run.test_box5.worst, run.test_box5.best),
                    }
                )
    return found


def curve(run: Run) -> list[dict[str, Any]]:
    """What the front is worth after how many seconds."""
    spent = list(accumulate(one.seconds for one in run.told))
    every = sorted({*range(EVERY - 1, len(spent), EVERY), len(spent) - 1})
    return [{"trials": at + 1, "seconds": spent[at], **asdict(worth(run, spent[at]))} for at in every]


def show(workload: str, runs: Runs) -> None:
    """Print a table for each time, and how much preparation took.

    "dominated" is the share of a search's points that the front with rungs dominates or equals, "short" and "extra" the
    most accuracy it lacks at equal bytes and bytes it needs at equal accuracy, of all seeds: "smaller" and "higher"
    where the other one has a point that is smaller or more accurate than all of it.
    """
    for when, by_arm in compared(runs).items():
        mine = by_arm[RUNGS]
        spent = statistics.fmean(one["seconds"] for one in mine)
        title = f"{workload}, {when}: {spent:.1f} CPU seconds of scoring, {len(mine)} seeds; behind a mean its "
        table = Table(title=f"{title}deviation and on how many seeds rungs are ahead-behind", title_justify="left")
        headings = ("search", "trials", "trained", "hv", "hv5", "hv test", "hv5 test", "dominated", "short", "extra")
        for heading in (*headings, "bytes saved", "on test"):
            table.add_column(heading, justify="left" if heading == "search" else "right")
        for arm, own in by_arm.items():
            counts = [f"{statistics.fmean(one[name] for one in own):.0f}" for name in ("trials", "trained")]
            cells = [_cell(mine, own, name) for name in MEASURES]
            table.add_row(arm, *counts, *cells, *([] if arm == RUNGS else _beside(own)))
        Console(width=190).print(table)
    print("CPU seconds of preparation:", {arm: [round(run.preparation, 1) for run in own] for arm, own in runs.items()})


def _beside(own: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the front of the search with rungs stands to that of another one, over seeds."""
    found = [one["dominated"] for one in own]
    share = statistics.fmean(one["share"] for one in found)
    short, extra = ([one[name] for one in found] for name in ("shortfall", "extra"))
    saved = [[one[name] for one in own if one[name] is not None] for name in ("saved", "test_saved")]
    return [
        f"{share:.0%}",
        "smaller" if None in short else f"{max(short):.4f}",
        "higher" if None in extra else f"{max(extra):.1%}",
        *(f"{statistics.fmean(each):+.1%}" if each else "" for each in saved),
    ]


def _cell(mine: Sequence[Mapping[str, float]], own: Sequence[Mapping[str, float]], name: str) -> str:
    values = [one[name] for one in own]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    text = f"{statistics.fmean(values):.4f} ± {spread:.4f}"
    if own is mine:
        return text
    ahead = sum(one[name] > value + 1e-12 for one, value in zip(mine, values, strict=True))
    behind = sum(one[name] < value - 1e-12 for one, value in zip(mine, values, strict=True))
    return f"{text} {ahead}-{behind}"


def play(workload: str, seed: int, trials: int, records: Path, tag: str) -> dict[str, Run]:
    """The searches of one seed: the one with rungs, then each other one for the same seconds."""
    found: dict[str, Run] = {}
    stem = f"rungs-{Path(workload).stem}{tag}"
    records.mkdir(parents=True, exist_ok=True)
    for number, (arm, changes) in enumerate(ARMS.items()):
        overrides = [
            "sampler.name=front",
            "sampler.options={}",
            "workers=0",
            f"study={stem}-{number}-{seed}",
            f"storage={json.dumps('sqlite:///' + str(records / stem) + '.sqlite')}",
            f"cache={json.dumps(str(records / 'cache'))}",
            f"budget.trials={trials if arm == RUNGS else trials * MOST}",
            *changes,
        ]
        config = load_config(Path(CONFIGS.get(workload, workload)), overrides, seed=seed)
        found[arm] = search(config, inf if arm == RUNGS else found[RUNGS].seconds)
        run = found[arm]
        took = f"{len(run.told)} trials, {run.seconds:.1f} CPU s of scoring"
        print(f"{workload}, seed {seed}: {arm}: {took}, {run.preparation:.1f} of preparation", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rungs", description=__doc__)
    parser.add_argument("--workload", default="digits", help="digits, animals, lenet, or the path of a config")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--trials", type=int, default=60, help="of the search with rungs")
    parser.add_argument("--tag", default="", help="of our own code, whose searches are kept under it")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of searches and layers")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    name, records = Path(options.workload).stem, options.records.absolute()
    by_seed = [play(options.workload, seed, options.trials, records, options.tag) for seed in range(options.seeds)]
    runs = {arm: [own[arm] for own in by_seed] for arm in ARMS}
    show(name, runs)
    document = {
        "workload": options.workload,
        "trials": options.trials,
        "arms": ARMS,
        "compared": compared(runs),
        "preparation": {arm: [run.preparation for run in own] for arm, own in runs.items()},
        "curves": {arm: [curve(run) for run in own] for arm, own in runs.items()},
    }
    path = options.json or RESULTS / f"rungs-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
