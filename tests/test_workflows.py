"""The workflows under .github: pinned, with few rights, and their scripts are shell that parses."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from search.cli import app
from tests.compose import ROOT, services, variables

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
every = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def read(file: Path) -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return document


def steps(file: Path) -> list[Mapping[str, Any]]:
    return [step for job in read(file)["jobs"].values() for step in job["steps"]]


def scripts(file: Path) -> list[str]:
    """What the steps run, GitHub's own `${{ ... }}` replaced by a word."""
    return [re.sub(r"\$\{\{.*?\}\}", "word", step["run"]) for step in steps(file) if "run" in step]


@every
def test_it_runs_on_pushes_with_few_rights_and_ends(file: Path) -> None:
    document = read(file)
    assert "push" in document[True]  # YAML 1.1 reads `on` as true
    assert document["permissions"] == {"contents": "read"}
    for job in document["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert re.fullmatch(r"ubuntu-\d\d\.\d\d", job["runs-on"])
        assert "permissions" not in job


@every
def test_its_actions_are_pinned_and_keep_no_credentials(file: Path) -> None:
    used = [step for step in steps(file) if "uses" in step]
    assert used
    for step in used:
        assert re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", step["uses"])
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@every
def test_its_scripts_parse_and_take_nothing_of_an_event_as_shell(file: Path) -> None:
    for script in scripts(file):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert not any("${{" in step.get("run", "") for step in steps(file))  # an expression belongs into env


def test_the_secrets_of_the_compose_run_are_those_of_the_example() -> None:
    example = variables((ROOT / ".env.example").read_text(encoding="utf-8"))
    (script,) = (one for one in scripts(ROOT / ".github/workflows/compose.yml") if ".env.example" in one)
    made = subprocess.run(
        ["bash", "-euc", script.replace("> .env", "")],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TORCH_PIP_ARGS": "--quiet"},
        capture_output=True,
        text=True,
        check=True,
    )
    written = variables(made.stdout)
    assert written.keys() == example.keys()
    assert len(written["POSTGRES_PASSWORD"]) == 48
    assert written["TORCH_PIP_ARGS"] == "--quiet"
    services(written)  # nothing that it requires is missing


def commands(text: str) -> list[list[str]]:
    """The words after `docker compose run ... slimfront` in each line of a script."""
    lines = [line.partition(" slimfront ")[2].partition(" > ")[0] for line in text.splitlines() if " run " in line]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.mark.parametrize(
    "file", [ROOT / ".github/workflows/compose.yml", ROOT / "docs/cluster.md"], ids=lambda one: one.name
)
def test_commands_exist_with_their_options_and_are_rehearsed(file: Path) -> None:
    known: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = commands(file.read_text(encoding="utf-8"))
    assert len(found) >= 3
    for words in found:
        options = {option for one in known[words[0]].params for option in one.opts}
        assert {word for word in words[1:] if word.startswith("-")} <= options, words
    rehearsed = re.findall(r'stage\.run\("(\w+)"', (ROOT / "tests" / "test_rehearsal.py").read_text(encoding="utf-8"))
    assert {words[0] for words in found} <= set(rehearsed)
