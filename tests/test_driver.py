"""The driver alone, without a model: what it asks and tells when, what is stored, and the same study after kills."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from objectives.score import RungScore
from search.driver import ASKED_AT_ONCE
from search.pareto import hypervolume
from search.samplers.proposer import Proposer
from search.study import Proposal
from search.tasks import Result
from spaces.errors import StudyError
from spaces.policy import Policy
from tests.driving import BOX, Seen, World, answer, space_of
from tests.searches import Row, attrs_of, outcomes_of, rows_of

WINDOW = World.window


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The search that nothing disturbed."""
    return whole(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def states(folder: Path) -> list[str]:
    return [row.state for row in rows_of(folder)]


class Noting(Proposer):
    """A proposer that notes what it had been told when it was asked."""

    noted: list[tuple[int, list[int]]]
    shown: list[int]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.noted, self.shown = [], []

    def propose(self, number: int) -> Proposal:
        self.noted.append((number, list(self.shown)))
        return super().propose(number)

    def replay(self, number: int, params: Mapping[str, Any], system_attrs: Mapping[str, Any]) -> Policy:
        self.noted.append((number, list(self.shown)))
        return super().replay(number, params, system_attrs)

    def tell(
        self,
        number: int,
        values: tuple[float, float] | None,
        rungs: Sequence[RungScore] = (),
        *,
        stopped: bool = False,
    ) -> None:
        self.shown.append(number)
        super().tell(number, values, rungs, stopped=stopped)


class Failing(Proposer):
    """A proposer whose sampler fails at candidate 8."""

    def propose(self, number: int) -> Proposal:
        if number == 8:
            raise ArithmeticError("no luck with 8")
        return super().propose(number)


class TestOrder:
    def test_results_are_told_in_the_order_of_their_numbers(self, world: World) -> None:
        watcher = Seen()
        with world.launched() as (driver, _, trials, _):
            tasks = driver.step([], watcher)
            assert [task.number for task in tasks] == list(range(WINDOW))
            results = [answer(task) for task in tasks]
            assert driver.step(results[3:], watcher) == []
            assert driver.step(results[1:3], watcher) == []
            assert (trials.told, driver.told, watcher.shown) == (0, 0, [])
            assert states(world.folder) == ["RUNNING"] * WINDOW
            assert [task.number for task in driver.step(results[:1], watcher)] == list(range(WINDOW, 2 * WINDOW))
            assert trials.told == WINDOW
        assert watcher.shown == [
            None if one.score is None else (one.score.accuracy, float(one.score.bytes)) for one in results
        ]
        assert [row.values for row in rows_of(world.folder)[:WINDOW]] == [values or () for values in watcher.shown]

    def test_a_candidate_is_asked_once_all_that_it_may_see_is_told(self, world: World) -> None:
        with world.launched() as (driver, _, trials, _):
            results = [answer(task) for task in driver.step([], Seen())]
            for told in range(1, 12):
                tasks = driver.step([results.pop(0)], Seen())
                assert ([task.number for task in tasks], trials.told) == ([told + WINDOW - 1], told)
                results += map(answer, tasks)

    @pytest.mark.parametrize("sampler", ["random", "front"])
    def test_and_sees_exactly_that_whatever_arrived_early(self, tmp_path: Path, sampler: str) -> None:
        world = World(tmp_path, sampler=sampler, make=Noting)
        draw, waiting = random.Random(3), list[Result]()
        for launch in range(2):
            with world.launched() as (driver, _, _, proposer):
                assert isinstance(proposer, Noting)
                results: list[Result] = []
                while not driver.finished and (launch or driver.told < 12):
                    waiting += map(answer, driver.step(results, Seen()))
                    results = draw.sample(waiting, draw.randint(0, len(waiting)))
                    waiting = [one for one in waiting if one not in results]
                noted = proposer.noted
                assert [number for number, _ in noted] == list(range(len(noted)))
                assert all(shown == list(range(max(0, number - WINDOW + 1))) for number, shown in noted)
                waiting = []
        assert len(noted) == world.trials

    def test_no_more_is_told_than_was_asked_where_nothing_is_to_be_asked(self, world: World) -> None:
        watcher = Seen()
        with world.launched() as (driver, _, trials, _):
            results = [answer(task) for task in driver.step([], watcher)]
            assert driver.step(results[1:], watcher, asking=False) == []
            assert driver.step(results[:1], watcher, asking=False) == []
            assert driver.step([], watcher, asking=False) == []
            assert (trials.told, trials.count, len(watcher.shown)) == (WINDOW, WINDOW, WINDOW)
        assert set(states(world.folder)) <= {"COMPLETE", "FAIL"}

    def test_it_is_finished_when_the_budget_is_told(self, world: World) -> None:
        world.trials = 7
        with world.launched() as (driver, _, _, _):
            results = [answer(task) for task in driver.step([], Seen())]
            results = [answer(task) for task in driver.step(results, Seen())]
            assert [one.number for one in results] == [5, 6]
            assert (driver.finished, driver.budget, driver.ends) == (False, 7, "")
            assert driver.step(results, Seen()) == []
            assert driver.finished
        world.trials = 5  # fewer than there are
        with world.launched() as (driver, _, _, _):
            assert (driver.finished, driver.budget) == (True, 7)
            assert driver.step([], Seen()) == []

    def test_a_reason_is_said_once(self, world: World) -> None:
        watcher = Seen()
        with world.launched() as (driver, _, _, _):
            failed = [Result(task.number, error="out of luck") for task in driver.step([], watcher)]
            failed[3] = Result(3)
            driver.step(failed, watcher)
        assert watcher.said == ["trial 0 failed: out of luck", "trial 3 failed: no reason was given"]
        assert watcher.shown == [None] * WINDOW
        assert states(world.folder)[:WINDOW] == ["FAIL"] * WINDOW


class TestRepeats:
    @pytest.fixture
    def tiny(self, tmp_path: Path) -> World:
        """Two policies, and many more trials."""
        space = space_of(1, bits=(4,), distilled=False)
        return World(tmp_path, space=space, trials=2 * ASKED_AT_ONCE + 30)

    def test_a_step_ends_where_everything_was_asked_before(self, tiny: World) -> None:
        watcher = Seen()
        with tiny.launched() as (driver, _, trials, _):
            tasks = driver.step([], watcher)
            assert len(tasks) == len({task.policy.digest for task in tasks}) == 2
            counts = [trials.count]
            results = [answer(task) for task in tasks]
            while not driver.finished:
                assert driver.step(results, watcher) == []
                counts.append(trials.count)
                assert trials.told == trials.count
                results = []
        assert counts == [WINDOW, WINDOW + ASKED_AT_ONCE, WINDOW + 2 * ASKED_AT_ONCE, tiny.trials]
        assert len(watcher.shown) == tiny.trials
        rows = rows_of(tiny.folder)
        first = {row.attrs["digest"]: row for row in reversed(rows)}
        for row in rows:
            same = first[row.attrs["digest"]]
            assert (row.state, row.values, row.rungs) == (same.state, same.values, same.rungs)
            assert row.attrs.get("repeat_of") == (None if row is same else same.number)

    def test_a_repeat_waits_for_the_first_one(self, tiny: World) -> None:
        with tiny.launched() as (driver, _, trials, _):
            tasks = driver.step([], Seen())
            late = next(row.number for row in rows_of(tiny.folder) if row.attrs["digest"] == tasks[1].policy.digest)
            assert driver.step([answer(tasks[0])], Seen(), asking=False) == []
            assert trials.told == late
            assert driver.step([answer(tasks[1])], Seen(), asking=False) == []
            assert trials.told == WINDOW

    def test_no_repeat_is_scored_after_a_kill_either(self, tiny: World) -> None:
        with tiny.launched() as (driver, _, _, _):
            before = driver.step([], Seen())
        with tiny.launched() as (driver, _, _, _):
            again = driver.step([], Seen())
            assert [(one.number, one.policy) for one in again] == [(one.number, one.policy) for one in before]
            results = [answer(task) for task in again]
            while not driver.finished:
                assert driver.step(results, Seen()) == []
                results = []


class TestStored:
    def test_all_of_a_step_is_one_transaction(self, world: World) -> None:
        commits = list[str]()
        with world.launched() as (driver, storage, trials, _):
            event.listen(storage.engine, "commit", lambda connection: commits.append("commit"))
            results = [answer(task) for task in driver.step([], Seen())]
            assert len(commits) == 1
            driver.step(results[1:], Seen())  # nothing that can be told
            assert len(commits) == 1
            new = driver.step(results[:1], Seen())
            assert (len(new), trials.told, len(commits)) == (WINDOW, WINDOW, 2)
            driver.step([], Seen())
            assert len(commits) == 2

    def test_nothing_is_where_the_guard_refuses(self, world: World, plain: World) -> None:
        refusing = False

        def guard(connection: Connection) -> None:
            if refusing:
                raise StudyError("not ours any more")

        watcher = Seen()
        with world.launched(guard) as (driver, _, _, _):
            results = [answer(task) for task in driver.step([], watcher)]
            before = rows_of(world.folder), attrs_of(world.folder)
            refusing = True
            with pytest.raises(StudyError, match="not ours any more"):
                driver.step(results, watcher)
        assert (rows_of(world.folder), attrs_of(world.folder)) == before
        assert watcher.shown == []
        assert same_study(world, plain)

    def test_what_arrived_is_where_the_sampler_fails(self, world: World, plain: World) -> None:
        with replace(world, make=Failing).launched() as (driver, _, _, _):
            results = [answer(task) for task in driver.step([], Seen())]
            with pytest.raises(ArithmeticError, match="no luck with 8"):
                driver.step(results, Seen())
        rows = rows_of(world.folder)
        assert [row.state != "RUNNING" for row in rows] == [True] * WINDOW + [False] * 3
        assert same_study(world, plain)


def whole(folder: Path, **changed: Any) -> World:
    """The same search that nothing disturbed."""
    folder.mkdir(exist_ok=True)
    made = World(folder, **changed)
    made.search()
    return made


def same_study(world: World, other: World) -> bool:
    """Whether a search, ended now, comes to the study of another one."""
    world.search()
    one, two = ((rows_of(w.folder), attrs_of(w.folder), outcomes_of(w.folder)) for w in (world, other))
    return one == two


class TestResumed:
    def test_what_was_asked_and_not_told_is_given_again_under_its_number(self, world: World) -> None:
        with world.launched() as (driver, _, _, _):
            results = [answer(task) for task in driver.step([], Seen())]
            before = driver.step(results[:2], Seen())
        with world.launched() as (driver, _, trials, _):
            again = driver.step([], Seen())
            assert (trials.told, trials.count) == (2, 7)
            assert [task.number for task in again] == [2, 3, 4, 5, 6]
            assert [task.policy for task in again[3:]] == [task.policy for task in before]
            assert [answer(task) for task in again[:3]] == results[2:]
            assert [row.state for row in rows_of(world.folder)[2:]] == ["RUNNING"] * 5

    def test_what_continues_another_trial_takes_over_its_scores(self, tmp_path: Path) -> None:
        world = World(tmp_path, sampler="front", trials=40, first=3)
        answers = world.search()
        rows = rows_of(tmp_path)
        continued = [row for row in rows if "continues" in row.attrs]
        assert continued
        for row in continued:
            before = rows[row.attrs["continues"]]
            assert row.params == before.params
            assert row.rungs[: len(before.rungs)] == before.rungs
            assert len(row.rungs) > len(before.rungs)
            assert row.number in answers

    @pytest.mark.parametrize("distilled", [True, False])
    @pytest.mark.parametrize("sampler", ["random", "front"])
    def test_neither_arrivals_nor_kills_change_a_study(self, tmp_path: Path, sampler: str, distilled: bool) -> None:
        kind: dict[str, Any] = {
            "sampler": sampler,
            "space": space_of(3 if distilled else 2, distilled=distilled),
            "first": 3,
        }
        undisturbed = whole(tmp_path / "whole", **kind)
        expected = rows_of(undisturbed.folder)
        for seed in range(2):
            folder = tmp_path / str(seed)
            folder.mkdir()
            world = World(folder, **kind)
            world.search(draw=random.Random(seed), kill=0.2)
            assert rows_of(folder) == expected
            assert attrs_of(folder) == attrs_of(undisturbed.folder)
            assert outcomes_of(folder) == outcomes_of(undisturbed.folder)


def patience_of() -> dict[str, Any]:
    return {"candidates": 6, "growth": 0.01}


class Told:
    """As the hypervolume takes it."""

    def __init__(self, row: Row) -> None:
        self.trial, self.accuracy, self.bytes = row.number, row.values[0], int(row.values[1])


class TestPatience:
    def end_of(self, rows: list[Row]) -> int:
        """After how many told trials the front has stood still, by the definition."""
        heights = [hypervolume([Told(row) for row in rows[:k] if row.values], BOX) for k in range(len(rows) + 1)]
        return next(k for k in range(6, len(rows) + 1) if heights[k] - heights[k - 6] <= 0.01)

    def test_it_ends_the_search_and_it_stays_ended(self, tmp_path: Path) -> None:
        patient = whole(tmp_path / "patient", trials=60)
        world = World(tmp_path, trials=60, patience=patience_of())
        watcher = Seen()
        with world.launched() as (driver, _, trials, _):
            results: list[Result] = []
            while not driver.finished:
                results = [answer(task) for task in driver.step(results, watcher)]
            assert (trials.told, trials.count) == (driver.budget, driver.budget)
            ends = driver.ends
        rows = rows_of(patient.folder)
        told = self.end_of(rows)
        assert told + WINDOW < 60
        assert rows_of(tmp_path) == rows[: driver.budget]
        assert driver.budget == told + WINDOW
        assert [line for line in watcher.said if "failed" not in line] == [ends]
        assert f"the study ends with {driver.budget} trials" in ends
        with world.launched() as (driver, _, _, _):
            assert (driver.finished, driver.ends, driver.step([], watcher)) == (True, ends, [])
        with replace(world, patience=None).launched() as (driver, _, _, _):
            assert (driver.finished, driver.ends, driver.budget) == (False, "", 60)

    def test_arrivals_and_kills_do_not_move_its_end(self, tmp_path: Path) -> None:
        patient = whole(tmp_path / "patient", trials=60, patience=patience_of())
        for seed in range(2):
            folder = tmp_path / str(seed)
            folder.mkdir()
            World(folder, trials=60, patience=patience_of()).search(draw=random.Random(seed), kill=0.2)
            assert rows_of(folder) == rows_of(patient.folder)
