"""The candidates that are tried first: over channels, blocks and students, too."""

import itertools
from pathlib import Path

import pytest

from objectives.judging import FixedJudge
from search.candidates import Prepared, prepare
from search.config_sections import DistillationConfig, SamplerConfig, SpaceConfig
from search.settings import settings_of
from spaces.policy import Policy
from tests.searches import tiny


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Of a workload with residual blocks and a student."""
    config = tiny(
        tmp_path_factory.mktemp("family"),
        workload="tests.tiny:family",
        space=SpaceConfig(bits=(3, 6), ratios=(0.0, 0.5), channels=(0.25, 0.5), blocks=True),
        distillation=DistillationConfig(steps=(3,), student_steps=3),
        sampler=SamplerConfig(uniform=8, predicted=30),
    )
    return prepare(config)


def kind(policy: Policy) -> tuple[object, ...]:
    return policy.model, tuple(sorted(policy.channels.items())), policy.dropped


class TestFirst:
    def test_they_are_of_the_space(self, prepared: Prepared) -> None:
        for _, policy in prepared.first:
            assert prepared.space.policy(prepared.space.params(policy)) == policy

    def test_half_of_the_uniform_ones_are_of_the_whole_model(self, prepared: Prepared) -> None:
        found = [policy for origin, policy in prepared.first if origin == "uniform"]
        assert [kind(policy) == (None, (), ()) for policy in found] == [True] * 4 + [False] * 4
        assert [policy.model for policy in found[4:]] == ["small", None, None, None]
        for policy in found[4:]:  # the widest weights, unpruned
            assert {choice.label for choice in policy.sites.values()} == {"6 bits"}

    def test_half_of_the_predicted_ones_are_of_the_whole_model_and_the_others_of_all_settings(
        self, prepared: Prepared
    ) -> None:
        found = [kind(policy) for origin, policy in prepared.first if origin == "predicted"]
        settings = settings_of(prepared.space)
        assert len(settings) == 1 + 1 + 2 + 1 + 2
        shares = [found.count(one) for one in dict.fromkeys(found)]
        assert found[0] == (None, (), ())
        assert 1 < shares[0] <= 15  # fewer, where fewer states lose anything
        assert all(1 <= share <= 3 for share in shares[1:])
        wished = {
            kind(prepared.space.make({}, model=s.model, channels=s.channels, dropped=s.dropped)) for s in settings
        }
        assert set(found) == wished

    def test_their_bytes_are_as_predicted(self, prepared: Prepared) -> None:
        scorer = prepared.scorer
        sizes = []
        for _, policy in prepared.first[::3]:
            score = scorer.score(policy, FixedJudge(0, kept=False))
            variant, database = scorer.models.variant(policy), scorer.models.database(policy.model)
            sites = {site.name: site for site in variant.sites}
            assert sites.keys() == policy.sites.keys()
            costs = [database.cost(sites[k], c, variant.cuts.get(k)) for k, c in policy.sites.items()]
            assert score.bytes == variant.layout.file_bytes(sum(cost.bytes for cost in costs))
            sizes.append(score.bytes)
        assert min(sizes) >= prepared.smallest_bytes

    def test_the_smallest_is_what_enumeration_finds(self, prepared: Prepared) -> None:
        """Over models, blocks and channels; with the cheapest choice at each site."""
        space, scorer = prepared.space, prepared.scorer
        found = []
        channels = itertools.product(*(group.ratios for group in space.groups))
        blocks = list(itertools.chain.from_iterable(itertools.combinations(["one", "two"], n) for n in range(3)))
        for ratios, dropped in itertools.product(channels, blocks):
            cut = dict(zip([group.name for group in space.groups], ratios, strict=True))
            found.append(space.make({}, channels=cut, dropped=dropped))
        found.append(space.make({}, model="small"))
        smallest = []
        for policy in {policy.digest: policy for policy in found}.values():
            variant, database = scorer.models.variant(policy), scorer.models.database(policy.model)
            own = next((one.sites for one in space.students if one.name == policy.model), space.sites)
            choices = {site.name: site.choices() for site in own}
            costs = [database.costs(s, choices[s.name], variant.cuts.get(s.name)) for s in variant.sites]
            smallest.append(variant.layout.file_bytes(sum(min(cost.bytes for cost in own) for own in costs)))
        assert prepared.smallest_bytes == min(smallest)

    def test_a_predicted_one_is_the_least_wrong_of_its_size_in_its_setting(self, prepared: Prepared) -> None:
        scorer, space = prepared.scorer, prepared.space
        found = [policy for origin, policy in prepared.first if origin == "predicted" and policy.model == "small"]
        assert found
        database, variant = scorer.models.database("small"), scorer.models.variant(found[0])
        sites = {site.name: site for site in variant.sites}
        known = {}
        for one in itertools.product(*(site.choices() for site in space.students[0].sites)):
            chosen = {site.name: choice for site, choice in zip(space.students[0].sites, one, strict=True)}
            costs = [database.cost(sites[name], choice) for name, choice in chosen.items()]
            known[one] = sum(cost.bytes for cost in costs), sum(cost.error for cost in costs)
        for policy in found:
            size, error = known[tuple(policy.sites[site.name] for site in space.students[0].sites)]
            assert all(e >= error - 1e-12 or b > size for b, e in known.values())

    def test_fewer_predicted_than_settings_is_no_error(self, tmp_path: Path) -> None:
        config = tiny(
            tmp_path,
            workload="tests.tiny:family",
            space=SpaceConfig(bits=(4,), ratios=(0.0, 0.5), channels=(0.5,), blocks=True),
            distillation=DistillationConfig(steps=(), student_steps=0),
            sampler=SamplerConfig(uniform=1, predicted=3),
        )
        first = prepare(config).first
        assert [origin for origin, _ in first] == ["uniform", *["predicted"] * 3]
        assert [policy.model for _, policy in first] == [None, None, None, "small"]
        assert all(policy.distillation is None for _, policy in first)
        none = config.model_copy(update={"sampler": SamplerConfig(uniform=0, predicted=0)})
        assert prepare(none).first == []
