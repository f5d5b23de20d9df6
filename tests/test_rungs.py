"""Staircases against their definition, and who is promoted and kept by which history."""

import random

import pytest

from objectives.score import RungScore
from search.rungs import History, Keep, Promotion, Staircase


def points(seed: int) -> list[tuple[int, float]]:
    draw = random.Random(seed)
    return [(draw.randint(1, 30), draw.randint(0, 12) / 12) for _ in range(draw.randint(0, 40))]


def staircase(given: list[tuple[int, float]]) -> Staircase:
    built = Staircase()
    for size, accuracy in given:
        built = built.add(size, accuracy)
    return built


class TestStaircase:
    @pytest.mark.parametrize("seed", range(40))
    def test_it_answers_as_if_all_points_were_looked_at(self, seed: int) -> None:
        given = points(seed)
        built = staircase(given)
        for size in range(32):
            assert built.best(size) == max((a for b, a in given if b <= size), default=None)

    @pytest.mark.parametrize("seed", range(40))
    def test_it_holds_the_front_and_nothing_else(self, seed: int) -> None:
        given = points(seed)
        front = {(b, a) for b, a in given if not any(x <= b and y >= a and (x, y) != (b, a) for x, y in given)}
        built = staircase(given)
        assert list(zip(built.bytes, built.accuracy, strict=True)) == sorted(front)
        assert built == staircase(given[::-1])

    def test_adding_leaves_the_old_one_as_it_was(self) -> None:
        old = staircase([(10, 0.5)])
        assert old.add(5, 0.6) == staircase([(5, 0.6)])
        assert (old.bytes, old.accuracy) == ((10,), (0.5,))


def score(rung: int, accuracy: float, size: int) -> RungScore:
    return RungScore(rung=rung, accuracy=accuracy, bytes=size, macs=1.0, loss=0.1, seconds=0.0)


def history(*told: tuple[RungScore, ...], margin: float = 0.02) -> History:
    made = History(3, margin)
    for rungs in told:
        made.tell(rungs)
    return made


class TestPromotion:
    def test_the_first_ones_all_go_on(self) -> None:
        promotion, keep = history().judges(always=False)
        assert all(promotion(rung, 0.0, 10**9) for rung in range(3))
        assert keep(0.0, 10**9)

    def test_a_margin_below_the_front_is_enough(self) -> None:
        promotion, _ = history((score(0, 0.75, 1000),), margin=0.25).judges(always=False)
        assert promotion(0, 0.5, 1000)
        assert not promotion(0, 0.49, 1000)
        assert promotion(0, 0.0, 999)  # nothing so small is known

    def test_only_scores_of_the_same_rung_are_compared(self) -> None:
        trained = (score(0, 0.5, 1000), score(1, 0.75, 990), score(2, 0.9, 980))
        promotion, _ = history(trained, margin=0.0).judges(always=False)
        assert promotion(0, 0.5, 1000)
        assert promotion(1, 0.75, 990)
        assert not promotion(0, 0.49, 1000)
        assert not promotion(1, 0.74, 990)
        assert promotion(1, 0.1, 989)  # 980 bytes were reached on rung 2 only

    def test_a_uniform_policy_always_goes_on(self) -> None:
        told = (score(0, 1.0, 1), score(1, 1.0, 1))
        promotion, keep = history(told).judges(always=True)
        assert promotion(0, 0.0, 10**6)
        assert promotion(1, 0.0, 10**6)
        assert keep(0.0, 10**6)

    def test_the_rules_are_fixed_when_they_are_asked_for(self) -> None:
        growing = history(margin=0.0)
        promotion, keep = growing.judges(always=False)
        growing.tell((score(0, 1.0, 1),))
        assert promotion(0, 0.0, 10)
        assert keep(0.0, 10)
        later, keep_later = growing.judges(always=False)
        assert not later(0, 0.0, 10)
        assert not keep_later(0.0, 10)


class TestKeep:
    def test_what_is_dominated_is_not_kept(self) -> None:
        keep = Keep(staircase([(100, 0.5), (200, 0.75)]))
        assert not keep(0.49, 100)
        assert not keep(0.74, 200)
        assert keep(0.5, 100)  # equal: it may be the same policy's file
        assert keep(0.1, 99)
        assert keep(0.76, 10**6)

    def test_it_looks_at_the_last_rung(self) -> None:
        _, keep = history((score(0, 0.9, 1000), score(1, 0.5, 900))).judges(always=False)
        assert keep(0.6, 1000)
        assert not keep(0.49, 1000)

    @pytest.mark.parametrize("seed", range(20))
    def test_whoever_ends_on_the_front_was_kept(self, seed: int) -> None:
        window, told = 4, points(seed)
        made, kept = history(), []
        for number, (size, accuracy) in enumerate(told):
            if number >= window:
                before, best = told[number - window][0], told[number - window][1]
                made.tell((score(0, best, before),))
            _, keep = made.judges(always=False)
            kept.append(keep(accuracy, size))
        for (size, accuracy), was_kept in zip(told, kept, strict=True):
            dominated = any(b <= size and a >= accuracy and (b, a) != (size, accuracy) for b, a in told)
            assert was_kept or dominated


def test_promotions_and_keeps_are_values() -> None:
    front = staircase([(1, 0.5)])
    assert Promotion((front,), 0.0) == Promotion((staircase([(1, 0.5)]),), 0.0)
    assert Keep(front) == Keep(staircase([(1, 0.5)]))
