"""What ends a search: clocks in every time zone, patience against its definition, and a focus that moves."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from search.config_sections import BudgetConfig, PatienceConfig
from search.goals import Deadline, Focus, Patience, check_goals, ends_words, moment_of
from search.pareto import Box, hypervolume, reference_box
from spaces.errors import ConfigError

BOX = reference_box(10_000, 800_000, 0.1)
Values = tuple[float, float] | None


@dataclass(frozen=True)
class Dot:
    trial: int
    bytes: int
    accuracy: float


@pytest.fixture(params=["UTC", "Europe/Paris", "Asia/Kolkata", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from in_zone(request.param, monkeypatch)


@pytest.fixture
def paris(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from in_zone("Europe/Paris", monkeypatch)


def in_zone(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", name)
        time.tzset()
        yield name
    time.tzset()


class TestMoment:
    @pytest.mark.parametrize("until", ["00:00", "6:30", "18:00", "23:59:59"])
    def test_it_is_the_next_such_local_time(self, zone: str, until: str) -> None:
        start = datetime(2026, 2, 27, tzinfo=UTC)
        for minutes in range(0, 3 * 24 * 60, 97):
            now = start + timedelta(minutes=minutes)
            moment = moment_of(until, now)
            assert timedelta() < moment - now <= timedelta(days=1)
            assert moment.strftime("%H:%M:%S").startswith(f"{until:0>5}" if len(until) < 8 else until)
            assert moment.tzinfo is not None

    @pytest.mark.usefixtures("paris")
    def test_a_time_that_is_now_is_tomorrows(self) -> None:
        now = datetime(2026, 6, 1, 16, 0, tzinfo=UTC)  # 18:00 in Paris
        assert moment_of("18:00", now) == now + timedelta(days=1)
        assert moment_of("18:00", now - timedelta(seconds=1)) == now

    @pytest.mark.usefixtures("paris")
    def test_days_on_which_clocks_are_moved(self) -> None:
        evening = datetime(2026, 3, 28, 20, 0, tzinfo=UTC)  # the night has 23 hours
        assert moment_of("18:00", evening) == datetime(2026, 3, 29, 16, 0, tzinfo=UTC)
        night = datetime(2026, 10, 25, 0, 45, tzinfo=UTC)  # 02:45; 02:30 was, and comes once more
        assert moment_of("02:30", night) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)

    @pytest.mark.usefixtures("paris")
    def test_a_date_and_time_is_local_unless_it_says_where(self) -> None:
        now = datetime(2026, 6, 1, tzinfo=UTC)
        for until in ("2026-06-02 18:00", "2026-06-02T18:00:00", "2026-06-02T12:00-04:00", "2026-06-02T16:00Z"):
            assert moment_of(until, now) == datetime(2026, 6, 2, 16, 0, tzinfo=UTC)

    @pytest.mark.usefixtures("paris")
    def test_one_that_has_passed_is_refused(self) -> None:
        now = datetime(2026, 6, 2, 16, 0, tzinfo=UTC)
        with pytest.raises(ConfigError) as caught:
            moment_of("2026-06-02 18:00", now)
        message = str(caught.value)
        assert message.startswith("budget.until: given '2026-06-02 18:00', which has passed (it is 2026-06-02 18:00)")
        assert "give a later time, or null" in message


class TestDeadline:
    def test_without_limits_it_never_comes(self) -> None:
        deadline = Deadline(None, None, datetime.now(UTC))
        deadline.start()
        assert not deadline.passed

    def test_seconds_count_from_the_start_of_the_search(self) -> None:
        deadline = Deadline(0.02, None, datetime.now(UTC))
        time.sleep(0.04)
        assert not deadline.passed
        deadline.start()
        time.sleep(0.04)
        assert deadline.passed

    @pytest.mark.parametrize(("timeout", "seconds"), [(None, 1.0), (3600.0, 1.0), (1.0, 3600.0)])
    def test_the_first_one_counts(self, timeout: float | None, seconds: float) -> None:
        now = datetime.now(UTC)
        deadline = Deadline(timeout, (now + timedelta(seconds=seconds)).isoformat(), now)
        deadline.start()
        assert not deadline.passed
        time.sleep(1.1)
        assert deadline.passed


def told_at_random(seed: int, count: int) -> list[Values]:
    """Made-up results: some failures and repeats, sizes below and above the box, improving ever more rarely."""
    draw = random.Random(seed)
    return [
        None if draw.random() < 0.1 else (draw.randrange(0, 101) / 100, float(draw.randrange(5_000, 400_000, 5_000)))
        for _ in range(count)
    ]


def by_definition(told: Sequence[Values], first: int, settings: PatienceConfig) -> int | None:
    """The smallest number of told trials after which the hypervolume has stood still, by the words of the docs."""
    dots = [None if one is None else Dot(i, int(one[1]), one[0]) for i, one in enumerate(told)]
    height = [hypervolume([dot for dot in dots[:k] if dot], BOX) for k in range(len(dots) + 1)]
    for k in range(first + settings.candidates, len(dots) + 1):
        if height[k] - height[k - settings.candidates] <= settings.growth:
            return k
    return None


def stopped(told: Sequence[Values], first: int, settings: PatienceConfig | None) -> int | None:
    patience = Patience(settings, BOX)
    for number, values in enumerate(told):
        patience.tell(values, first=number < first)
    return patience.stopped


class TestPatience:
    @pytest.mark.parametrize("seed", range(40))
    def test_it_ends_where_the_definition_says(self, seed: int) -> None:
        draw = random.Random(seed)
        told = told_at_random(seed, 150)
        first = draw.choice([0, 1, 7, 30])
        settings = PatienceConfig(candidates=draw.choice([1, 2, 5, 20, 60]), growth=draw.choice([0.0, 0.001, 0.03]))
        expected = by_definition(told, first, settings)
        assert stopped(told, first, settings) == expected
        for length in range(0, 150, 7):  # whatever was told later, or is told after a restart, does not change it
            assert stopped(told[:length], first, settings) == (expected if expected and expected <= length else None)

    def test_first_candidates_do_not_count(self) -> None:
        settings = PatienceConfig(candidates=3, growth=0.0)
        flat: list[Values] = [(0.5, 50_000.0)] * 20
        assert [stopped(flat, first, settings) for first in (0, 1, 10, 17, 18)] == [4, 4, 13, 20, None]

    @pytest.mark.parametrize(("growth", "expected"), [(0.25, 2), (0.2499, None)])
    def test_growth_must_be_more_than_was_said(self, growth: float, expected: int | None) -> None:
        patience = Patience(PatienceConfig(candidates=1, growth=growth), Box(1, 16, 0.0, 1.0))
        patience.tell((0.25, 1.0), first=True)  # at the left edge the hypervolume is the accuracy
        patience.tell((0.5, 1.0), first=False)
        assert patience.stopped == expected

    def test_a_longer_patience_ends_no_sooner(self) -> None:
        for seed in range(10):
            told = told_at_random(seed, 200)
            ends = [stopped(told, 10, PatienceConfig(candidates=n, growth=0.001)) or 201 for n in (5, 10, 20, 40, 80)]
            assert all(a <= b for a, b in pairwise(ends))

    def test_none_never_stops(self) -> None:
        assert stopped([(0.5, 50_000.0)] * 500, 0, None) is None
        assert Patience(None, BOX).trials(120, 8) == 120

    def test_it_says_when_and_how_many_trials_are_left(self) -> None:
        patience = Patience(PatienceConfig(candidates=2, growth=0.01), BOX)
        assert (patience.words, patience.trials(120, 8)) == ("", 120)
        for _ in range(3):
            patience.tell((0.5, 50_000.0), first=False)
        assert patience.words == (
            "budget.patience: up to trial 2 the front's hypervolume has not grown by more than 0.01 in 2 candidates"
        )
        assert [patience.trials(most, 8) for most in (120, 11, 10, 1)] == [11, 11, 10, 1]

    def test_it_costs_little_after_many_trials(self) -> None:
        told = told_at_random(1, 20_000)
        patience = Patience(PatienceConfig(candidates=20_000), BOX)
        clock = time.process_time()
        for values in told:
            patience.tell(values, first=False)
        assert time.process_time() - clock < 4  # 0.2 ms each; looking at all that was told takes minutes


class TestFocus:
    def test_it_moves_from_launch_to_launch(self) -> None:
        focus = Focus().then(0, None)
        assert focus == Focus()
        focus = focus.then(10, (40, 120)).then(15, (40, 120)).then(20, (30, 60)).then(33, None).then(50, None)
        assert focus.document() == [[10, 40, 120], [20, 30, 60], [33, None, None]]
        spans = {0: None, 9: None, 10: (40, 120), 19: (40, 120), 20: (30, 60), 32: (30, 60), 33: None, 99: None}
        assert {number: focus.at(number) for number in spans} == spans
        assert Focus.read(focus.document()) == focus

    def test_a_launch_that_asked_nothing_leaves_nothing(self) -> None:
        focus = Focus().then(10, (40, 120))
        assert focus.then(10, (50, 60)).document() == [[10, 50, 60]]
        assert focus.then(10, None) == Focus()
        assert focus.then(20, None).then(20, (40, 120)) == focus


class TestCheck:
    @pytest.mark.parametrize("focus", [None, (0, 10_000), (5_000, 20_000), (700_000, 10**9), (0, 10**9)])
    def test_a_focus_with_files_in_it_is_taken(self, focus: tuple[int, int] | None) -> None:
        check_goals(BudgetConfig(focus=focus, patience=PatienceConfig()), BOX, 800_000, 0.98)

    @pytest.mark.parametrize("focus", [(0, 9_999), (800_000, 10**9)])
    def test_one_without_files_is_refused_with_the_range_there_is(self, focus: tuple[int, int]) -> None:
        with pytest.raises(ConfigError) as caught:
            check_goals(BudgetConfig(focus=focus), BOX, 800_000, 0.98)
        assert str(caught.value).startswith(f"budget.focus: given {focus[0]}..{focus[1]} bytes, but ")
        assert "10000..800000" in str(caught.value)

    def test_patience_with_what_cannot_grow_is_refused(self) -> None:
        budget = BudgetConfig(patience=PatienceConfig())
        with pytest.raises(ConfigError, match=r"budget.patience: given 40 .*200,000 bytes.*300,000: allow smaller"):
            check_goals(budget, reference_box(300_000, 800_000, 0.1), 800_000, 0.98)
        with pytest.raises(ConfigError, match=r"chance 0, and the float model's is -0\.2000"):
            check_goals(budget, reference_box(10_000, 800_000, 0.0), 800_000, -0.2)
        check_goals(BudgetConfig(), reference_box(300_000, 800_000, 0.0), 800_000, -0.2)


def test_what_ends_a_search_in_words() -> None:
    assert ends_words({"trials": 9}) == "after 9 trials"  # as stored before there were other ends
    budget = BudgetConfig(
        trials=9, timeout=90.0, until="18:00", patience=PatienceConfig(candidates=7), focus=(40_000, 120_000)
    )
    assert ends_words(budget.model_dump(mode="json")) == (
        "after 9 trials, or after 90 s of a launch, or at 18:00, or when the front's hypervolume has not grown by more "
        "than 0.001 in 7 candidates; it aims at 40,000 to 120,000 bytes"
    )
