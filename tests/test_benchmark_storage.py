"""The storage benchmark in its smallest form: both ways are measured, and the results are written."""

import json
from pathlib import Path

import pytest

from benchmarks.storage import main


def test_a_small_form_measures_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "storage.json"
    main(["--databases", "sqlite", "--parameters", "4", "--trials", "5,8", "--turns", "2", "--json", str(target)])

    found = json.loads(target.read_text())
    assert [(row["database"], row["parameters"], row["trials"]) for row in found["rows"]] == [
        ("sqlite", 4, 5),
        ("sqlite", 4, 8),
    ]
    for row in found["rows"]:
        assert row["ours"]["load"]["trials"] == row["stock"]["load"]["trials"] == row["trials"]
        assert row["ours"]["commits"] == 2 < row["stock"]["commits"]
        assert row["ours"]["statements"] < row["stock"]["statements"]
        assert 0 < row["ours"]["cpu_ms"] < row["stock"]["cpu_ms"]
    assert "stock RDBStorage / ours" in capsys.readouterr().out
