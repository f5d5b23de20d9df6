"""Whole searches that end by patience or by the clock, or aim at some sizes: always a beginning of the same search."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from search.config import Config
from search.config_sections import BudgetConfig, DistillationConfig, PatienceConfig, SpaceConfig
from search.front import front
from search.loop import launch
from search.pareto import hypervolume
from search.status import status
from spaces.errors import ConfigError
from tests.searches import TRIALS, Row, attrs_of, rows_of, tiny, url_of

FIRST, WINDOW = 7, 4  # of the tiny search
GROWTHS = (3, 0.02), (1, 0.0), (17, 0.0)


def small(folder: Path, trials: int = TRIALS, *, workers: int = 0, **budget: Any) -> Config:
    """The tiny search, one-shot and with files below a quarter of the float model's, so that it has a hypervolume."""
    space = SpaceConfig(bits=(2, 4, 6), ratios=(0.0, 0.6, 0.9), channels=(0.5,))
    return tiny(
        folder,
        space=space,
        distillation=DistillationConfig(steps=()),
        budget=BudgetConfig(trials=trials, **budget),
        workers=workers,
    )


def impatient(
    folder: Path, trials: int = TRIALS, candidates: int = 3, growth: float = 0.02, workers: int = 0
) -> Config:
    return small(folder, trials, workers=workers, patience=PatienceConfig(candidates=candidates, growth=growth))


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the search that only its trials end."""
    folder = tmp_path_factory.mktemp("patient")
    launch(small(folder))
    return folder


@pytest.fixture(scope="module")
def whole(patient: Path) -> list[Row]:
    return rows_of(patient)


def end_of(folder: Path, candidates: int, growth: float) -> int | None:
    """Where patience ends a search, by its definition, from the hypervolumes of the study's own front."""
    found = front(storage=url_of(folder))
    told = [hypervolume([p for p in found.complete if p.trial < k], found.reference) for k in range(TRIALS + 1)]
    ends = (k for k in range(FIRST + candidates, TRIALS + 1) if told[k] - told[k - candidates] <= growth)
    return next(ends, None)


class TestPatience:
    @pytest.mark.parametrize(("candidates", "growth"), GROWTHS)
    def test_the_search_ends_a_window_after_the_front_stood_still(
        self, tmp_path: Path, patient: Path, whole: list[Row], candidates: int, growth: float
    ) -> None:
        end = end_of(patient, candidates, growth)
        result = launch(impatient(tmp_path, TRIALS, candidates, growth))
        assert not result.interrupted
        assert rows_of(tmp_path) == whole[: TRIALS if end is None else min(TRIALS, end + WINDOW)]
        assert all(point.test_accuracy is not None for point in result.front.points)

    def test_these_end_in_different_places(self, patient: Path) -> None:
        ends = [end_of(patient, candidates, growth) or TRIALS for candidates, growth in GROWTHS]
        assert len(set(ends)) >= 3
        assert min(ends) < TRIALS - WINDOW

    def test_it_is_the_same_in_several_launches_and_stays_ended(
        self, tmp_path: Path, patient: Path, whole: list[Row], capfd: pytest.CaptureFixture[str]
    ) -> None:
        end = end_of(patient, 3, 0.02)
        assert end is not None
        assert FIRST < end < TRIALS - WINDOW
        for trials in (FIRST - 2, end - 1, end + 1):
            launch(impatient(tmp_path, trials))
            assert rows_of(tmp_path) == whole[:trials]
        capfd.readouterr()
        for _ in range(2):
            launch(impatient(tmp_path))
            assert rows_of(tmp_path) == whole[: end + WINDOW]
            said = " ".join(capfd.readouterr().err.split())
            assert f"budget.patience: up to trial {end - 1} the front's hypervolume has not grown" in said
            assert f"the study ends with {end + WINDOW} trials; raise budget.patience or leave it out" in said
        launch(small(tmp_path))
        assert rows_of(tmp_path) == whole

    @pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
    def test_workers_change_nothing(
        self, local_ray: None, tmp_path: Path, patient: Path, whole: list[Row], workers: int
    ) -> None:
        end = end_of(patient, 3, 0.02)
        launch(impatient(tmp_path, workers=workers))
        assert rows_of(tmp_path) == whole[: (end or TRIALS) + WINDOW]

    def test_where_nothing_could_grow_it_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        budget = BudgetConfig(trials=TRIALS, patience=PatienceConfig())
        with pytest.raises(ConfigError, match=r"budget\.patience: given 40 candidates, but .* allow smaller files"):
            launch(tiny(tmp_path, budget=budget))
        assert not (tmp_path / "tiny.db").exists()


class TestUntil:
    def test_a_time_that_comes_leaves_a_beginning(self, tmp_path: Path, whole: list[Row]) -> None:
        soon = datetime.now(UTC) + timedelta(seconds=2)
        assert not launch(small(tmp_path, 10_000, until=soon.isoformat())).interrupted
        assert datetime.now(UTC) > soon
        told = [row for row in rows_of(tmp_path) if row.state != "RUNNING"]
        assert told[:TRIALS] == whole[: len(told)]
        with pytest.raises(ConfigError, match=r"budget\.until: given .* which has passed"):
            launch(small(tmp_path, 10_000, until=soon.isoformat()))


class TestFocus:
    def test_the_study_knows_what_was_aimed_at_when(self, tmp_path: Path) -> None:
        spans: list[tuple[int, tuple[int, int] | None]] = [
            (3, None),
            (5, (2_000, 3_000)),
            (5, (1_000, 3_000)),  # asks nothing
            (9, (1_000, 3_000)),
            (10, None),
            (10, None),
        ]
        for trials, span in spans:
            launch(small(tmp_path, trials, focus=span))
        assert attrs_of(tmp_path)["focus"] == [[3, 2_000, 3_000], [5, 1_000, 3_000], [9, None, None]]
        assert status(storage=url_of(tmp_path)).ends == "after 10 trials"

    def test_a_study_that_never_had_one_says_nothing(self, patient: Path) -> None:
        assert "focus" not in attrs_of(patient)

    def test_one_without_files_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        for span in ((1, 2), (10**8, 10**9)):
            with pytest.raises(ConfigError, match=r"budget\.focus: given .* give a range that overlaps \d+\.\.\d+"):
                launch(small(tmp_path, focus=span))
        assert not (tmp_path / "tiny.db").exists()
