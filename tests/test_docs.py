"""README and docs: links lead somewhere, commands exist with their options, generated tables are current."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from search.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of each `slimfront` command in the page's shell blocks."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "slimfront":
                yield words


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands_of(page))], ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    known: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for words in commands_of(page):
        assert words[1] in known, words
        options = {option for one in known[words[1]].params for option in one.opts}
        assert {word for word in words[2:] if word.startswith("-")} <= options, words


def test_the_readme_shows_commands() -> None:
    assert len(list(commands_of(ROOT / "README.md"))) >= 5


def test_the_reference_is_current() -> None:
    page = generator()
    assert page.page() == (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
