"""Packed files that come with results: in the driver's folder before anybody hears of them, however long that takes."""

import hashlib
from pathlib import Path

import pytest

from objectives.packed import read_packed
from objectives.score import Score
from search.arrivals import Arrivals
from search.tasks import Result
from spaces.errors import StudyError

BLOB = b"a packed file"
SHA256 = hashlib.sha256(BLOB).hexdigest()


def result(number: int, blob: bytes | None = BLOB) -> Result:
    score = Score(0.9, None, 10, 1.0, (), None if blob is None else SHA256)
    return Result(number, score=score, machine="here", blob=blob)


def numbers(results: list[Result]) -> list[int]:
    assert all(one.blob is None for one in results)
    return [one.number for one in results]


def test_files_are_kept_and_all_else_stays(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path)
    plain = [Result(3, error="failed"), result(4, None)]
    first, *rest = arrivals.through([result(2), *plain])
    assert (first.number, first.score, first.machine, first.blob) == (2, result(2).score, "here", None)
    assert rest == plain
    assert read_packed(tmp_path, SHA256) == BLOB
    assert arrivals.waiting == 0


def test_one_that_was_damaged_on_its_way_is_not_kept(tmp_path: Path) -> None:
    assert numbers(Arrivals(tmp_path).through([result(2, b"something else")])) == [2]
    assert not list(tmp_path.iterdir())


def test_results_wait_for_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    said: list[str] = []
    arrivals = Arrivals(tmp_path / "cache", said.append)
    assert numbers(arrivals.through([result(1, None), result(2), result(3, None)])) == [1]
    assert arrivals.through() == []
    assert arrivals.through([result(4)]) == []
    assert arrivals.waiting == 3
    (tmp_path / "cache").unlink()
    assert numbers(arrivals.through([result(5, None)])) == [2, 3, 4, 5]
    assert read_packed(tmp_path / "cache", SHA256) == BLOB
    assert len(said) == 2
    assert "cannot be written" in said[0]
    assert "the search waits" in said[0]
    assert said[1] == "the cache folder can be written again: the search goes on"


def test_but_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    arrivals = Arrivals(tmp_path / "cache", lambda line: None, patience=0.0)
    assert arrivals.through([result(2)]) == []
    with pytest.raises(StudyError, match=r"cannot be written.*make room.*launch again"):
        arrivals.through()
