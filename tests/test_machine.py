"""What a result says it was measured on."""

import os
import platform

import pytest
import torch

from objectives.machine import machine


def test_it_names_the_architecture_and_the_threads() -> None:
    assert machine("cpu", 1).startswith(platform.machine())
    assert machine("cpu", 1).endswith(", 1 thread")
    assert machine("cpu", 4).endswith(", 4 threads")
    assert "  " not in machine("cpu", 1)
    assert len(machine("cpu", 1)) < 100


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="needs Linux, which lists its processors there")
def test_it_names_the_processor() -> None:
    with open("/proc/cpuinfo") as file:
        named = {" ".join(line.partition(":")[2].split()) for line in file if line.startswith("model name")}
    if not named:
        pytest.skip("this processor's maker is not listed in /proc/cpuinfo")
    assert any(name in machine("cpu", 1) for name in named)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_names_the_gpu() -> None:
    assert machine("cuda", 1) == torch.cuda.get_device_name()
