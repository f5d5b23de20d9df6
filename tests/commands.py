"""Running commands in tests: in this process or as one of their own, and how they ended."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from search.cli import app

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*words: str) -> Ended:
    """Run a command in this process; it must end as a command does, not by an exception."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return Ended(result.exit_code, result.stdout, result.stderr)


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "search.cli", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def refused(ended: Ended, code: int) -> str:
    """The message of a command that ended in an error, as it should."""
    assert (ended.code, ended.out) == (code, ""), ended
    assert "\nerror: " in f"\n{ended.err}"  # after what it said while it worked
    assert "Traceback" not in ended.err
    return ended.err
