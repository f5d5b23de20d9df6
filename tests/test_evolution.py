"""Axes of which nothing is known: every value is reached, children are of good parents, and it beats chance."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.pareto import Box, hypervolume
from search.samplers import evolution
from search.samplers.evolution import FEWEST, anywhere, bred
from search.samplers.front_sampler import FrontSampler
from tests.worlds import points

UP, DOWN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
AXES: dict[str, BaseDistribution] = {
    "kind": CategoricalDistribution(("a", "b", "c")),
    "bits": IntDistribution(2, 8),
    "ratio": FloatDistribution(0, 0.9, step=0.3),
    "rate": FloatDistribution(1e-4, 1, log=True),
}


def trial(params: Mapping[str, Any], *values: float, axes: Mapping[str, BaseDistribution] = AXES) -> FrozenTrial:
    return optuna.create_trial(params=dict(params), distributions=dict(axes), values=list(values))


def drawn(axis: BaseDistribution, count: int = 4000) -> list[Any]:
    draw = np.random.default_rng(0)
    return [anywhere(axis, draw) for _ in range(count)]


class TestAnywhere:
    @pytest.mark.parametrize(
        ("axis", "values"),
        [
            (CategoricalDistribution((1, "a", None)), [1, "a", None]),
            (IntDistribution(2, 8), [2, 3, 4, 5, 6, 7, 8]),
            (IntDistribution(-4, 8, step=4), [-4, 0, 4, 8]),
            (FloatDistribution(0, 0.9, step=0.3), [0.0, 0.3, 0.6, 0.9]),
            (IntDistribution(5, 5), [5]),
        ],
    )
    def test_each_value_is_as_likely(self, axis: BaseDistribution, values: list[Any]) -> None:
        found = Counter(round(one, 9) if isinstance(one, float) else one for one in drawn(axis))
        assert found.keys() == set(values)
        assert all(abs(count / 4000 - 1 / len(values)) < 0.03 for count in found.values())

    def test_logarithms_are_even_where_the_axis_is_logarithmic(self) -> None:
        logs = np.log10(drawn(FloatDistribution(1e-4, 1, log=True)))
        assert np.quantile(logs, [0.25, 0.5, 0.75]) == pytest.approx([-3, -2, -1], abs=0.1)
        assert np.median(drawn(IntDistribution(1, 100, log=True))) == pytest.approx(10, abs=1)

    def test_an_axis_that_is_none(self) -> None:
        with pytest.raises(TypeError, match="BaseDistribution"):
            anywhere(type("BaseDistribution", (), {})(), np.random.default_rng(0))


class TestBred:
    def history(self, count: int, seed: int = 0) -> list[FrozenTrial]:
        draw = np.random.default_rng(seed)
        return [
            trial({name: anywhere(axis, draw) for name, axis in AXES.items()}, draw.random(), draw.random())
            for _ in range(count)
        ]

    def test_few_trials_and_trials_of_other_axes_are_not_bred_from(self) -> None:
        few = self.history(FEWEST - 1)
        other = {**AXES, "bits": IntDistribution(2, 9)}
        strange = [trial(one.params, *one.values, axes=other) for one in self.history(20)]
        even = bred(AXES, [], [UP, DOWN], np.random.default_rng(1))
        assert bred(AXES, [*few, *strange], [UP, DOWN], np.random.default_rng(1)) == even
        assert bred(AXES, self.history(FEWEST), [UP, DOWN], np.random.default_rng(1)) != even
        assert bred({}, self.history(20), [UP, DOWN], np.random.default_rng(1)) == {}

    @pytest.mark.parametrize("directions", [(UP, DOWN), (DOWN, UP), (DOWN, DOWN)])
    def test_parents_are_the_quarter_that_the_fewest_dominate(self, directions: tuple[StudyDirection, ...]) -> None:
        trials = self.history(40)

        def better(one: FrozenTrial, other: FrozenTrial) -> bool:
            pairs = [
                (a, b) if way is UP else (b, a) for a, b, way in zip(one.values, other.values, directions, strict=True)
            ]
            return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

        count = [sum(better(other, one) for other in trials) for one in trials]
        found = evolution._best(trials, directions)
        assert len(found) == 10
        assert sorted(count)[:10] == sorted(count[trials.index(one)] for one in found)

    def test_children_take_after_their_parents(self) -> None:
        trials = self.history(40)
        parents = evolution._best(trials, [UP, DOWN])
        draw, inherited, total = np.random.default_rng(0), 0, 0
        for _ in range(200):
            child = bred(AXES, trials, [UP, DOWN], draw)
            assert all(axis._contains(axis.to_internal_repr(child[name])) for name, axis in AXES.items())
            inherited += sum(child["rate"] == one.params["rate"] for one in parents)
            total += 1
        assert 0.6 < inherited / total < 0.9  # one axis of four mutates

    def test_it_beats_chance(self) -> None:
        axes: dict[str, BaseDistribution] = {f"x{i}": FloatDistribution(0, 1) for i in range(8)}
        volumes = []
        for make in (lambda seed: FrontSampler(seed=seed), lambda seed: optuna.samplers.RandomSampler(seed=seed)):
            volumes.append(0.0)
            for seed in range(3):
                study = optuna.create_study(directions=[UP, DOWN], sampler=make(seed))
                for _ in range(150):
                    one = study.ask(axes)
                    x = np.array([one.params[name] for name in axes])
                    lost = float(((x[1:] - 0.3) ** 2).mean())
                    study.tell(one, [max(0.0, x[0] ** 0.5 - 2 * lost), 1000 * (1 + 9 * x[0] + 20 * lost)])
                volumes[-1] += hypervolume(points(study.trials), Box(1000, 10_000, 0, 1)) / 3
        assert volumes[0] > 1.15 * volumes[1]
