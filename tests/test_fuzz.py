"""Damaged packed files: always a clean error or a correct model, never a crash, a hang or gigabytes allocated."""

import json
import subprocess
import sys

import pytest
import torch

from compress.record import RECORD, Form, Kind, Record
from tests.fuzzing import NAMES, damaged, sample


def fuzz(first: int, count: int) -> dict[str, int]:
    """Read so many damaged files in a process of its own, whose memory and time are bounded."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing", str(first), str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout)
    assert found["refused"] + found["models"] == count
    assert found["refused"] > count // 3
    assert found["models"] > count // 30
    return found


def test_300_damaged_files() -> None:
    fuzz(0, 300)


@pytest.mark.slow
def test_5000_damaged_files() -> None:
    fuzz(1000, 5000)


def test_every_way_to_write_a_site_is_among_them() -> None:
    seen = set()
    for number in range(2 * len(NAMES)):
        one = sample(number)
        start = len(one.blob) - len(one.blob[8 + int.from_bytes(one.blob[:8], "little") :]) + 36 + one.structure
        for i in range(one.sites):
            record = one.blob[start + RECORD.size * i :][: RECORD.size]
            found = Record.unpack(record, 2**40)
            seen.add((found.kind, found.form, found.per, found.asymmetric, found.input_bits > 0))
    assert {form for _, form, *_ in seen} == set(Form)
    assert {kind for kind, *_ in seen} == set(Kind)
    assert {per for _, _, per, *_ in seen} == {0, 1, 2}
    assert {True, False} == {asymmetric for *_, asymmetric, _ in seen} == {rounded for *_, rounded in seen}


def test_damage_is_the_same_every_time() -> None:
    for seed in range(5):
        first, again = damaged(seed), damaged(seed)
        assert (first[1], first[2]) == (again[1], again[2])
        assert all(torch.equal(one, first[0].state[name]) for name, one in again[0].state.items())
