"""What a sampler looks up: choices by parameters, parameters by choices, bytes and sensitivities."""

import math

import numpy as np
import pytest

from search.samplers.table import SiteTable, Table, key_of, log_losses
from tests.worlds import world

POINTS = ({"a/kind": "x", "a/bits": 2}, {"a/kind": "x", "a/bits": 4}, {"a/kind": "y", "a/bits": 2})
SITE = SiteTable(
    "a", POINTS, np.array([10, 20, 40]), np.array([[1.0], [0.1], [0.0]]), (({"a/kind": "y", "a/bits": 4}, 2),)
)


def test_parameters_and_choices_are_inverse() -> None:
    given = world(0, 5)
    draw = np.random.default_rng(0)
    for _ in range(50):
        numbers = [int(draw.integers(len(site.points))) for site in given.table.sites]
        assert given.table.numbers(given.table.params(numbers)) == numbers


def test_what_other_axes_say_does_not_matter_and_what_is_fixed_does() -> None:
    table = Table((SITE,), {"c": 0.3, "model": "trained"})
    params = {"a/kind": "x", "a/bits": 4, "temperature": 3.0, "c": 0.1 + 0.2, "model": "trained"}
    assert table.numbers(params) == [1]
    assert table.numbers({**params, "c": 0.4}) is None
    assert table.numbers({**params, "model": "small"}) is None
    assert table.numbers({**params, "a/bits": 3}) is None
    assert table.numbers({"c": 0.3, "a/bits": 4}) is None


def test_points_that_stand_for_the_same_choice() -> None:
    assert [SITE.number({"a/kind": "y", "a/bits": bits}) for bits in (2, 4)] == [2, 2]


def test_the_last_bits_of_steps_are_passed_over() -> None:
    assert key_of({"r": 0.1 + 0.2, "b": 4}, ("r", "b", "gone")) == (0.3, 4, None)


def test_bytes_are_sums() -> None:
    table = world(0, 5).table
    numbers = np.random.default_rng(0).integers(0, len(table.sites[0].points), (30, 5))
    wished = [table.rest + sum(int(site.bytes[i]) for site, i in zip(table.sites, row, strict=True)) for row in numbers]
    assert table.bytes(numbers).tolist() == wished
    every = [table.rest + f(sum(int(f(s.bytes)) for s in table.sites) for _ in [0]) for f in (min, max)]
    assert [table.smallest, table.largest] == every


def test_a_choice_has_a_place_on_each_axis() -> None:
    assert SITE.places().tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    bits = SITE.axis("bits")
    assert bits is not None
    assert bits.tolist() == [2, 4, 2]
    assert SITE.axis("ratio") is None


def test_logs_of_sensitivities() -> None:
    losses = np.array([[1.0, math.nan, 0.0], [0.1, 4.0, 0.0], [0.0, -1.0, 0.0], [math.inf, 2.0, 0.0]])
    site = SiteTable("a", tuple({"a/bits": b} for b in range(4)), np.arange(4), losses)
    found = log_losses(site)
    np.testing.assert_allclose(found[:3, 0], [0, math.log(0.1), math.log(1e-12)])
    assert np.isnan(found[3, 0])
    np.testing.assert_allclose(found[[1, 3], 1], np.log([4, 2]))
    assert np.isnan(found[[0, 2], 1]).all()
    assert np.isnan(found[:, 2]).all()  # a site that loses nothing whatever is done says nothing


@pytest.mark.parametrize(
    ("bytes", "losses"), [(np.arange(2), np.ones((3, 1))), (np.arange(3), np.ones(3)), (np.arange(3), np.ones((2, 1)))]
)
def test_shapes_are_looked_at(bytes: np.ndarray, losses: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"site a: 3 points, bytes of shape .* expected \(3,\) and \(3, kinds\)"):
        SiteTable("a", POINTS, bytes, losses)
