"""Trials as the sampler sees them: read once, in any order of telling, against all of them read anew."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from search.samplers.history import History, Look, Scale, Seen
from search.samplers.table import Table
from tests.worlds import world

WORLD = world(0, 2)
TABLES = [Table(WORLD.table.sites, {"c": 0.0}), Table(WORLD.table.sites[:1], {"c": 0.5})]


def trials(count: int = 60) -> list[FrozenTrial]:
    draw = np.random.default_rng(0)
    axes = {**WORLD.axes, "c": FloatDistribution(0, 1)}
    found = []
    for number in range(count):
        params = {name: axis.low for name, axis in WORLD.axes.items()}  # type: ignore[attr-defined]
        params |= {"s0/bits": int(draw.integers(2, 9)), "c": [0.0, 0.5, 0.7][number % 3]}
        values = [round(float(draw.random()), 1), float(draw.integers(1, 20) * 100)]
        state = TrialState.FAIL if number % 7 == 3 else TrialState.COMPLETE
        attrs: dict[str, Any] = {"losses": [0.1, 0.05], "stopped": number % 5 == 0} if number % 2 else {}
        trial = optuna.create_trial(
            params=params,
            distributions=axes,
            values=values if state is TrialState.COMPLETE else None,
            state=state,
            user_attrs=attrs,
        )
        trial.number = number
        found.append(trial)
    return found


def running(trial: FrozenTrial, state: TrialState = TrialState.RUNNING) -> FrozenTrial:
    copy = optuna.trial.FrozenTrial(
        number=trial.number,
        state=state,
        value=None,
        datetime_start=trial.datetime_start,
        datetime_complete=None,
        params=trial.params if state is TrialState.RUNNING else {},
        distributions=trial.distributions if state is TrialState.RUNNING else {},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial.number,
    )
    return copy


def facts(look: Look) -> tuple[object, ...]:
    def of(many: Sequence[Seen]) -> list[object]:
        return [(s.number, s.table, s.choices.tolist(), s.bytes, s.accuracy, s.losses, s.stopped) for s in many]

    return repr(of(look.told)), repr(of(look.running)), repr(of(look.front))


def test_what_is_seen_does_not_depend_on_what_was_seen_before() -> None:
    every, draw, one = trials(), np.random.default_rng(1), History(TABLES)
    found = History(TABLES).look(every).told
    seen_alone = [seen for seen in found if [other.place for other in found].count(seen.place) == 1]
    done: set[int] = set()
    for count in range(1, 61):
        done |= {int(i) for i in draw.integers(0, count, 2)} if count < 50 else {count - 20, count - 1}
        visible = [trial if trial.number in done else running(trial) for trial in every[:count]]
        kept = one.look(visible)
        before = facts(kept)
        assert all((seen.place in kept) == (seen.number < count) for seen in seen_alone)
        assert before == facts(History(TABLES).look(visible))
        assert [s.number for s in kept.told] == sorted(done)
        one.look([*visible, running(every[0])])
        assert facts(kept) == before  # what was given is not changed later


def test_trials_are_read_as_they_are() -> None:
    every = trials()
    look = History(TABLES).look(every)
    for trial, seen in zip(every, look.told, strict=True):
        assert seen.table == [0, 1, -1][trial.number % 3]
        assert seen.complete == (trial.state is TrialState.COMPLETE)
        if seen.complete:
            assert [seen.accuracy, seen.bytes] == trial.values
        if seen.table >= 0:
            wished = TABLES[seen.table].numbers(trial.params)
            assert seen.choices.tolist() == wished
        assert seen.losses == ((0.1, 0.05) if trial.number % 2 else ())
        assert seen.place in look


def test_the_front_is_of_complete_ones_that_were_not_stopped() -> None:
    look = History(TABLES).look(trials())
    known = [one for one in look.told if one.complete and not one.stopped]
    wished = [
        one
        for one in known
        if not any(
            (o.bytes <= one.bytes and o.lack <= one.lack)
            and (o.bytes < one.bytes or o.lack < one.lack or o.number < one.number)
            for o in known
        )
    ]
    assert [one.number for one in look.front] == [one.number for one in sorted(wished, key=lambda one: one.bytes)]


@pytest.mark.parametrize("seed", range(20))
def test_a_front_grows_by_one_trial_at_a_time(seed: int) -> None:
    draw, look, known = np.random.default_rng(seed), Look(), []
    for number in range(40):
        losses = (math.inf if draw.random() < 0.1 else float(draw.integers(1, 12)),)
        known.append(Seen(number, {}, 0, np.zeros(1, np.int64), 0.5, float(draw.integers(1, 12)), losses, False))
        look.add(known[-1])
        front = [
            one
            for one in known
            if not any(
                ((o.bytes, o.number) < (one.bytes, one.number) and o.lack <= one.lack)
                or (o.bytes == one.bytes and o.lack < one.lack)
                for o in known
            )
        ]
        assert look.front == sorted(front, key=lambda one: one.bytes)


def test_what_waits_is_not_seen() -> None:
    every = trials(6)
    waiting = running(every[2], TrialState.WAITING)
    fresh = running(every[5], TrialState.WAITING)
    fresh.state = TrialState.RUNNING  # it was asked a moment ago, and has no parameters yet
    look = History(TABLES).look([*every[:2], waiting, *every[3:5], fresh])
    assert [one.number for one in look.told] == [0, 1, 3, 4]
    assert look.running == []


class TestScale:
    def seen(self, accuracy: float, *losses: float) -> Seen:
        return Seen(0, {}, 0, np.zeros(1, np.int64), accuracy, 100.0, losses, False)

    def test_losses_are_those_of_the_first_rung(self) -> None:
        given = [self.seen(0.5, 0.2, 0.1), self.seen(0.6, 0.4)]
        assert Scale.of(given).logs(given) == pytest.approx(np.log([0.2, 0.4]))

    def test_where_none_was_told_accuracies_stand_for_them(self) -> None:
        given = [self.seen(0.9), self.seen(0.4), self.seen(0.65, 0.0)]
        found = Scale.of(given).logs(given)
        assert np.isfinite(found).all()
        assert found[0] < found[2] < found[1]

    @pytest.mark.parametrize(
        ("odd", "as_if"), [(0.0, 0.05), (-1.0, 0.05), (math.nan, 0.2), (math.inf, 0.2), (-math.inf, 0.05)]
    )
    def test_one_odd_loss_leaves_the_others_as_they_are(self, odd: float, as_if: float) -> None:
        given = [self.seen(0.9, 0.1), self.seen(0.4, odd), self.seen(0.65, 0.2)]
        assert Scale.of(given).logs(given) == pytest.approx(np.log([0.1, as_if, 0.2]))

    def test_one_that_told_none_is_not_known(self) -> None:
        given = [self.seen(0.9, 0.1), self.seen(0.4)]
        assert np.isnan(Scale.of(given).logs(given)).tolist() == [False, True]

    def test_equal_accuracies(self) -> None:
        given = [self.seen(0.5)] * 3
        assert len(set(Scale.of(given).logs(given).tolist())) == 1

    def test_it_does_not_change_with_who_is_looked_at(self) -> None:
        scale = Scale.of([self.seen(0.9), self.seen(0.4), self.seen(0.6)])
        assert scale.logs([self.seen(0.6)])[0] == scale.logs([self.seen(0.9), self.seen(0.6)])[1]


def test_a_bare_trial_is_of_no_table() -> None:
    bare = optuna.create_trial(
        params={"s0/bits": 3}, distributions={"s0/bits": IntDistribution(2, 8)}, values=[0.5, 9.0]
    )
    bare.number = 0
    seen = History(TABLES).look([bare]).told[0]
    assert seen.table == -1
    assert seen.choices.size == 0
