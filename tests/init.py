"""What stands between docker and a service: an init, a container that nothing outlives, and its restart policy.

Run as `python init.py USER COMMAND ...`, where an empty USER is one's own. It takes over orphans, hands signals on,
kills what is left when the command ends, and starts it again until it is told to stop. SIGUSR1 is its power cut.
"""

import ctypes
import os
import pwd
import shutil
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PAUSE_S = 1.0


def start(user: str, program: str, command: list[str]) -> int:
    """Start the command; its process id."""
    return os.fork() or become(user, program, command)


def become(user: str, program: str, command: list[str]) -> NoReturn:
    """Be the command from now on."""
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)
    if user:
        account = pwd.getpwnam(user)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.execv(program, command)


def kill_the_rest() -> None:
    """Kill what the command left behind: by now all of it has this process as its parent."""
    while True:
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                if parent == os.getpid():
                    os.kill(int(name), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def main(user: str, *command: str) -> None:
    program = shutil.which(command[0])
    if program is None:
        sys.exit(f"there is no program {command[0]}")
    child, stopped = 0, False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL if number == signal.SIGUSR1 else number)

    system = ctypes.CDLL(None)
    system.prctl(PR_SET_CHILD_SUBREAPER, 1)
    system.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # nor does it outlive the tests
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(one, stop)
    while not stopped:
        child = start(user, program, list(command))
        while os.wait()[0] != child:
            pass
        child = 0
        kill_the_rest()
        if not stopped:
            print("the service ended, and is started again", flush=True)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
