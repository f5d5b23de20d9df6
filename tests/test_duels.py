"""What is said of the uniform policies, on validation and on the test split, and of members within noise."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from search.duels import beaten_sentence, beaten_uniform, sentences, unbeaten_on_test
from search.front import Front, Point, front
from search.storage.reading import Candidate, OnRung
from tests.studies import write_made_up

NOTHING: Mapping[int, int] = {}


@pytest.fixture
def found(tmp_path: Path) -> Front:
    return front("made-up", write_made_up(tmp_path))


def candidate(*steps: OnRung, stopped: bool = False) -> Candidate:
    """Trial 4 with these scores, the last of which may be an estimate."""
    last = steps[-1]
    full = steps[:-1] if stopped else steps
    return Candidate(4, last.bytes, last.accuracy, "sampler", last.rung, stopped, full)


def on_test(found: Front, tests: dict[int, float], noise: Mapping[int, int] = NOTHING) -> Front:
    """The same front, with these accuracies on the test split, by trial."""

    def with_test(points: tuple[Point, ...]) -> tuple[Point, ...]:
        return tuple(
            replace(
                one,
                test_accuracy=tests.get(one.trial),
                test_accuracy_ci95=(0.0, 1.0) if one.trial in tests else None,
                within_noise_of=noise.get(one.trial),
            )
            for one in points
        )

    points = with_test(found.points)
    return replace(
        found,
        points=points,
        uniform=with_test(found.uniform),
        compared=all(point.test_accuracy is not None for point in points),
    )


class TestOnValidation:
    def test_it_is_said_which_the_search_did_not_beat(self, found: Front) -> None:
        assert [(duel.uniform.trial, duel.by and duel.by.trial) for duel in beaten_uniform(found)] == [
            (1, None),
            (0, 3),
        ]
        assert beaten_sentence(found).startswith("not beaten: uniform 4 bits (trial 1); 1 of 2")
        easy = replace(found, uniform=found.uniform[2:])
        assert beaten_sentence(easy).startswith("every uniform policy within 3 points of the float model is beaten")
        assert beaten_sentence(replace(found, uniform=())).startswith("no uniform policy is within 3 points")

    def test_a_candidate_that_was_trained_longer_is_compared_as_it_was_on_the_rung(self, found: Front) -> None:
        one_shot = replace(found.uniform[1], rung=0, accuracy=0.96)  # trial 4 has 0.80 there, not 0.95
        trained = candidate(OnRung(0, 60_000, 0.80), OnRung(1, 60_000, 0.97))
        duels = beaten_uniform(replace(found, uniform=(one_shot,), complete=(trained,)))
        assert duels[0].by is None

    def test_an_estimate_beats_nobody(self, found: Front) -> None:
        """Trial 4 is smaller than the 4 bits of trial 1; it would beat them with 0.96 on rung 1, were that no guess."""
        steps = OnRung(0, 60_000, 0.8), OnRung(1, 60_000, 0.96)
        for stopped, by in ((False, 4), (True, None)):
            duel, _ = beaten_uniform(replace(found, complete=(candidate(*steps, stopped=stopped),)))
            assert (duel.by and duel.by.trial) == by
        one_shot = replace(found.uniform[1], rung=0)  # the rung before was scored in full
        lucky = candidate(OnRung(0, 60_000, 0.97), steps[1], stopped=True)
        assert [duel.by for duel in beaten_uniform(replace(found, uniform=(one_shot,), complete=(lucky,)))] == [lucky]
        only = candidate(OnRung(0, 60_000, 0.97), stopped=True)  # stopped on its first
        assert [duel.by for duel in beaten_uniform(replace(found, uniform=(one_shot,), complete=(only,)))] == [None]


class TestOnTheTestSplit:
    def test_smaller_members_that_are_as_accurate_match_a_uniform_policy(self, found: Front) -> None:
        """Trials 1 and 0 are uniform; of the front 2 and 1 are uniform, 4 is smaller than both, 3 than 0."""
        scores = {2: 0.99, 4: 0.94, 1: 0.95, 3: 0.96, 0: 0.96}
        assert [one.trial for one in unbeaten_on_test(on_test(found, scores)) or ()] == [1]
        assert [one.trial for one in unbeaten_on_test(on_test(found, {**scores, 3: 0.959})) or ()] == [1, 0]
        assert unbeaten_on_test(on_test(found, {**scores, 4: 0.97})) == []

    @pytest.mark.parametrize("missing", [4, 0])
    def test_nothing_is_said_before_all_are_scored(self, found: Front, missing: int) -> None:
        scores = {2: 0.9, 4: 0.94, 1: 0.95, 3: 0.96, 0: 0.96}
        del scores[missing]
        assert unbeaten_on_test(on_test(found, scores)) is None
        assert unbeaten_on_test(replace(found, points=())) is None


class TestSentences:
    def test_three_say_it_all(self, found: Front) -> None:
        scores = {2: 0.3, 4: 0.94, 1: 0.95, 3: 0.96, 0: 0.96}
        first, second, third = sentences(on_test(found, scores, {1: 4, 3: 4}))
        assert first == beaten_sentence(found)
        assert second == "on the test split no smaller member of the front is as accurate as uniform 4 bits (trial 1)"
        assert third.startswith("within noise (~): 2 of 4 members are not shown to be more accurate on the test split")

    def test_when_all_is_well(self, found: Front) -> None:
        _, second, third = sentences(on_test(found, {2: 0.3, 4: 0.95, 1: 0.95, 3: 0.96, 0: 0.96}))
        assert second.startswith("on the test split each of them has a smaller member of the front")
        assert third.startswith("every member is more accurate than each smaller one on the test split")

    def test_what_is_not_known_is_not_said(self, found: Front) -> None:
        assert list(sentences(found)) == [beaten_sentence(found)]
        assert list(sentences(replace(found, points=(), uniform=()))) == [
            "no uniform policy is within 3 points of the float model"
        ]

    def test_a_metric_of_one_number_leaves_noise_unknown(self, found: Front) -> None:
        scored = on_test(found, {2: 0.3, 4: 0.94, 1: 0.95, 3: 0.96, 0: 0.96})
        bare = replace(scored, points=tuple(replace(one, test_accuracy_ci95=None) for one in scored.points))
        assert list(sentences(bare))[-1].startswith("the metric gives no outcome per sample")
