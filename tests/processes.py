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


def below(pid: int, name: str) -> list[int]:
    """The processes that this one started, also by way of others, and whose command begins so."""
    said = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in said.splitlines()]
    family, found = {pid}, []
    for own, parent, *command in sorted(rows, key=lambda row: int(row[0])):
        if int(parent) in family:
            family.add(int(own))
            if command and command[0].startswith(name):
                found.append(int(own))
    return found


def naming(word: str) -> list[int]:
    """The processes whose command holds a word."""
    said = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split(maxsplit=1)[0]) for line in said.splitlines() if word in line]
