"""How candidates are trained: what is learned from those that were, and from nothing else."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from search.samplers.history import Seen
from search.samplers.recipe import FEWEST, recipe

AXES = {"temperature": FloatDistribution(1, 16, log=True), "alpha": FloatDistribution(0, 1)}


def left(params: Mapping[str, float]) -> float:
    """The share of its loss that a model keeps after training: least at temperature 4 and alpha 0.8."""
    away = (math.log(params["temperature"] / 4) / math.log(4)) ** 2 + 2 * (params["alpha"] - 0.8) ** 2
    return 0.3 * math.exp(away)


def seen(number: int, params: Mapping[str, float], losses: Sequence[float]) -> Seen:
    return Seen(number, params, 0, np.zeros(1, np.int64), 0.5, 1000.0, tuple(losses), False)


def told(count: int, seed: int = 0) -> list[Seen]:
    """Models of any loss, trained at any recipe."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        params = {"temperature": float(16 ** draw.random()), "alpha": float(draw.random())}
        begun = float(np.exp(draw.normal(-2, 1)))
        found.append(seen(number, params, (begun, begun * left(params) * float(np.exp(draw.normal(0, 0.05))))))
    return found


def asked(trials: Sequence[Seen], count: int = 60) -> list[dict[str, float]]:
    return [recipe(AXES, trials, np.random.default_rng(i)) for i in range(count)]


def test_it_finds_what_helps() -> None:
    even, learned = asked([]), asked(told(40))
    assert np.median([left(one) for one in learned]) < 0.8 * np.median([left(one) for one in even])
    assert np.median([one["temperature"] for one in learned]) == pytest.approx(4, rel=0.35)
    assert np.median([one["alpha"] for one in learned]) == pytest.approx(0.8, abs=0.15)


def test_it_goes_on_trying_others() -> None:
    temperatures = [one["temperature"] for one in asked(told(40), 200)]
    assert min(temperatures) < 2
    assert max(temperatures) > 8


def test_values_stay_on_their_axes() -> None:
    axes = {**AXES, "rate": FloatDistribution(0.01, 0.01), "log rate": FloatDistribution(0.01, 0.01, log=True)}
    trials = [seen(one.number, {**one.params, "rate": 0.01, "log rate": 0.01}, one.losses) for one in told(20)]
    for i in range(40):
        found = recipe(axes, trials, np.random.default_rng(i))
        assert found.keys() == axes.keys()
        assert all(axis.low <= found[name] <= axis.high for name, axis in axes.items())


def test_only_trained_ones_are_learned_from() -> None:
    draw = np.random.default_rng(5)
    params = {"temperature": 1.0, "alpha": 0.0}
    others = [
        seen(100, params, (0.5,)),
        seen(101, params, ()),
        seen(102, {"temperature": 2.0}, (0.5, 0.1)),
        *(
            seen(103 + i, params, pair)
            for i, pair in enumerate([(0.5, math.nan), (math.inf, 0.1), (0.5, 0.0), (-1, 0.2)])
        ),
    ]
    trials = told(20)
    mixed = [trials[0], *others, *trials[1:]]
    assert recipe(AXES, mixed, np.random.default_rng(5)) == recipe(AXES, trials, draw)


def test_before_there_are_enough_it_is_drawn_evenly() -> None:
    assert asked(told(FEWEST - 1)) == asked([])
    assert asked(told(FEWEST)) != asked([])
    draw = np.random.default_rng(0)
    logs = [math.log(recipe(AXES, [], draw)["temperature"], 16) for _ in range(400)]
    assert np.quantile(logs, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.06)


def test_how_much_a_model_had_lost_before_is_not_taken_for_the_recipe() -> None:
    """What began worse gains more; a recipe that only had worse models to work on is not better for it."""
    draw, trials = np.random.default_rng(1), []
    for number in range(60):
        alpha = float(draw.random())
        begun = math.exp(-3 + 2 * alpha + draw.normal(0, 0.3))
        params = {"temperature": 4.0, "alpha": alpha}
        ended = begun * math.exp(-1.0 * (math.log(begun) + 3) + 1.5 * (alpha - 0.2) ** 2)
        trials.append(seen(number, params, (begun, ended)))
    found = [recipe({"alpha": AXES["alpha"]}, trials, np.random.default_rng(i))["alpha"] for i in range(60)]
    assert np.median(found) < 0.5


def test_no_axes_need_nothing() -> None:
    assert recipe({}, told(20), np.random.default_rng(0)) == {}
