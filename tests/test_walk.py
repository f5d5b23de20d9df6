"""What a newcomer does, on the shipped quickstart config: launch, and every command that it prints next."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import slimfront

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def slimfront_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    environment = {**os.environ, "SLIMFRONT_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    environment.pop("SLIMFRONT_STORAGE", None)
    return subprocess.run(
        [sys.executable, "-m", "search.cli", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_every_command_that_launch_prints_works_when_pasted(tmp_path: Path) -> None:
    launched = slimfront_in(tmp_path, "launch", str(CONFIG), "--trials", "24", "--workers", "2")
    assert launched.returncode == 0, launched.stderr
    _, _, after = launched.stdout.partition("next:\n")
    commands = [shlex.split(line) for line in after.splitlines() if line.strip()]
    names = [words[1] for words in commands]
    assert names == ["front", "export", "apply", "verify", "dashboard"]
    for words in commands[:-1]:  # the dashboard serves until it is stopped: tests/browser looks at it
        done = slimfront_in(tmp_path, *words[1:])
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "front.png").stat().st_size > 10_000
    model = slimfront.load(tmp_path / "model.safetensors")
    assert not model.training
