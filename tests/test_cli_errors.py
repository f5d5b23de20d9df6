"""The command line: how a command says that it failed, and that it never says a password."""

from pathlib import Path
from typing import Any

import pytest
import typer.main

from search.address import hide_password
from search.cli import app
from search.config import Config
from search.options import without_passwords
from search.printing import next_commands
from tests.commands import refused, run
from tests.studies import write_made_up

ROOT = Path(__file__).parent.parent
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SECRET = "s3cret"


@pytest.fixture
def made_up(tmp_path: Path) -> str:
    """The URL of a store with one study, made-up."""
    return write_made_up(tmp_path)


class TestErrors:
    @pytest.mark.parametrize(
        ("command", "code", "part"),
        [
            ("launch nowhere.yaml", 2, "nowhere.yaml"),
            ("inspect nowhere.yaml", 2, "nowhere.yaml"),
            ("front", 1, "slimfront launch"),
            ("front --storage sqlite:////no/such/folder/a.db", 1, "/no/such/folder"),
            ("front --against other", 2, "--plot"),
            ("status", 1, "slimfront launch"),
            ("export", 1, "slimfront launch"),
            ("export --max-bytes small", 2, "'small'"),
            ("export --all --knee", 2, "--all"),
            ("apply nothing.json -o m.safetensors", 2, "nothing.json"),
            ("verify m.safetensors nothing.json", 2, "nothing.json"),
            ("dashboard --port 0", 1, "slimfront launch"),
            ("new no-name", 2, "'no-name'"),
        ],
    )
    def test_they_are_said_in_words(
        self, command: str, code: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert part in refused(run(*command.split()), code)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("command", ["launch", "front --no-such-option", "schema model", "nothing"])
    def test_bad_usage_ends_with_2(self, command: str) -> None:
        ended = run(*command.split())
        assert ended.code == 2
        assert "Usage: " in ended.err

    def test_an_unknown_study_is_named_with_those_there_are(self, made_up: str) -> None:
        message = refused(run("front", "other", "--storage", made_up), 1)
        assert "'other'" in message
        assert "made-up" in message

    def test_what_the_front_does_not_have_is_said(self, made_up: str, tmp_path: Path) -> None:
        ended = run("export", "--max-bytes", "1kB", "-o", str(tmp_path / "p.json"), "--storage", made_up)
        assert "1,000 bytes" in refused(ended, 1)
        assert not (tmp_path / "p.json").exists()

    def test_markup_in_a_message_is_left_as_it_is(self, made_up: str) -> None:
        assert "'[bold]x'" in refused(run("front", "[bold]x", "--storage", made_up), 1)

    def test_a_long_path_is_not_broken_into_lines(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 200 + ".yaml")
        assert str(path) in refused(run("launch", str(path)), 2)

    def test_debugging_shows_where(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLIMFRONT_DEBUG", "1")
        ended = run("launch", "nowhere.yaml")
        assert ended.code == 2
        assert "Traceback" in ended.err
        assert ended.err.splitlines()[-1].startswith("error: nowhere.yaml")


class TestPasswords:
    URL = f"postgresql://ann:{SECRET}@127.0.0.1:1/slimfront"

    @pytest.mark.parametrize("debug", ["0", "1"])
    @pytest.mark.parametrize("command", ["front", "status --json", "dashboard"])
    def test_they_are_in_no_error(self, command: str, debug: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLIMFRONT_DEBUG", debug)
        ended = run(*command.split(), "--storage", self.URL)
        assert ended.code == 1
        assert "ann:***@127.0.0.1" in ended.err
        assert SECRET not in ended.out + ended.err

    def test_they_are_in_no_traceback(self) -> None:
        trace = f"Traceback:\n  File x\nOperationalError: cannot open {self.URL}\nsee it\n"
        assert (
            without_passwords(trace)
            == f"Traceback:\n  File x\nOperationalError: cannot open {hide_password(self.URL)}\nsee it"
        )

    def test_they_are_not_among_the_next_commands(self) -> None:
        config = Config(study="s", workload="objectives.workloads.digits:workload", storage=self.URL)
        lines = list(next_commands(config))
        assert SECRET not in "\n".join(lines)
        assert "SLIMFRONT_STORAGE='postgresql://ann:***@" in lines[0]
        assert not any("--storage" in line for line in lines)

    def test_a_store_that_is_the_default_need_not_be_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = Config(study="s", workload="objectives.workloads.digits:workload", storage=self.URL)
        monkeypatch.setenv("SLIMFRONT_STORAGE", self.URL)
        assert next(iter(next_commands(config))).split()[:2] == ["slimfront", "front"]
