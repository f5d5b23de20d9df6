"""What kind of machine this process runs on, in a few words that go beside what was measured on it."""

import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")


@cache
def machine(device: str, threads: int) -> str:
    """The GPU's model, or the architecture, model and threads of the CPU, such as "x86_64 AMD EPYC 9554, 1 thread".

    Args:
        device: what models run on, "cpu" or "cuda".
        threads: torch threads.
    """
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    words = " ".join(f"{platform.machine()} {_processor()}".split())
    return f"{words}, {threads} thread{'s' if threads != 1 else ''}"


def _processor() -> str:
    """The CPU's model as its maker calls it; nothing where the system does not say."""
    try:
        if platform.system() == "Darwin":
            asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=5).stdout  # noqa: S603 - no shell
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
