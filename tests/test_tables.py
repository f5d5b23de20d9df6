"""From costs to tables: a table's choice is the policy that the space makes of its parameters, and weighs its bytes."""

import itertools
import json
import math

import numpy as np
import pytest

from compress.layer import Cost
from objectives.sensitivities import KINDS
from search.candidates import Prepared, prepare
from search.config_sections import DistillationConfig, SamplerConfig, SpaceConfig
from search.prices import Price
from search.samplers.table import Table
from search.settings import settings_of
from search.tables import filled, site_table
from spaces.axes import first_value
from spaces.policy import Policy, SemiStructured, StaticActivations
from spaces.site_space import SiteSpace
from spaces.space import TRAINED, Space
from tests.searches import tiny


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Of a workload with residual blocks, channels and a student, and choices of two kinds."""
    config = tiny(
        tmp_path_factory.mktemp("family"),
        workload="tests.tiny:family",
        space=SpaceConfig(
            bits=(3, 6), ratios=(0.0, 0.5), weights=("uniform", "codebook"), channels=(0.5,), blocks=True
        ),
        distillation=DistillationConfig(steps=(), student_steps=0),
        sampler=SamplerConfig(uniform=0, predicted=0),
    )
    return prepare(config)


def drawn(table: Table, count: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [[int(draw.integers(len(site.points))) for site in table.sites] for _ in range(count)]


def at(prepared: Prepared, table: Table, numbers: list[int]) -> Policy:
    """The policy that a search makes of a table's parameters; axes that it does not name are free."""
    rest = {axis.name: first_value(axis) for axis in prepared.space.axes()}
    return prepared.space.policy({**rest, **table.params(numbers)})


def emptied(table: Table) -> bool:
    """Whether it leaves out blocks that hold a group of channels which it also cuts."""
    return table.fixed["one/dropped"] == table.fixed["two/dropped"] == "yes" if "one/dropped" in table.fixed else False


class TestSearch:
    def test_there_is_one_for_each_setting(self, prepared: Prepared) -> None:
        settings = settings_of(prepared.space)
        assert len(prepared.tables) == len(settings) == 6
        names = {axis.name for axis in prepared.space.axes()}
        for table, setting in zip(prepared.tables, settings, strict=True):
            assert table.fixed.keys() <= names
            assert table.fixed["model"] == (setting.model or TRAINED)
            assert [site.name.removeprefix("small:") for site in table.sites] == [site.name for site in setting.sites]
        assert len({tuple(table.fixed.items()) for table in prepared.tables}) == 6

    def test_parameters_make_the_policy_of_their_choices(self, prepared: Prepared) -> None:
        for table, setting in zip(prepared.tables, settings_of(prepared.space), strict=True):
            for numbers in drawn(table, 10):
                policy = at(prepared, table, numbers)
                wished = {
                    site.name: site.choices()[number] for site, number in zip(setting.sites, numbers, strict=True)
                }
                assert policy.sites == wished
                assert (policy.model, policy.dropped) == (setting.model, setting.dropped)
                assert table.numbers(table.params(numbers)) == numbers
                if not emptied(table):
                    assert table.numbers(prepared.space.params(policy)) == numbers

    def test_channels_that_go_with_a_block_are_as_the_space_says(self, prepared: Prepared) -> None:
        table = next(one for one in prepared.tables if emptied(one))
        numbers = drawn(table, 1)[0]
        assert table.numbers(prepared.space.params(at(prepared, table, numbers))) == numbers

    def test_a_policy_is_of_one_table_at_most(self, prepared: Prepared) -> None:
        for table in (one for one in prepared.tables if not emptied(one)):
            params = prepared.space.params(at(prepared, table, drawn(table, 1)[0]))
            assert [one for one in prepared.tables if one.numbers(params) is not None] == [table]

    def test_bytes_are_those_of_the_file(self, prepared: Prepared) -> None:
        """Exactly at the smallest policy; the header writes longer numbers for larger ones."""
        scorer = prepared.scorer
        for table in prepared.tables:
            policies = [[int(site.bytes.argmin()) for site in table.sites], *drawn(table, 10)]
            for i, numbers in enumerate(policies):
                policy = at(prepared, table, numbers)
                variant, database = scorer.models.variant(policy), scorer.models.database(policy.model)
                sites = {site.name: site for site in variant.sites}
                costs = [database.cost(sites[k], c, variant.cuts.get(k)) for k, c in policy.sites.items()]
                size = variant.layout.file_bytes(sum(cost.bytes for cost in costs))
                found = int(table.bytes(np.array([numbers]))[0])
                assert found == size if i == 0 else 0 <= size - found <= 16

    def test_losses_are_those_of_the_sites(self, prepared: Prepared) -> None:
        for table in prepared.tables:
            for site in table.sites:
                assert site.losses.shape == (len(site.points), len(KINDS))
                assert np.isfinite(site.losses[:, [0, -1]]).all()
        whole, cut = prepared.tables[0], next(t for t in prepared.tables if t.loss > 0)
        assert whole.loss == 0
        assert cut.fixed != whole.fixed

    def test_the_document_is_plain_json(self, prepared: Prepared) -> None:
        document = json.loads(json.dumps(prepared.sensitivities, allow_nan=False))
        assert document["kinds"] == list(KINDS)
        assert document["forwards"] > 0
        for setting, table in zip(document["settings"], prepared.tables, strict=True):
            assert setting["fixed"] == table.fixed
            for site in table.sites:
                own = setting["sites"][site.name.removeprefix("small:")]
                assert own["bytes"] == site.bytes.tolist()
                assert own["output"] == pytest.approx(site.losses[:, 0], rel=1e-5)
                assert own["float32"] > 0


class TestSite:
    SITE = SiteSpace(
        "layer",
        ("uniform", "codebook", "float16"),
        (0.0, 0.5),
        (3, 8),
        (SemiStructured(n=2, m=4),),
        (None, StaticActivations(bits=8)),
    )

    def costs(self, site: SiteSpace) -> list[Cost]:
        return [Cost(100 + i, 1.0 / (1 + i)) for i in range(len(site.choices()))]

    def test_every_point_of_its_axes_is_the_choice_that_the_space_makes(self) -> None:
        table, space = site_table(self.SITE, self.costs(self.SITE)), Space((self.SITE,))
        choices, axes = self.SITE.choices(), [axis for axis in space.axes() if axis.name.startswith("layer/")]
        assert len(axes) == len(table.axes) == 5
        points = list(itertools.product(*(axis.values for axis in axes)))  # type: ignore[union-attr]
        assert len(points) > len(choices)
        for values in points:
            point = {axis.name: value for axis, value in zip(axes, values, strict=True)}
            assert choices[table.number(point)] == space.policy(point).sites["layer"]

    def test_a_choice_has_one_point(self) -> None:
        table, space = site_table(self.SITE, self.costs(self.SITE)), Space((self.SITE,))
        for i, (point, choice) in enumerate(zip(table.points, self.SITE.choices(), strict=True)):
            assert space.policy(dict(point)).sites["layer"] == choice
            assert table.number(point) == i

    def test_a_site_without_a_choice_has_no_axes(self) -> None:
        only = SiteSpace("layer", ("float32",), (0.0,), ())
        table = site_table(only, [Cost(100, 0.0)])
        assert table.axes == ()
        assert table.number({"other/bits": 3}) == 0

    def test_kinds_come_in_their_order_and_what_is_not_known_is_nan(self) -> None:
        site = SiteSpace("layer", ("uniform",), (0.0,), (2, 4))
        prices = [Price(10, 0.4, None, 3.0, math.nan, math.nan), Price(20, 0.1, None, 1.0, 0.5, 0.02)]
        losses = site_table(site, prices).losses
        np.testing.assert_array_equal(losses[:, 0], [0.4, 0.1])
        np.testing.assert_array_equal(losses[:, 1], [3.0, 1.0])
        np.testing.assert_array_equal(losses[:, 2], [math.nan, 0.5])
        np.testing.assert_allclose(losses[:, 3], [0.08, 0.02])  # it follows the output's error
        assert np.isnan(site_table(site, [Cost(10, 0.4), Cost(20, 0.1)]).losses[:, 1:]).all()


class TestFilled:
    def test_between_what_was_measured_it_follows_the_output(self) -> None:
        output = np.array([1.0, 0.1, 0.01, 0.001, 0.0001, 0.0])
        values = np.array([math.nan, 0.3, math.nan, 0.012, math.nan, math.nan])
        # log offsets at 0.1 and 0.001 are log 3 and log 12: halfway in log error, their mean
        np.testing.assert_allclose(filled(output, values), [3.0, 0.3, 0.06, 0.012, 0.0012, 0.0])

    def test_where_nothing_was_measured_nothing_is_made_up(self) -> None:
        assert np.isnan(filled(np.array([1.0, 0.1]), np.full(2, math.nan))).all()
        assert filled(np.array([1.0, 0.0]), np.array([0.0, math.nan])).tolist()[0] == 0.0


def test_the_smallest_file_is_known(prepared: Prepared) -> None:
    assert prepared.smallest_bytes == min(table.smallest for table in prepared.tables)
