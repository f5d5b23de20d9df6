"""What choices cost: sensitivities beside bytes, measured at a few choices only where that is asked."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from compress.layer import Cost
from objectives.score import Scorer
from objectives.sensitivities import site_sensitivity
from objectives.workload import load_workload
from search.prices import Sensing, measured, prices
from spaces.policy import Policy
from spaces.site_space import SiteSpace
from tests.scoring import evaluation, scorer_of

SPACE = SiteSpace("second", ("uniform",), (0.0, 0.6), (2, 3, 4, 6))
WHOLE = Policy(sites={})


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder: Path = tmp_path_factory.mktemp("prices")
    return scorer_of(load_workload("tests.tiny:workload"), replace(evaluation(folder), steps=()))


@pytest.fixture(scope="module")
def costs(scorer: Scorer) -> list[Cost]:
    site = next(one for one in scorer.loaded.sites if one.name == SPACE.name)
    return scorer.models.database(None).costs(site, SPACE.choices(), None)


@pytest.mark.parametrize("choices", [None, 3])
def test_they_are_costs_with_their_sensitivities(scorer: Scorer, costs: list[Cost], choices: int | None) -> None:
    found = prices(scorer, WHOLE, SPACE.name, SPACE.choices(), costs, Sensing(20, choices))
    wished = site_sensitivity(scorer, WHOLE, SPACE.name, SPACE.choices(), 20)
    at = measured(costs, choices or len(costs))
    assert len(at) == (choices or len(costs))
    for i, (price, cost) in enumerate(zip(found, costs, strict=True)):
        assert {key: value for key, value in asdict(price).items() if key in asdict(cost)} == asdict(cost)
        assert price.fisher == pytest.approx(wished.fisher[i], nan_ok=True)
        assert price.gradient == pytest.approx(wished.gradient[i], nan_ok=True)
        assert price.kl == (pytest.approx(wished.kl[i]) if i in at else pytest.approx(math.nan, nan_ok=True))
    if choices is None:
        assert sum(one.forwards for one in found) == wished.forwards
    assert sum(one.backwards for one in found) == wished.backwards
    assert sum(one.forwards for one in found[1:]) == 0


def test_without_samples_nothing_is_measured(scorer: Scorer, costs: list[Cost]) -> None:
    found = prices(scorer, WHOLE, SPACE.name, SPACE.choices(), costs, Sensing(0, None))
    assert all(math.isnan(one.kl) for one in found)
    measuring = prices(scorer, WHOLE, SPACE.name, SPACE.choices(), costs, Sensing(20, 2))
    assert sum(one.forwards for one in found) < sum(one.forwards for one in measuring)


class TestMeasured:
    def test_all_where_there_are_no_more(self) -> None:
        assert measured([Cost(3, 0.1), Cost(1, 0.2)], 2) == [0, 1]

    @pytest.mark.parametrize("count", [1, 2, 5, 9])
    def test_a_few_evenly_over_log_error(self, count: int) -> None:
        draw = np.random.default_rng(0)
        errors = np.exp(draw.uniform(-9, 0, 200))
        given = [Cost(int(1000 - 100 * math.log(error)), float(error)) for error in errors]
        found = measured(given, count)
        assert len(found) == count
        logs = np.sort(np.log([given[i].error for i in found]))
        low, high = np.log(errors.min()), np.log(errors.max())
        np.testing.assert_allclose(logs, np.linspace(low, high, 2 * count + 1)[1::2], atol=0.3)

    def test_what_another_one_is_better_than_is_not_looked_at(self) -> None:
        given = [Cost(10, 0.5), Cost(12, 0.6), Cost(20, 0.1), Cost(20, 0.2), Cost(40, 0.0)]
        assert set(measured(given, 4)) <= {0, 2, 4}
