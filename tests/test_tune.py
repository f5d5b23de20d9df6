"""Ray Tune as the engine: the study of the pool, whatever happens, and in a Tuner of the user's own."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.tune import Callback, Tuner
from ray.tune.schedulers import AsyncHyperBandScheduler

from search.config import Config
from search.config_sections import BudgetConfig, DistillationConfig, SpaceConfig
from search.loop import launch
from search.pool.losses import loss_of, starts_with_an_error
from search.tune import TuneSearch, launch_in_tune, running
from search.tune.losses import written_error
from spaces.errors import ConfigError, StudyError
from tests import processes
from tests.searches import STUDY, TRIALS, attrs_of, outcomes_of, rows_of, tiny

slow = pytest.mark.slow
ROOT = Path(__file__).parents[1]
TIMEOUT = 300.0
NO_ROOM = "failed 3 times, the last time: the metric failed on the validation split: out of memory: so much"


def in_tune(folder: Path, trials: int = TRIALS, **changed: Any) -> Config:
    return tiny(folder, trials, **{"workers": 2, "engine": "tune", **changed})


def same_study(one: Path, other: Path) -> bool:
    """All that is stored, except the settings that may differ between launches."""
    attrs = [{k: v for k, v in attrs_of(folder).items() if k not in ("cache", "config")} for folder in (one, other)]
    return attrs[0] == attrs[1] and rows_of(one) == rows_of(other) and outcomes_of(one) == outcomes_of(other)


def finished_in(folder: Path) -> int:
    """How many trials are told, 0 where the store is not there yet."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'tiny.db'}?mode=ro", uri=True)) as file:
            return int(file.execute("select count(*) from trials where state != 'RUNNING'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def fitted(search: TuneSearch) -> None:
    """Have a Tuner as people write it run the search; its files stay."""
    Tuner(search.trainable, tune_config=search.tune_config(), run_config=search.run_config()).fit()


def reported(folder: Path) -> list[dict[str, Any]]:
    """What Tune's own logger wrote, by candidate."""
    files = (folder / "cache" / "tune" / STUDY).glob("*/result.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda one: one["config"]["trial"])


class TestStudy:
    def test_it_is_that_of_the_pool(
        self, local_ray: None, tmp_path: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        result = launch(in_tune(tmp_path))
        assert not result.interrupted
        assert same_study(tmp_path, undisturbed)
        out, err = capfd.readouterr()
        assert out == ""
        assert not re.search(r"tune|warn|trial\w*_", err.lower().replace(str(tmp_path).lower(), ""))

    @slow
    def test_its_files_are_private_and_gone_at_the_end(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So nobody else writes what Tune reads there, and no launch leaves a folder for each candidate."""
        seen: list[tuple[Path, int]] = []
        fit = running._fit

        def look(search: TuneSearch) -> None:
            seen.append((search.folder, search.folder.stat().st_mode & 0o777))
            fit(search)

        monkeypatch.setattr(running, "_fit", look)
        launch(in_tune(tmp_path, 3))
        ((folder, mode),) = seen
        assert mode == 0o700
        assert not folder.exists()
        assert not list(tmp_path.rglob("tune*"))

    @slow
    def test_loggers_see_candidates_and_scores(self, local_ray: None, tmp_path: Path) -> None:
        launch_in_tune(in_tune(tmp_path, 12), fitted)
        rows, lines = rows_of(tmp_path), reported(tmp_path)
        assert [one["config"]["trial"] for one in lines] == [row.number for row in rows if "repeat_of" not in row.attrs]
        for one in lines:
            row = rows[one["config"]["trial"]]
            assert (one["accuracy"], one["bytes"], one["rung"]) == (*row.values, row.attrs["rung"])
            assert {**row.params, "trial": row.number} == one["config"]
        assert len({one["pid"] for one in lines}) == 2
        assert os.getpid() not in {one["pid"] for one in lines}

    @slow
    def test_engines_may_change_between_launches(self, local_ray: None, tmp_path: Path, undisturbed: Path) -> None:
        launch(tiny(tmp_path, 7))
        launch(in_tune(tmp_path, 15))
        assert rows_of(tmp_path) == rows_of(undisturbed)[:15]
        launch(tiny(tmp_path, 19))
        launch(in_tune(tmp_path, window=4))
        assert rows_of(tmp_path) == rows_of(undisturbed)

    @slow
    def test_repeats_are_told_without_a_trial_of_tune(self, local_ray: None, tmp_path: Path) -> None:
        few: dict[str, Any] = {
            "space": SpaceConfig(bits=(2, 4), ratios=(0.0,)),  # 8 policies, when nothing is drawn from a range
            "distillation": DistillationConfig(steps=(), temperature=(2.0, 2.0), alpha=(0.9, 0.9)),
        }
        for name in ("here", "tune"):
            (tmp_path / name).mkdir()
        launch(tiny(tmp_path / "here", **few))
        launch_in_tune(in_tune(tmp_path / "tune", **few), fitted)
        assert same_study(tmp_path / "here", tmp_path / "tune")
        assert len(reported(tmp_path / "tune")) <= 8

    @slow
    def test_workers_are_kept_where_each_waits_for_the_slowest(self, local_ray: None, tmp_path: Path) -> None:
        launch_in_tune(in_tune(tmp_path, 12, window=2), fitted)
        assert len({one["pid"] for one in reported(tmp_path)}) == 2

    @slow
    def test_a_study_that_lacks_only_test_scores_gets_them(self, local_ray: None, tmp_path: Path) -> None:
        launch(in_tune(tmp_path, 6))
        assert launch(in_tune(tmp_path, 3)).interrupted is False
        assert len(rows_of(tmp_path)) == 6


class TestFailures:
    @slow
    def test_a_candidate_that_raises_fails_and_the_search_goes_on(self, local_ray: None, tmp_path: Path) -> None:
        for name in ("here", "tune"):
            (tmp_path / name).mkdir()
        launch(tiny(tmp_path / "here", 16, workload="tests.tiny:picky"))
        launch(in_tune(tmp_path / "tune", 16, workload="tests.tiny:picky"))
        assert same_study(tmp_path / "here", tmp_path / "tune")
        assert "FAIL" in {row.state for row in rows_of(tmp_path / "tune")}

    @slow
    def test_a_candidate_that_kills_its_worker_three_times_fails(self, local_ray: None, tmp_path: Path) -> None:
        for name in ("pool", "tune"):
            (tmp_path / name).mkdir()
            launch(tiny(tmp_path / name, 10, workload="tests.tiny:deadly", workers=2, engine=name))
        pool, tune = rows_of(tmp_path / "pool"), rows_of(tmp_path / "tune")
        assert [(row.state, row.values, row.rungs) for row in pool] == [(r.state, r.values, r.rungs) for r in tune]
        errors = {row.attrs["error"] for rows in (pool, tune) for row in rows if row.state == "FAIL"}
        died = "its process crashed or was killed, for example for want of memory"
        assert errors == {f"it killed its worker 3 times, the last time: {died}"}

    @slow
    def test_what_a_worker_had_no_room_for_is_tried_again_after_pauses(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.pool.retrying.PAUSES", (2.0, 4.0))
        for name in ("pool", "tune"):
            (tmp_path / name).mkdir()
        launch(tiny(tmp_path / "pool", 10, workload="tests.tiny:hungry", workers=2))
        launch_in_tune(in_tune(tmp_path / "tune", 10, workload="tests.tiny:hungry"), fitted)
        assert same_study(tmp_path / "pool", tmp_path / "tune")
        failed = [row for row in rows_of(tmp_path / "tune") if row.state == "FAIL" and "repeat_of" not in row.attrs]
        assert failed
        for row in failed:
            assert row.attrs["error"] == NO_ROOM
            tries = [one for one in reported(tmp_path / "tune") if one["config"]["trial"] == row.number]
            first, second, third = sorted(one["timestamp"] for one in tries)  # whole seconds
            assert second - first >= 2
            assert third - second >= 4

    @slow
    def test_a_workload_that_differs_between_processes_stops_the_search(self, local_ray: None, tmp_path: Path) -> None:
        (tmp_path / "shuffled.py").write_text(
            "import os\nfrom tests import tiny\n"
            "def workload():\n  made = tiny.workload()\n  made.model.head.bias.data[0] = os.getpid()\n  return made\n"
        )
        with pytest.raises(StudyError, match="not the same in every process"):
            launch(in_tune(tmp_path, workload=f"{tmp_path}/shuffled.py:workload"))


class TestWrittenErrors:
    """Ray's errors as Tune writes them down are classed as they were when they were raised."""

    @pytest.mark.parametrize(
        "error",
        [
            ActorUnavailableError("lost", None),
            ActorDiedError(),
            RayActorError(),
            RayActorError(error_msg="The actor died because its node has died."),
            RayActorError(error_msg="The actor died unexpectedly.\nWorker exit detail: ... exit code 77"),
            RayActorError(error_msg="The actor died because of an error raised in its creation task, \x1b[36mray::x()"),
            OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."),  # type: ignore[no-untyped-call]
        ],
        ids=str,
    )
    def test_losses(self, error: Exception) -> None:
        text = "".join(
            f"Failure # {n} (occurred at 2026-11-22_10-00-0{n})\n{said}\n" for n, said in ((1, "?"), (2, error))
        )
        found = written_error(text)
        assert loss_of(found) == loss_of(error)
        assert starts_with_an_error(found) is ("creation task" in str(error))

    def test_what_a_worker_raised_is_no_loss(self) -> None:
        said = "\x1b[36mray::slimfront.train()\x1b[39m (pid=7, ip=10.0.0.1)\nKeyError: 'The actor died'"
        found = written_error(f"Failure # 1 (occurred at 2026-11-22_10-00-00)\n{said}\n")
        assert loss_of(found) is None
        assert str(found) == said

    def test_nothing_written_is_a_lost_worker(self) -> None:
        assert loss_of(written_error("")) == loss_of(RayActorError())


class TestRefusals:
    def test_tune_needs_workers(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"workers: given 0, with engine: tune, allowed 1 or more"):
            launch(tiny(tmp_path, engine="tune"))
        assert not list(tmp_path.iterdir())

    def test_tune_does_not_go_through_rays_client(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"ray.address: given ray://head:10001, with engine: tune, allowed auto"):
            launch(in_tune(tmp_path, ray={"address": "ray://head:10001"}))
        assert not list(tmp_path.iterdir())

    def test_without_the_extra_it_says_what_to_install(self, tmp_path: Path) -> None:
        """As where pyarrow is missing."""
        script = (
            "import sys; sys.modules['pyarrow'] = None\n"
            "from pathlib import Path\nfrom search.loop import launch\nfrom tests.searches import tiny\n"
            f"launch(tiny(Path({str(tmp_path)!r}), workers=2, engine='tune'))\n"
        )
        out, err = processes.start(script).communicate(timeout=TIMEOUT)
        assert "ConfigError: engine: given tune, which needs Ray Tune: pip install 'slimfront[tune]'" in err, out
        assert not list(tmp_path.iterdir())

    def test_other_launches_do_not_import_tune(self, tmp_path: Path) -> None:
        script = (
            "import sys\nfrom pathlib import Path\nfrom search.loop import launch\nfrom tests.searches import tiny\n"
            f"launch(tiny(Path({str(tmp_path)!r}), 2))\n"
            "assert 'search.pool.pool' in sys.modules and 'ray' in sys.modules\n"
            "names = ('ray.tune', 'ray.air', 'pyarrow', 'search.tune')\n"
            "print([name for name in sys.modules if name.startswith(names)])"
        )
        out, err = processes.start(script).communicate(timeout=TIMEOUT)
        assert out.strip() == "[]", err


class Counted(Callback):
    """A logger of the user's."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.seen[trial.config["trial"]] = trial.last_result["bytes"]


class TestTuner:
    """People who live in Tune."""

    @slow
    def test_a_scheduler_and_a_logger_of_theirs(self, local_ray: None, tmp_path: Path, undisturbed: Path) -> None:
        counted, fitted = Counted(), []

        def fit(search: TuneSearch) -> None:
            scheduler = AsyncHyperBandScheduler(metric="accuracy", mode="max")
            tuner = Tuner(
                search.trainable,
                tune_config=search.tune_config(scheduler=scheduler),
                run_config=search.run_config(name="mine", callbacks=[counted]),
            )
            fitted.append(tuner.fit())

        result = launch_in_tune(tiny(tmp_path, 12, workers=2), fit)
        rows = rows_of(tmp_path)
        assert not result.interrupted
        assert rows == rows_of(undisturbed)[:12]
        assert counted.seen == {row.number: row.values[1] for row in rows if "repeat_of" not in row.attrs}
        best = fitted[0].get_best_result("accuracy", "max").metrics
        assert best is not None
        assert best["accuracy"] == max(row.values[0] for row in rows)
        assert (tmp_path / "cache" / "tune" / "mine").is_dir()

    @slow
    def test_a_tuner_that_ends_early_leaves_a_beginning(
        self, local_ray: None, tmp_path: Path, undisturbed: Path
    ) -> None:
        def fit(search: TuneSearch) -> None:
            settings = search.tune_config(num_samples=5)
            Tuner(search.trainable, tune_config=settings, run_config=search.run_config()).fit()

        result = launch_in_tune(tiny(tmp_path, workers=2), fit)
        assert result.interrupted
        told = [row for row in rows_of(tmp_path) if row.state != "RUNNING"]
        assert told == rows_of(undisturbed)[: len(told)]
        assert len(told) == 5
        launch(tiny(tmp_path))
        assert rows_of(tmp_path) == rows_of(undisturbed)

    @slow
    def test_the_example_of_the_docs(
        self, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = (ROOT / "docs" / "how-it-works.md").read_text()
        (example,) = re.findall(r"```python\n(from ray\.tune import .*?)```", text, re.DOTALL)
        settings = tiny(tmp_path, 6, workers=2).model_dump(mode="json")
        (tmp_path / "digits.yaml").write_text(yaml.safe_dump(settings))
        monkeypatch.chdir(tmp_path)
        exec(compile(example, "how-it-works.md", "exec"), {"__name__": "example"})
        assert len(rows_of(tmp_path)) == 6
        assert len(re.findall(r"^\d 0\.\d+ \d+$", capsys.readouterr().out, re.MULTILINE)) == 6


class TestEnd:
    @slow
    def test_time_that_is_up_leaves_a_beginning(self, local_ray: None, tmp_path: Path, undisturbed: Path) -> None:
        result = launch(in_tune(tmp_path, budget=BudgetConfig(trials=TRIALS, timeout=0.05)))
        assert not result.interrupted
        rows = rows_of(tmp_path)
        told = [row for row in rows if row.state != "RUNNING"]
        assert len(told) < TRIALS
        assert told == rows_of(undisturbed)[: len(told)]
        launch(tiny(tmp_path))
        assert rows_of(tmp_path) == rows_of(undisturbed)

    @slow
    @pytest.mark.parametrize("grace", [30.0, 0.0])
    def test_ctrl_c_ends_it_politely_and_it_can_be_resumed(
        self, tmp_path: Path, undisturbed: Path, grace: float
    ) -> None:
        budget = BudgetConfig(trials=TRIALS, grace=grace)
        settings = in_tune(tmp_path, budget=budget).model_dump(mode="json", exclude={"workload"})
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**settings, "workload": "tests.tiny:slow"}))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "search.cli", "launch", "tiny.yaml"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            while finished_in(tmp_path) < 2 and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGINT)
            said = process.communicate()[0]
        assert process.returncode == 130, said
        assert "stopping" in said
        assert "Traceback" not in said
        states = [row.state for row in rows_of(tmp_path)]
        assert states.count("RUNNING") > 0
        assert states == sorted(states)  # complete ones first
        launch(tiny(tmp_path, workload="tests.tiny:slow"))
        assert [row.number for row in rows_of(tmp_path)] == list(range(TRIALS))
        assert [row.values for row in rows_of(tmp_path)] == [row.values for row in rows_of(undisturbed)]


@slow
def test_the_quickstart(local_ray: None, tmp_path: Path) -> None:
    """As the README launches it, for the first 40 trials."""
    from search.config import load_config

    for engine in ("pool", "tune"):
        (tmp_path / engine).mkdir()
        overrides = [f"engine={engine}", "study=tiny", f"cache={tmp_path / engine / 'cache'}", "budget={trials: 40}"]
        url = f"sqlite:///{tmp_path / engine}/tiny.db"
        launch(load_config(ROOT / "configs" / "quickstart.yaml", overrides, workers=2, storage=url))
    assert same_study(tmp_path / "pool", tmp_path / "tune")
