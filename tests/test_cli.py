"""The command line: a project from its first file to a verified model, and how each command ends."""

import contextlib
import importlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main

from search.cache import cache_of, default_cache
from search.cli import app
from search.front import front
from search.status import status
from spaces.policy import read_policy
from tests.commands import Ended, refused, run, start
from tests.studies import write_made_up

ROOT = Path(__file__).parent.parent
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SECRET = "s3cret"


@dataclass(frozen=True)
class Demo:
    """What `slimfront new demo` wrote, searched by `slimfront launch`."""

    folder: Path
    storage: str
    launched: Ended


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    storage = f"sqlite:///{folder}/demo.db"
    with contextlib.chdir(folder):
        made = run("new", "demo")
        assert (made.code, made.err) == (0, "")
        assert made.out.splitlines()[-1] == "next: slimfront launch demo.yaml"
        changes = ("--set", "distillation.steps=[3]", "--set", f"cache={folder / 'cache'}")
        launched = run("launch", "demo.yaml", "--workers", "0", "--trials", "8", "--storage", storage, *changes)
    assert launched.code == 0, launched.err
    return Demo(folder, storage, launched)


@pytest.fixture
def made_up(tmp_path: Path) -> str:
    """The URL of a store with one study, made-up."""
    return write_made_up(tmp_path)


class TestFromNewToVerify:
    def test_launch_shows_the_front_and_the_uniform_policies(self, demo: Demo) -> None:
        assert "front of demo" in demo.launched.out
        assert "uniform polic" in demo.launched.out

    def test_what_launch_says_to_type_next_works(
        self, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SLIMFRONT_CACHE")  # the study says where its files are
        monkeypatch.chdir(demo.folder)
        _, _, after = demo.launched.out.partition("next:\n")
        commands = [shlex.split(line)[1:] for line in after.splitlines()]
        assert [words[0] for words in commands] == ["front", "export", "apply", "verify", "dashboard"]
        for words in commands[:-1]:
            ended = run(*words)
            assert ended.code == 0, (words, ended)
        assert (demo.folder / "front.png").read_bytes().startswith(b"\x89PNG")

    def test_the_file_is_as_long_as_was_scored(
        self, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SLIMFRONT_CACHE")
        monkeypatch.chdir(tmp_path)  # another folder than that of the search
        store = ("--storage", demo.storage)
        assert run("export", "demo", "--knee", "-o", "p.json", *store).code == 0
        assert run("apply", "p.json", "-o", "m.safetensors", *store).code == 0
        verified = run("verify", "m.safetensors", "p.json", "--workload", f"{demo.folder}/demo.py:workload")
        assert (verified.code, verified.err) == (0, "")
        assert verified.out.splitlines()[-1] == "verified: the file is what the policy says"
        found = front("demo", demo.storage)
        policy = read_policy(tmp_path / "p.json")
        assert policy.score.bytes == (tmp_path / "m.safetensors").stat().st_size
        assert policy.score.bytes in [point.bytes for point in found.points]

    def test_a_file_that_is_another_is_not_verified(
        self, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store, entry = ("--storage", demo.storage), f"{demo.folder}/demo.py:workload"
        exported = run("export", "--all", "-o", "members", *store)
        assert exported.code == 0, exported
        points = front("demo", demo.storage).points
        files = [f"members/demo-{point.trial}.json" for point in points]
        assert sorted(Path("members").iterdir()) == sorted(Path(file) for file in files)
        assert run("apply", files[0], "-o", "m.safetensors", "--cache", str(demo.folder / "cache")).code == 0
        ended = run("verify", "m.safetensors", files[-1], "--workload", entry, "--json")
        assert ended.code == 1
        assert json.loads(ended.out)["ok"] is False

    def test_retraining_gives_the_same_file_on_this_machine(
        self, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        entry = f"{demo.folder}/demo.py:workload"
        assert run("export", "--knee", "--storage", demo.storage).code == 0
        ended = run("apply", "policy.json", "-o", "m.safetensors", "--retrain", "--workload", entry)
        assert ended.code == 0, ended
        assert "hash: that of the policy" in ended.out

    def test_status_counts_and_names_the_best(self, demo: Demo) -> None:
        found = json.loads(run("status", "--json", "--storage", demo.storage).out)
        assert found["states"] == {"COMPLETE": 8}
        assert (found["trials"], found["driver"]) == (8, None)
        complete = front("demo", demo.storage).complete
        for best in found["best"]:
            fitting = [point.accuracy for point in complete if point.bytes <= best["limit"]]
            assert best["accuracy"] == max(fitting, default=None)

    def test_explain_says_why_of_a_trial_and_of_its_policy(
        self, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = ("--storage", demo.storage)
        found = json.loads(run("explain", "demo", "--json", *store).out)
        assert [len(site["losses"]) for site in found["sites"]] == [4] * 4
        assert all(site["saved"] > 0 for site in found["sites"])
        assert found["forwards"] > 0
        assert run("export", "demo", *store).code == 0  # the knee, too
        assert json.loads(run("explain", "policy.json", "--json", *store).out) == found
        shown = run("explain", "demo", "--plot", "sites.html", *store)
        assert (shown.code, shown.err) == (0, "wrote sites.html\n")
        assert (tmp_path / "sites.html").stat().st_size > 0

    def test_inspect_counts_what_the_model_has(self, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(demo.folder)
        before = sorted(demo.folder.rglob("*"))
        seen = json.loads(run("inspect", "demo.yaml", "--json").out)
        assert [site["shape"] for site in seen["sites"]] == [[16, 1, 3, 3], [32, 16, 3, 3], [64, 512], [10, 64]]
        assert [site["weights"] for site in seen["sites"]] == [144, 4608, 32768, 640]
        assert seen["float_bytes"] == front("demo", demo.storage).float.bytes
        assert seen["log10_policies"] == pytest.approx(4 * math.log10(49))  # 7 widths x 7 ratios at 4 sites
        assert sorted(demo.folder.rglob("*")) == before

    def test_launching_again_changes_nothing(self, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(demo.folder)
        before = front("demo", demo.storage)
        changes = ("--set", "distillation.steps=[3]", "--set", f"cache={demo.folder / 'cache'}")
        ended = run("launch", "demo.yaml", "--workers", "0", "--trials", "8", "--storage", demo.storage, *changes)
        assert ended.code == 0, ended
        assert front("demo", demo.storage) == before

    def test_another_search_under_the_same_name_is_refused(self, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(demo.folder)
        ended = run("launch", "demo.yaml", "--workers", "0", "--seed", "1", "--storage", demo.storage)
        assert "seed: stored 0, given 1" in refused(ended, 2)


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_an_example_that_could_be_typed(self, name: str) -> None:
        ended = run(name, "--help")
        assert ended.code == 0
        _, _, examples = ended.out.partition("Example:\n")
        assert examples.strip(), f"{name} --help has no example"
        lines = [shlex.split(line.partition(" > ")[0]) for line in examples.splitlines() if line.strip()]
        assert name in {words[1] for words in lines}
        for words in lines:
            options = {option for one in COMMANDS[words[1]].params for option in one.opts}
            assert {word for word in words[2:] if word.startswith("-")} <= options, words

    @pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("new", "schema", "verify", "inspect")])
    def test_commands_that_touch_the_store_let_it_be_named(self, name: str) -> None:
        options = ("--from", "--to") if name == "copy" else ("--storage",)
        assert set(options) <= set(run(name, "--help").out.split())

    def test_all_commands_are_listed(self) -> None:
        ended = run("--help")
        assert all(f"\n  {name} " in ended.out for name in COMMANDS)
        assert "..." not in ended.out.partition("Commands:")[2]  # no sentence is cut

    def test_the_version_is_that_of_the_package(self) -> None:
        import slimfront

        assert run("--version").out == f"slimfront {slimfront.__version__}\n"


class TestJson:
    def test_front_is_the_document_and_nothing_else(self, made_up: str) -> None:
        ended = run("front", "--json", "--storage", made_up)
        assert json.loads(ended.out) == json.loads(json.dumps(front(None, made_up).document()))
        assert ended.err == ""

    def test_a_plot_does_not_disturb_it(self, made_up: str, tmp_path: Path) -> None:
        ended = run("front", "--json", "--plot", str(tmp_path / "front.html"), "--storage", made_up)
        assert json.loads(ended.out)["study"] == "made-up"
        assert (tmp_path / "front.html").exists()

    @pytest.mark.parametrize("of", ["policy", "config"])
    def test_schema_is_a_json_schema(self, of: str) -> None:
        found = json.loads(run("schema", of).out)
        assert found["type"] == "object"
        assert found["additionalProperties"] is False
        assert {"policy": "sites", "config": "workload"}[of] in found["properties"]


class TestCache:
    """Where `apply` looks: the folder given, what the study recorded, $SLIMFRONT_CACHE or the default."""

    @pytest.fixture
    def policy(self, demo: Demo, tmp_path: Path) -> Path:
        assert run("export", "-o", str(tmp_path / "p.json"), "--storage", demo.storage).code == 0
        return tmp_path / "p.json"

    def test_the_order(self, demo: Demo, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted, given = read_policy(policy), tmp_path / "given"
        assert cache_of(wanted, given, demo.storage) == given
        monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "env"))
        assert cache_of(wanted, None, demo.storage) == demo.folder / "cache"
        assert cache_of(wanted, None, f"sqlite:///{tmp_path}/none.db") == tmp_path / "env"
        monkeypatch.delenv("SLIMFRONT_CACHE")
        assert cache_of(wanted, None, f"sqlite:///{tmp_path}/none.db") == default_cache()
        other = wanted.model_copy(update={"provenance": wanted.provenance.model_copy(update={"study": "other"})})
        assert cache_of(other, None, demo.storage) == default_cache()


class TestProcesses:
    def modules_after(self, folder: Path, *words: str) -> set[str]:
        """The modules that a command has imported when it ends."""
        script = (
            "import sys\nfrom search.cli import main\nsys.argv = ['slimfront', *sys.argv[1:]]\n"
            "try: main()\nexcept SystemExit as end: assert not end.code\n"
            "print(*sys.modules, file=sys.stderr)"
        )
        command = [sys.executable, "-c", script, *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return set(ended.stderr.split())

    def test_front_and_export_are_quick(self, made_up: str, tmp_path: Path) -> None:
        slow = {"torch", "ray", "sklearn", "matplotlib", "plotly", "optuna_dashboard", "scipy"}
        assert not slow & self.modules_after(tmp_path, "front", "--storage", made_up)
        assert not slow & self.modules_after(tmp_path, "status", "--storage", made_up)
        exported = self.modules_after(tmp_path, "export", "--trial", "3", "--storage", made_up)
        assert not slow & exported

    def test_help_imports_next_to_nothing(self, tmp_path: Path) -> None:
        heavy = {"torch", "ray", "optuna", "sqlalchemy", "pydantic", "yaml", "numpy"}
        assert not heavy & self.modules_after(tmp_path, "--help")

    def test_a_reader_that_stops_reading_is_no_error(self, made_up: str, tmp_path: Path) -> None:
        for words in (["schema", "config"], ["front", "--storage", made_up]):
            process = start(tmp_path, *words)
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            said = process.stderr.read()
            process.stderr.close()
            process.wait(60)
            assert said == ""

    @pytest.fixture
    def endless(self, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
        config = tmp_path / "tiny.yaml"
        config.write_text("study: tiny\nworkload: tests.tiny:slow\ndistillation: {steps: []}\n")
        process = start(tmp_path, "launch", "tiny.yaml", "--workers", "0", "--trials", "5000")
        yield process
        if process.poll() is None:
            process.kill()
            process.communicate()

    def test_an_interrupted_launch_prints_the_front_and_ends_with_130(
        self, endless: "subprocess.Popen[str]", tmp_path: Path
    ) -> None:
        url = f"sqlite:///{tmp_path}/slimfront.db"
        until = time.monotonic() + 60
        told = 0
        while told < 3 and time.monotonic() < until:
            time.sleep(0.3)
            assert endless.poll() is None, endless.communicate()
            with contextlib.suppress(Exception):  # there is no study yet
                told = status("tiny", url).states.get("COMPLETE", 0)
        seen = json.loads(run("status", "--json", "--storage", url).out)
        assert seen["driver"]["alive"] is True
        assert seen["driver"]["pid"] == endless.pid
        endless.send_signal(signal.SIGINT)
        out, err = endless.communicate(timeout=60)
        assert endless.returncode == 130
        assert "front of tiny" in out
        assert "Traceback" not in err
        assert "the same command goes on where it was" in err
        assert status("tiny", url).driver is None


class TestGoals:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Where `tiny.yaml` is, and commands run."""
        (tmp_path / "tiny.yaml").write_text(
            "study: tiny\nworkload: tests.tiny:workload\nworkers: 0\ncache: cache\n"
            "space: {bits: [2, 8], channels: [0.5]}\ndistillation: {steps: []}\n"
            "sampler: {name: random, uniform: 2, predicted: 2}\n"
        )
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--until tomorrow", 'budget.until (from --until): given "tomorrow", allowed a time such as "18:00"'),
            ("--until 2020-02-02T20:20", "budget.until: given '2020-02-02T20:20', which has passed (it is 20"),
            ("--patience 0", "budget.patience.candidates (from --patience): given 0, allowed 1 or more"),
            ("--focus 120kB..40kB", 'budget.focus (from --focus): given "120kB..40kB", allowed [low, high] in bytes'),
            ("--focus 40..120kB", "with both units"),
            ("--timeout soon", 'budget.timeout (from --timeout): given "soon"'),
        ],
    )
    def test_what_is_none_is_refused(self, folder: Path, words: str, message: str) -> None:
        assert message in refused(run("launch", "tiny.yaml", *words.split()), 2)
        assert [file.name for file in folder.iterdir()] == ["tiny.yaml"]

    def test_a_focus_without_files_is_refused_with_the_range_there_is(self, folder: Path) -> None:
        message = refused(run("launch", "tiny.yaml", "--focus", "1B..2B"), 2)
        assert "budget.focus: given 1..2 bytes" in message
        assert "give a range that overlaps" in message
        assert not (folder / "slimfront.db").exists()

    def test_they_end_the_search_and_status_says_so(self, folder: Path) -> None:
        goals = ("--until", "2099-12-31T23:59", "--patience", "3", "--focus", "700B..2kB")
        ended = run("launch", "tiny.yaml", "--trials", "60", *goals, "--set", "budget.patience.growth=1.0")
        assert ended.code == 0, ended.err
        found = json.loads(run("status", "--json").out)
        assert found["states"] == {"COMPLETE": 4 + 3 + 8}  # the first ones, patience, a window
        assert found["ends"] == (
            "after 60 trials, or at 2099-12-31T23:59, or when the front's hypervolume has not grown by more than 1 in "
            "3 candidates; it aims at 700 to 2,000 bytes"
        )
        assert "has not grown by more than 1 in 3 candidates: the study ends with 15 trials" in ended.err

    def test_time_that_was_up_before_the_first_candidate_is_said(self, folder: Path) -> None:
        (folder / "late.py").write_text(
            "import time\nfrom tests import tiny\ndef workload():\n    time.sleep(3)\n    return tiny.workload()\n"
        )
        importlib.import_module("search.loop")  # takes seconds the first time
        until = datetime.now(UTC) + timedelta(seconds=2.5)
        ended = run("launch", "tiny.yaml", "--until", until.isoformat(), "--set", "workload=late.py:workload")
        assert "no trial has completed; the time was up before: give it more" in refused(ended, 1)
