"""Ranks against peeling front after front, and the staircases that tell them."""

import random
import time

import pytest

from search.ranks import Ranks, Staircase

Score = tuple[float, int]  # accuracy, bytes
KINDS = ["coarse", "fine", "rising", "falling", "one size"]


def scores(seed: int, kind: str, most: int = 60) -> list[Score]:
    draw = random.Random(seed)
    count = draw.randint(0, most)
    match kind:
        case "coarse":
            return [(draw.randint(0, 12) / 12, draw.randint(1, 30)) for _ in range(count)]
        case "rising":  # each dominates those before it
            return [(i / count, count - i) for i in range(count)]
        case "falling":
            return [(-i / count, i) for i in range(1, count)]
        case "one size":
            return [(draw.randint(0, 30) / 30, 7) for _ in range(count)]
        case _:
            return [(draw.random(), draw.randint(1, 10**6)) for _ in range(count)]


def dominates(one: Score, other: Score) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def peeled(given: list[Score]) -> list[set[Score]]:
    """The definition of Deb et al.: the front, then the front of the rest, and so on."""
    left, found = set(given), []
    while left:
        front = {one for one in left if not any(dominates(other, one) for other in left)}
        found.append(front)
        left -= front
    return found


def chain(given: list[Score], score: Score) -> int:
    """One more than the longest chain of scores that dominate it."""
    return 1 + max((chain(given, other) for other in given if dominates(other, score)), default=0)


def ranked(given: list[Score]) -> Ranks:
    ranks = Ranks()
    for score in given:
        ranks.add(*score)
    return ranks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
class TestRanks:
    def test_they_are_those_of_peeling_after_each_score(self, kind: str, seed: int) -> None:
        given, ranks = scores(seed, kind), Ranks()
        for i, score in enumerate(given):
            ranks.add(*score)
            found = [set(zip(stairs.accuracy, stairs.bytes, strict=True)) for stairs in ranks]
            assert found == peeled(given[: i + 1])
        assert len(ranks) == len(set(given))

    def test_a_new_score_has_the_rank_that_it_would_have(self, kind: str, seed: int) -> None:
        given = scores(seed, kind, most=12)
        ranks = ranked(given)
        for new in [*scores(seed + 100, kind, most=12), *given]:
            assert ranks.rank(*new) == chain(given, new)
            assert new in peeled([*given, new])[ranks.rank(*new) - 1]

    def test_a_rank_is_above_k_where_the_staircase_of_k_dominates(self, kind: str, seed: int) -> None:
        given = scores(seed, kind)
        ranks = ranked(given)
        for new in [*scores(seed + 100, kind), *given]:
            for k, stairs in enumerate(ranks, start=1):
                assert stairs.dominates(*new) == (ranks.rank(*new) > k)
                assert ranks.is_within(k, *new) == (ranks.rank(*new) <= k)
            assert ranks.is_within(len(given) + 1, *new)

    def test_the_last_within_a_share_is_the_largest_of_which_no_more_have_it(self, kind: str, seed: int) -> None:
        given = scores(seed, kind)
        fronts = peeled(given)
        for share in (0.0, 0.1, 0.33, 0.5, 1.0):
            most = max(share * len(set(given)), len(fronts[0])) if fronts else 0
            fit = [k for k in range(1, len(fronts) + 1) if sum(map(len, fronts[:k])) <= most]
            assert ranked(given).last_within(share) == max(fit, default=0)


@pytest.mark.parametrize("seed", range(20))
class TestStaircase:
    def test_the_bar_is_where_domination_ends(self, seed: int) -> None:
        stairs = ranked(scores(seed, "coarse")).of_rank(1)
        for size in range(32):
            bar = stairs.bar(size)
            levels = [i / 24 for i in range(-1, 26)]
            assert [level for level in levels if not stairs.dominates(level, size)] == [
                level for level in levels if bar is None or level > bar
            ]

    def test_less_accuracy_or_more_bytes_never_help(self, seed: int) -> None:
        stairs = ranked(scores(seed, "coarse")).of_rank(2)
        for size in range(1, 32):
            for level in range(13):
                if stairs.dominates(level / 12, size):
                    assert stairs.dominates((level - 1) / 12, size)
                    assert stairs.dominates(level / 12, size + 1)


def test_nothing_dominates_where_nothing_is() -> None:
    assert not Staircase().dominates(-1.0, 10**9)
    assert Staircase().bar(10**9) is None
    assert Ranks().of_rank(1) == Staircase()
    assert Ranks().last_within(1.0) == 0


def test_an_addition_to_many_is_cheap() -> None:
    draw = random.Random(3)
    given = [(draw.random(), draw.randint(1, 10**6)) for _ in range(5000)]
    ranks = ranked(given[:-500])
    clock = time.process_time()
    for score in given[-500:]:
        ranks.add(*score)
    assert (time.process_time() - clock) / 500 < 1e-3
