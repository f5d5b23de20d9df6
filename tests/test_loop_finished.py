"""Launches that have nothing to do, or may not do it: nothing is prepared, started or written for them."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from compress.files import artifact_path
from search.candidates import prepare
from search.config import Config
from search.lease import Lease
from search.loop import LaunchResult, launch
from search.storage import open_storage
from spaces.errors import ConfigError, StudyError
from tests.searches import STUDY, rows_of, tiny, untell, url_of

TRIALS = 8


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LaunchResult]:
    folder = tmp_path_factory.mktemp("ended")
    return folder, launch(tiny(folder, TRIALS))


@pytest.fixture
def finished(ended: tuple[Path, LaunchResult], tmp_path: Path) -> Path:
    """A folder of its own with the study, whose files may be changed."""
    shutil.copytree(ended[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was prepared: its study's name for each time."""
    seen: list[str] = []

    def noting(config: Config, *given: Any) -> Any:
        seen.append(config.study)
        return prepare(config, *given)

    monkeypatch.setattr("search.loop.prepare", noting)
    return seen


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


class TestFinished:
    @pytest.mark.parametrize("workers", [0, 3])
    def test_it_is_read_and_nothing_is_prepared_or_written(
        self,
        ended: tuple[Path, LaunchResult],
        workers: int,
        prepared: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def no_ray(config: Config) -> bool:
            raise AssertionError("Ray was started")

        monkeypatch.setattr("search.loop.start_ray", no_ray)
        folder, first = ended
        before = contents(folder)
        assert launch(tiny(folder, TRIALS, workers=workers)) == first
        assert contents(folder) == before
        assert prepared == []
        assert f"study {STUDY} is finished: its {TRIALS} trials are told" in capsys.readouterr().err

    def test_with_fewer_trials_wanted_it_is_that_too(
        self, ended: tuple[Path, LaunchResult], prepared: list[str]
    ) -> None:
        assert launch(tiny(ended[0], TRIALS - 2)) == ended[1]
        assert prepared == []

    def test_what_is_another_search_is_refused_all_the_same(
        self, ended: tuple[Path, LaunchResult], prepared: list[str]
    ) -> None:
        before = contents(ended[0])
        with pytest.raises(ConfigError, match="seed: stored 0, given 3"):
            launch(tiny(ended[0], TRIALS, seed=3))
        assert (prepared, contents(ended[0])) == ([], before)

    @pytest.mark.parametrize(
        "change",
        [
            lambda folder: untell(folder, 2),
            lambda folder: shutil.rmtree(folder / "cache"),
            lambda folder: artifact_path(folder / "cache", rows_of(folder)[0].attrs["artifact"]).unlink(),
        ],
        ids=["trials that run", "no cache", "a lost file"],
    )
    def test_one_that_lacks_something_is_not(
        self,
        ended: tuple[Path, LaunchResult],
        finished: Path,
        change: Callable[[Path], None],
        prepared: list[str],
    ) -> None:
        change(finished)
        again = launch(tiny(finished, TRIALS))
        assert prepared == [STUDY]
        assert rows_of(finished) == rows_of(ended[0])
        assert launch(tiny(finished, TRIALS)) == again
        assert prepared == [STUDY]

    def test_more_trials_are_searched(
        self, ended: tuple[Path, LaunchResult], finished: Path, prepared: list[str]
    ) -> None:
        assert len(launch(tiny(finished, TRIALS + 1)).front.complete) == TRIALS + 1
        assert prepared == [STUDY]
        assert rows_of(finished)[:TRIALS] == rows_of(ended[0])


class TestHeld:
    @pytest.fixture
    def held(self, finished: Path) -> Iterator[Path]:
        """The finished study's folder while another driver holds the study."""
        storage = open_storage(url_of(finished), create=False)
        with closing(storage), Lease(storage, storage.get_study_id_from_name(STUDY)):
            yield finished

    @pytest.mark.parametrize("trials", [TRIALS, TRIALS + 4])
    def test_it_is_refused_before_anything_is_compressed(self, held: Path, trials: int, prepared: list[str]) -> None:
        shutil.rmtree(held / "cache")
        with pytest.raises(StudyError, match=r"is being searched by process \d+ on .*: wait for it, or end it with"):
            launch(tiny(held, trials))
        assert prepared == []
        assert not (held / "cache").exists()
        assert [row.state for row in rows_of(held)] == ["COMPLETE"] * TRIALS
