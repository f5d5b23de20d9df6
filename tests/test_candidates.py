"""What is prepared before the first trial."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from search.candidates import Checked, Prepared, check, prepare
from search.config import Config
from search.config_sections import CacheConfig, DistillationConfig, RuleConfig, SamplerConfig, SpaceConfig
from search.samplers.features import Features
from search.samplers.loss_model import unlearned
from spaces.errors import ConfigError, WorkloadError
from spaces.policy import Policy
from tests import tiny as workloads
from tests.searches import tiny

SITES = ("first", "second", "head")


def prepared_of(config: Config) -> tuple[Checked, Prepared]:
    checked = check(config)
    return checked, prepare(config, checked)


def labels(policy: Policy) -> set[str]:
    return {choice.label for choice in policy.sites.values()}


def test_the_uniform_policies_come_first_and_unpruned_ones_before_the_others(tmp_path: Path) -> None:
    _, prepared = prepared_of(tiny(tmp_path, sampler=SamplerConfig(uniform=6, predicted=5)))
    uniform = [policy for origin, policy in prepared.first if origin == "uniform"]
    assert [origin for origin, _ in prepared.first] == ["uniform"] * 6 + ["predicted"] * 5
    assert all(len(labels(policy)) == 1 for policy in uniform)
    assert [labels(policy) for policy in uniform[:3]] == [{"6 bits"}, {"4 bits"}, {"2 bits"}]
    assert len({policy.digest for policy in uniform}) == 6
    assert all(policy.distillation and policy.distillation.alpha == 0.75 for policy in uniform)


def test_uniform_policies_are_as_many_as_there_are(tmp_path: Path) -> None:
    _, prepared = prepared_of(tiny(tmp_path, sampler=SamplerConfig(uniform=100, predicted=0)))
    assert len(prepared.first) == 9  # 3 bit widths at 3 ratios
    assert prepared_of(tiny(tmp_path, sampler=SamplerConfig(uniform=0, predicted=0)))[1].first == []


def test_the_predicted_policies_are_the_least_wrong_of_their_size(tmp_path: Path) -> None:
    checked, prepared = prepared_of(tiny(tmp_path, sampler=SamplerConfig(uniform=0, predicted=12)))
    database, whole = prepared.scorer.models.database(None), prepared.scorer.models.member(None).whole
    found = {site.name: site for site in whole.sites}
    choices = [site.choices() for site in checked.space.sites]
    model = unlearned(Features(prepared.tables))
    losses = [
        dict(zip(own, predicted, strict=True))
        for own, predicted in zip(choices, model.costs(0, model.weights()), strict=True)
    ]
    known = {}
    for one in itertools.product(*choices):
        costs = [database.cost(found[name], choice) for name, choice in zip(SITES, one, strict=True)]
        loss = sum(own[choice] for own, choice in zip(losses, one, strict=True))
        known[one] = sum(cost.bytes for cost in costs), loss
    for _, policy in prepared.first:
        size, least = known[tuple(policy.sites[name] for name in SITES)]
        assert all(loss >= least - 1e-12 or bytes > size for bytes, loss in known.values())
        checked.space.params(policy)  # raises where it is not in the space
    assert prepared.smallest_bytes == whole.layout.file_bytes(min(size for size, _ in known.values()))
    assert len(prepared.first) > 5


def test_it_is_the_same_every_time_and_the_seed_only_draws_temperatures(tmp_path: Path) -> None:
    first, again, other = (prepared_of(tiny(tmp_path, seed=seed))[1].first for seed in (0, 0, 1))
    assert first == again != other
    assert [policy.sites for _, policy in first] == [policy.sites for _, policy in other]
    low, high = 1.0, 8.0
    for origin, policy in first:
        assert policy.distillation is not None
        assert low <= policy.distillation.temperature <= high
        assert origin == "predicted" or policy.distillation.temperature == pytest.approx((low * high) ** 0.5)


def test_nothing_but_compressed_layers_and_their_sensitivities_is_written(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    checked = check(config)
    assert list(tmp_path.iterdir()) == []
    prepare(config, checked)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["layers", "sensitivities"]
    without = tiny(tmp_path / "without", cache=CacheConfig(folder=str(tmp_path / "without"), max_bytes=0))
    prepare(without)
    assert not (tmp_path / "without").exists()


def test_what_is_found_in_the_cache_is_what_would_be_made(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    first, found = prepare(config), prepare(config)
    alone = prepare(tiny(tmp_path, cache=CacheConfig(folder=str(tmp_path), max_bytes=0)))
    assert first.first == found.first == alone.first
    assert first.smallest_bytes == found.smallest_bytes == alone.smallest_bytes
    assert first.sensitivities == found.sensitivities == alone.sensitivities


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, False),
        ({"criterion": "taylor"}, True),
        ({"fisher": True}, True),
        ({"rules": (RuleConfig(sites="head", criterion="taylor"),)}, True),
        ({"rules": (RuleConfig(sites="head", criterion="wanda"),)}, False),
        ({"channels": (0.5,), "channel_criterion": "taylor"}, True),
        ({"channels": (), "channel_criterion": "taylor"}, False),
    ],
)
def test_gradients_are_taken_where_something_looks_at_them(changed: Any, expected: bool, tmp_path: Path) -> None:
    config = tiny(tmp_path, space=SpaceConfig(bits=(4,), ratios=(0.0, 0.5), **changed))
    checked, prepared = prepared_of(config)
    assert checked.evaluation.gradients == expected
    assert prepared.first


def test_the_threads_are_set_before_anything_is_computed(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            checked, _ = prepared_of(tiny(tmp_path, workload="tests.tiny:counting", threads=threads))
            assert isinstance(checked.loaded.model, workloads.Counting)
            assert set(checked.loaded.model.seen) == {threads}
    finally:
        torch.set_num_threads(before)


def test_a_loss_is_tried_where_it_will_be_used(tmp_path: Path) -> None:
    entry = "tests.tiny:needy"
    with pytest.raises(WorkloadError, match=r"the loss \(mse_loss\) on the train split fails"):
        prepared_of(tiny(tmp_path, workload=entry))
    soft_only = DistillationConfig(steps=(3,), alpha=(1.0, 1.0))
    assert prepared_of(tiny(tmp_path, workload=entry, distillation=soft_only))[1].first


def test_a_glob_that_matches_no_site_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"space\.exclude\[0\]: given 'heads\*'.*first, second, head"):
        check(tiny(tmp_path, space=SpaceConfig(exclude=("heads*",))))


class TestTrainingThatCannotBe:
    def test_students_that_would_stay_untrained_are_refused(self, tmp_path: Path) -> None:
        entry, none = "tests.tiny:taught", DistillationConfig(steps=())
        words = r"student_steps: given 600, but .*narrow, flat, leaky.*: give distillation\.steps, or .*students: false"
        with pytest.raises(ConfigError, match=words):
            check(tiny(tmp_path, workload=entry, distillation=none))
        without = check(tiny(tmp_path, workload=entry, distillation=none, space=SpaceConfig(students=False)))
        assert without.space.students == ()
        as_they_come = DistillationConfig(steps=(), student_steps=0)
        assert len(check(tiny(tmp_path, workload=entry, distillation=as_they_come)).space.students) == 3
        assert check(tiny(tmp_path, distillation=none)).space.students == ()

    def test_early_weights_of_a_smoothed_model_are_refused(self, tmp_path: Path) -> None:
        rewound = DistillationConfig(steps=(3,), rewind=True)
        given: dict[str, Any] = {"workload": "tests.tiny:taught", "distillation": rewound}
        words = r"distillation\.rewind: given true, with space\.smoothing 0\.5: .*leave rewind or smoothing out"
        with pytest.raises(ConfigError, match=words):
            check(tiny(tmp_path, **given, space=SpaceConfig(smoothing=0.5)))
        distillation = check(tiny(tmp_path, **given)).space.distillation
        assert distillation is not None
        assert distillation.rewind
