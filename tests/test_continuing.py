"""Which trials are continued, and that a search that continues some is the same whatever happens to it."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from objectives.score import RungScore
from search.config_sections import DistillationConfig, RacingConfig, SamplerConfig
from search.continuing import EVERY, Continuing
from search.loop import launch
from search.rungs import History
from tests.searches import Row, outcomes_of, rows_of, tiny, untell
from tests.test_rungs import score

LAST = 2
TURN = EVERY - 1  # a number whose turn it is


@dataclass(frozen=True)
class Told:
    number: int
    rungs: tuple[RungScore, ...] = ()
    stopped: bool = False
    repeat_of: int | None = None
    continues: int | None = None


def history_of(told: list[Told], share: float = 0.5) -> History:
    history = History(LAST + 1, share, None)
    for trial in told:
        if trial.rungs:
            history.tell(trial.number, trial.rungs, (), trial.stopped)
    return history


def to_continue(number: int, asked: list[Told], visible: int, history: History, last: int = LAST) -> int | None:
    continuing = Continuing(last)
    for trial in asked:
        continuing.ask(trial.continues)
    for trial in asked[:visible]:
        continuing.tell(trial)
    return continuing.choose(number, history)


def chosen(told: list[Told], number: int = 8 * EVERY - 1, share: float = 0.5, last: int = LAST) -> int | None:
    return to_continue(number, told, len(told), history_of(told, share), last)


def chain(*accuracies: float) -> list[Told]:
    """One-shot scores, each of more bytes than the one before."""
    return [Told(i, (score(0, accuracy, 100 + i),)) for i, accuracy in enumerate(accuracies)]


class TestChoice:
    def test_the_best_rank_goes_first_and_then_the_lowest_number(self) -> None:
        told = chain(0.5, 0.4, 0.6, 0.3, 0.2, 0.1, 0.1, 0.1)
        assert chosen(told) == 0  # 0 and 2 are on the front
        told[0] = replace(told[0], stopped=True)
        assert chosen(told) == 2
        told[2] = replace(told[2], stopped=True)
        assert chosen(told) == 1  # of rank 2, which is within half of them

    def test_only_who_would_be_promoted_now(self) -> None:
        told = [replace(one, stopped=one.number < 3) for one in chain(0.6, 0.5, 0.4, 0.3, 0.2, 0.1)]
        assert chosen(told, share=0.5) is None  # rank 4 of 6
        assert chosen(told, share=0.7) == 3

    @pytest.mark.parametrize(
        "change",
        [
            {"stopped": True},
            {"repeat_of": 1},
            {"rungs": ()},
            {"rungs": (score(0, 0.9, 100), score(1, 0.9, 100), score(2, 0.9, 100))},
        ],
    )
    def test_never_who_cannot(self, change: dict[str, Any]) -> None:
        assert chosen([Told(0, (score(0, 0.9, 100),))]) == 0
        assert chosen([replace(Told(0, (score(0, 0.9, 100),)), **change)]) is None

    def test_a_trial_is_continued_once_and_then_the_one_that_continued_it(self) -> None:
        first = Told(0, (score(0, 0.9, 100),))
        running = Told(1, continues=0)
        assert to_continue(TURN, [first, running], 1, history_of([first])) is None
        then = Told(1, (score(0, 0.9, 100), score(1, 0.95, 100)), continues=0)
        assert chosen([first, then]) == 1
        last = Told(1, (*then.rungs, score(2, 0.96, 100)), continues=0)
        assert chosen([first, last]) is None

    def test_only_what_is_visible_counts(self) -> None:
        told = chain(0.2, 0.9)
        assert to_continue(TURN, told, 1, history_of(told[:1])) == 0
        assert to_continue(TURN, told, 0, history_of([])) is None

    def test_at_most_one_of_four(self) -> None:
        told = chain(0.5, 0.6)
        found = [chosen(told, number) is not None for number in range(100, 140)]
        assert sum(found) == 40 // EVERY
        assert all(sum(found[i : i + EVERY]) == 1 for i in range(len(found) - EVERY))

    def test_without_further_rungs_there_is_nothing_to_do(self) -> None:
        assert chosen(chain(0.5), last=0) is None

    @pytest.mark.parametrize("seed", range(10))
    def test_it_is_the_first_of_all_that_are_promotable(self, seed: int) -> None:
        draw = random.Random(seed)
        told = [
            Told(i, tuple(score(r, draw.randint(0, 20) / 20, draw.randint(1, 50)) for r in range(draw.randint(0, 3))))
            for i in range(40)
        ]
        history = history_of(told)
        ends = [(one, one.rungs[-1]) for one in told if one.rungs and one.rungs[-1].rung < LAST]
        judgement = history.judges(always=False)
        able = [(one, end) for one, end in ends if judgement.promote(end.rung, end.accuracy, end.bytes)]
        best = min(able, key=lambda each: (history.rank(each[1].rung, each[1].accuracy, each[1].bytes), each[0].number))
        assert chosen(told) == best[0].number

    @pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
    def test_one_after_another_it_is_the_first_of_all_that_are_left(self, share: float) -> None:
        draw = random.Random(str(share))
        continuing, history = Continuing(LAST), History(LAST + 1, share, None)
        told: list[Told] = []
        taken = set[int]()
        for i in range(120):
            if draw.random() < 0.5:  # several may be asked before the next one is told
                scores = [score(r, draw.randint(0, 9) / 9, draw.randint(1, 9)) for r in range(draw.randint(0, 3))]
                told.append(Told(len(told), tuple(scores), stopped=draw.random() < 0.2))
                continuing.tell(told[-1])
                if scores:
                    history.tell(told[-1].number, scores, (), told[-1].stopped)
            able = [
                (history.rank(end.rung, end.accuracy, end.bytes), one.number)
                for one in told
                if one.rungs and not one.stopped and one.number not in taken
                for end in one.rungs[-1:]
                if end.rung < LAST and history.judges(always=False).promote(end.rung, end.accuracy, end.bytes)
            ]
            found = continuing.choose(TURN, history)
            assert found == (min(able)[1] if able else None)
            if i % 2:
                continuing.ask(found)
                taken |= {found} if found is not None else set()
        assert len(taken) > 2


DISTILLATION = DistillationConfig(steps=(2, 4), batch_size=32, learning_rate=0.02, share=0.8)
TRIALS = 24


def search(folder: Path, trials: int = TRIALS, **changed: Any) -> list[Row]:
    folder.mkdir(exist_ok=True)
    sampler, in_full = SamplerConfig(name="random", uniform=2, predicted=1), RacingConfig(confidence=None)
    settings = {"distillation": DISTILLATION, "sampler": sampler, "racing": in_full}  # a race leaves few to continue
    launch(tiny(folder, trials, **settings, **changed))
    return rows_of(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("continued")
    return folder, search(folder)


class TestSearch:
    def test_some_are_continued_and_take_their_scores_with_them(self, whole: tuple[Path, list[Row]]) -> None:
        _, rows = whole
        found = [row for row in rows if row.attrs["origin"] == "continued"]
        assert len(found) >= 2
        for row in found:
            before = rows[row.attrs["continues"]]
            assert row.number % EVERY == TURN
            assert {one.attrs["origin"] for one in rows[row.number :]} <= {"sampler", "continued"}
            assert (row.params, row.attrs["digest"]) == (before.params, before.attrs["digest"])
            assert row.attrs["rung"] > before.attrs["rung"]
            taken = [{**rung, "forwards": 0, "backwards": 0} for rung in before.rungs]
            assert row.rungs[: len(taken)] == taken
            assert row.rungs[len(taken)]["backwards"] > 0
            assert row.values == (row.rungs[-1]["accuracy"], row.rungs[-1]["bytes"])
            assert "repeat_of" not in row.attrs
        continued = [row.attrs["continues"] for row in found]
        assert len(set(continued)) == len(continued)
        assert {rows[number].attrs["rung"] for number in continued} == {0, 1}
        assert "continued" in {rows[number].attrs["origin"] for number in continued}  # once more

    def test_costs_are_counted_once(self, whole: tuple[Path, list[Row]]) -> None:
        for row in whole[1]:
            assert row.attrs["backwards"] == sum(rung["backwards"] for rung in row.rungs)
            if "continues" in row.attrs:
                ends = (0, *DISTILLATION.steps)
                steps = ends[row.attrs["rung"]] - ends[whole[1][row.attrs["continues"]].attrs["rung"]]
                assert row.attrs["backwards"] == steps * DISTILLATION.batch_size

    @pytest.mark.parametrize("launches", [(15, TRIALS), (4, 17, 20, TRIALS)])
    def test_in_several_launches(
        self, tmp_path: Path, whole: tuple[Path, list[Row]], launches: tuple[int, ...]
    ) -> None:
        for trials in launches:
            rows = search(tmp_path, trials)
            assert rows == whole[1][:trials]
        assert outcomes_of(tmp_path) == outcomes_of(whole[0])

    @pytest.mark.parametrize("left", [1, 4])
    def test_after_a_driver_was_killed(self, tmp_path: Path, whole: tuple[Path, list[Row]], left: int) -> None:
        """Trial 19 continues another one, and trial 15 was told or not."""
        search(tmp_path, 16 if left == 1 else 20)
        untell(tmp_path, left)
        asked = rows_of(tmp_path)
        assert [row.attrs["origin"] for row in asked if row.state == "RUNNING"].count("continued") == 1
        assert search(tmp_path) == whole[1]
        assert outcomes_of(tmp_path) == outcomes_of(whole[0])

    def test_without_the_kept_students(self, tmp_path: Path, whole: tuple[Path, list[Row]]) -> None:
        """They may be lost at any time."""
        search(tmp_path, 22)
        for path in (tmp_path / "cache" / "students" / "kept").glob("*/*"):
            path.unlink()
        assert search(tmp_path) == whole[1]

    @pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
    def test_on_workers(self, local_ray: None, tmp_path: Path, whole: tuple[Path, list[Row]], workers: int) -> None:
        assert search(tmp_path, workers=workers) == whole[1]
        assert outcomes_of(tmp_path) == outcomes_of(whole[0])
