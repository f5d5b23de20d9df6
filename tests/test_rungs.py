"""Who is promoted, raced and kept, and by which history."""

import pickle
import random

import numpy as np
import pytest

from objectives.racing import Outcomes
from objectives.score import RungScore
from search.ranks import Ranks
from search.rungs import CARRIED, REFERENCES, History, Judgement
from tests.test_ranks import dominates, peeled

Score = tuple[float, int]  # accuracy, bytes
RUNGS = 3


def score(rung: int, accuracy: float, size: int) -> RungScore:
    return RungScore(
        rung=rung,
        accuracy=accuracy,
        bytes=size,
        macs=1.0,
        loss=0.1,
        seconds=0.0,
        validation_loss=0.1,
        samples=4,
        forwards=4,
        backwards=0,
    )


def outcomes(mark: float) -> Outcomes:
    return Outcomes(np.full(4, mark, np.float32), np.zeros(4, np.float32))


def history(*told: tuple[RungScore, ...], share: float = 0.33, confidence: float | None = 0.95) -> History:
    made = History(RUNGS, share, confidence)
    for number, rungs in enumerate(told):
        made.tell(number, rungs, (None,) * len(rungs), stopped=False)
    return made


def one_shots(seed: int, count: int = 80) -> list[Score]:
    draw = random.Random(seed)
    return [(draw.randint(0, 40) / 40, draw.randint(1, 200)) for _ in range(count)]


def judged(given: list[Score], **how: float) -> Judgement:
    return history(*((score(0, *one),) for one in given), **how).judges(always=False)


class TestPromotion:
    def test_the_first_ones_all_go_on(self) -> None:
        judgement = history().judges(always=False)
        assert all(judgement.promote(rung, 0.0, 10**9) for rung in range(RUNGS))

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("share", [0.0, 0.2, 0.33, 0.6])
    def test_it_is_by_rank_and_the_share_is_kept(self, seed: int, share: float) -> None:
        given = one_shots(seed)
        judgement, fronts = judged(given, share=share), peeled(given)
        gone = {one for one in given if judgement.promote(0, *one)}
        whole = [front <= gone for front in fronts]
        assert whole == sorted(whole, reverse=True)  # the best ranks
        assert all(front <= gone or not front & gone for front in fronts)
        assert len(gone) <= max(share * len(set(given)), len(fronts[0]))
        more = len(gone) + len(fronts[sum(whole)])
        assert more > max(share * len(set(given)), len(fronts[0]))

    @pytest.mark.parametrize("seed", range(10))
    def test_it_is_monotone_in_accuracy_and_bytes(self, seed: int) -> None:
        judgement = judged(one_shots(seed))
        for size in range(0, 210, 7):
            gone = [judgement.promote(0, level / 80, size) for level in range(81)]
            assert gone == sorted(gone)
            smaller = [judgement.promote(0, level / 80, size - 1) for level in range(81)]
            assert all(small or not large for small, large in zip(smaller, gone, strict=True))

    def test_a_share_of_one_takes_all(self) -> None:
        judgement = judged(one_shots(0), share=1.0)
        assert judgement.promote(0, -1.0, 10**9)

    def test_only_scores_of_the_same_rung_are_compared(self) -> None:
        trained = (score(0, 0.5, 1000), score(1, 0.75, 990), score(2, 0.9, 980))
        judgement = history(trained, share=0.0).judges(always=False)
        assert judgement.promote(0, 0.5, 1000)
        assert judgement.promote(1, 0.75, 990)
        assert not judgement.promote(0, 0.49, 1000)
        assert not judgement.promote(1, 0.74, 990)
        assert judgement.promote(1, 0.1, 989)  # 980 bytes were reached on rung 2 only

    def test_a_score_that_comes_again_counts_once(self) -> None:
        given = one_shots(4)
        one, other = judged(given), judged(given + given[:30] * 3)
        assert one.bars == other.bars

    def test_stopped_ones_count(self) -> None:
        told = history((score(0, 0.9, 100),), share=0.5)
        for i in range(1, 10):
            told.tell(i, (score(0, 0.9 - i / 100, 100 + i),), (None,), stopped=True)
        judgement = told.judges(always=False)
        assert judgement.promote(0, 0.87, 200)  # four dominate it
        assert not judgement.promote(0, 0.86, 200)  # as five of the ten do
        assert not judgement.keep(0.89, 101)

    def test_a_uniform_policy_always_goes_on(self) -> None:
        judgement = history((score(0, 1.0, 1), score(1, 1.0, 1))).judges(always=True)
        assert judgement.promote(0, 0.0, 10**6)
        assert judgement.promote(1, 0.0, 10**6)
        assert judgement.keep(0.0, 10**6)
        assert judgement.race(0, 10**6) is None

    def test_the_rules_are_fixed_when_they_are_asked_for(self) -> None:
        growing = history()
        before = growing.judges(always=False)
        growing.tell(0, (score(0, 1.0, 1),), (None,), stopped=False)
        assert before.promote(0, 0.0, 10)
        assert before.keep(0.0, 10)
        after = growing.judges(always=False)
        assert not after.promote(0, 0.0, 10)
        assert not after.keep(0.0, 10)


class TestKeep:
    def test_what_is_dominated_is_not_kept(self) -> None:
        keep = judged([(0.5, 100), (0.75, 200)]).keep
        assert not keep(0.49, 100)
        assert not keep(0.74, 200)
        assert not keep(0.5, 101)
        assert keep(0.5, 100)  # equal: it may be the same policy's file
        assert keep(0.1, 99)
        assert keep(0.76, 10**6)

    def test_it_looks_at_the_last_rung(self) -> None:
        keep = history((score(0, 0.9, 1000), score(1, 0.5, 900))).judges(always=False).keep
        assert keep(0.6, 1000)
        assert not keep(0.49, 1000)

    @pytest.mark.parametrize("seed", range(20))
    def test_whoever_ends_on_the_front_was_kept(self, seed: int) -> None:
        window, told = 4, one_shots(seed, 40)
        made, kept = history(), []
        for number, one in enumerate(told):
            if number >= window:
                made.tell(number - window, (score(0, *told[number - window]),), (None,), stopped=False)
            kept.append(made.judges(always=False).keep(*one))
        for one, was_kept in zip(told, kept, strict=True):
            assert was_kept or any(dominates(other, one) for other in told)


class TestRaces:
    def test_there_is_none_where_nothing_is_to_be_beaten(self) -> None:
        assert history().judges(always=False).race(0, 10) is None
        judgement = judged([(0.5, 100)])
        assert judgement.race(0, 99) is None
        assert judgement.race(0, 101) is not None
        assert judged([(0.5, 100)], confidence=None).race(0, 101) is None  # type: ignore[arg-type]

    @pytest.mark.parametrize("seed", range(10))
    def test_who_is_beaten_would_neither_go_on_nor_be_on_the_front(self, seed: int) -> None:
        draw = random.Random(seed)
        told = []
        for accuracy, size in one_shots(seed):
            rungs = (score(0, accuracy, size), score(1, min(1.0, accuracy + 0.1), size + draw.randint(-3, 3)))
            told.append(rungs if draw.random() < 0.5 else rungs[:1])
        judgement = history(*told).judges(always=False)
        for rung in range(RUNGS):
            for size in range(0, 210, 5):
                race = judgement.race(rung, size)
                for level in range(81):
                    accuracy = level / 80
                    wanted = judgement.keep(accuracy, size) or (
                        rung < RUNGS - 1 and judgement.promote(rung, accuracy, size)
                    )
                    assert wanted == (race is None or accuracy > race.threshold)

    def test_references_are_the_nearest_of_the_first_ranks(self) -> None:
        told = History(RUNGS, 0.33, 0.95)
        for i in range(10):  # a front of ten, and behind each one that it dominates
            told.tell(2 * i, (score(0, i / 10, 2**i),), (outcomes(i),), stopped=False)
            told.tell(2 * i + 1, (score(0, i / 10 - 0.01, 2**i),), (outcomes(100 + i),), stopped=False)
        race = told.judges(always=False).race(0, 2**8)
        assert race is not None
        assert [one.values[0] for one in race.references] == [8.0, 7.0, 9.0, 6.0, 5.0, 4.0]
        assert len(race.references) == REFERENCES
        assert told.judges(always=False).race(1, 2**8) is None

    def test_those_behind_fill_up_what_the_front_leaves(self) -> None:
        told = History(RUNGS, 0.33, 0.95)
        told.tell(0, (score(0, 0.9, 100),), (outcomes(0),), stopped=False)
        told.tell(1, (score(0, 0.8, 200),), (outcomes(1),), stopped=False)
        told.tell(2, (score(0, 0.7, 300),), (outcomes(2),), stopped=False)  # of rank 3
        race = told.judges(always=False).race(0, 400)
        assert race is not None
        assert [one.values[0] for one in race.references] == [0.0, 1.0]

    def test_who_falls_behind_is_forgotten(self) -> None:
        told = History(RUNGS, 0.33, 0.95)
        for i in range(5):
            told.tell(i, (score(0, i / 10, 100 - i),), (outcomes(i),), stopped=False)
        race = told.judges(always=False).race(0, 100)
        assert race is not None
        assert [one.values[0] for one in race.references] == [4.0, 3.0]

    def test_what_travels_is_bounded(self) -> None:
        told = History(RUNGS, 0.33, 0.95)
        for i in range(100):
            told.tell(i, (score(0, i / 100, 100 + i),), (outcomes(i),), stopped=False)
        judgement = told.judges(always=False)
        sizes = judgement.references[0].bytes
        assert len(sizes) == CARRIED
        assert max(b - a for a, b in zip([100, *sizes], [*sizes, 199], strict=True)) <= 100 // CARRIED + 1

    @pytest.mark.parametrize("seed", range(5))
    def test_what_an_earlier_history_would_have_kept_holds_all_that_is_used(self, seed: int) -> None:
        """So it does not matter how much of it was visible when the outcomes were stored."""
        given = one_shots(seed)
        early, late = History(RUNGS, 0.33, 0.95), History(RUNGS, 0.33, 0.95)
        for number, one in enumerate(given):
            if late.keeps_outcomes(0, *one):
                assert early.keeps_outcomes(0, *one)
            late.tell(number, (score(0, *one),), (outcomes(number),), stopped=False)
            if number >= 8:
                early.tell(number - 8, (score(0, *given[number - 8]),), (None,), stopped=False)


class TestHistory:
    @pytest.mark.parametrize("number", [0, 1])
    def test_a_trial_is_told_once_and_in_turn(self, number: int) -> None:
        told = history((score(0, 0.5, 1),), (score(0, 0.6, 1),))
        with pytest.raises(ValueError, match=f"trial {number} told out of turn: the last one was 1"):
            told.tell(number, (score(0, 0.5, 1),), (None,), stopped=False)

    def test_numbers_of_failed_trials_may_be_left_out(self) -> None:
        told = history((score(0, 0.5, 1),))
        told.tell(5, (score(0, 0.6, 1),), (None,), stopped=False)
        assert told.rank(0, 0.55, 1) == 2

    def test_a_judgement_travels(self) -> None:
        told = History(RUNGS, 0.33, 0.95)
        for number, one in enumerate(one_shots(1)):
            told.tell(number, (score(0, *one), score(1, *one)), (outcomes(number), None), stopped=False)
        judgement = told.judges(always=False)
        other: Judgement = pickle.loads(pickle.dumps(judgement))  # as Ray sends it
        assert (other.bars, other.front) == (judgement.bars, judgement.front)
        for size in range(0, 210, 20):
            here, there = judgement.race(0, size), other.race(0, size)
            assert (here is None) == (there is None)
            if here is not None and there is not None:
                assert here.threshold == there.threshold
                for mine, theirs in zip(here.references, there.references, strict=True):
                    assert np.array_equal(mine.values, theirs.values)

    def test_ranks_are_those_of_the_rung(self) -> None:
        given = one_shots(2)
        told, ranks = history(*((score(0, *one), score(1, 1.0, 1)) for one in given)), Ranks()
        for one in given:
            ranks.add(*one)
        assert all(told.rank(0, *one) == ranks.rank(*one) for one in given)
