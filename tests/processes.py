"""Python processes of this code, for tests of what happens when several run, or one is killed."""

import os
import subprocess
import sys
from pathlib import Path


def start(script: str) -> "subprocess.Popen[str]":
    """Starts a process that runs the script; its output and errors are pipes of text."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
