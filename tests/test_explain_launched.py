"""What `explain` says of studies that were really searched: with channels, blocks and students, by our own sampler."""

from pathlib import Path

import pytest

from search.candidates import Prepared, prepare
from search.config import Config
from search.config_sections import DistillationConfig, SamplerConfig, SpaceConfig
from search.explain import explain, explain_policy
from search.export import policy_files, write_policy
from search.front import Front, front
from search.loop import launch
from tests.searches import STUDY, document_of, tiny, url_of
from tests.studies import every_point

KINDS = ("output", "fisher", "gradient", "kl")


def family(folder: Path) -> Config:
    """One-shot, so that a file has the bytes that the layer database says."""
    return tiny(
        folder,
        30,
        workload="tests.tiny:family",
        space=SpaceConfig(bits=(3, 6), ratios=(0.0, 0.5), channels=(0.5,), blocks=True),
        distillation=DistillationConfig(steps=(), student_steps=0),
        sampler=SamplerConfig(uniform=6, predicted=8),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explained")
    launch(family(folder))
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    return prepare(family(folder))


@pytest.fixture
def found(folder: Path) -> Front:
    return front(STUDY, url_of(folder))


def test_the_study_holds_what_was_prepared(folder: Path, prepared: Prepared) -> None:
    stored = document_of(folder, "sensitivities")
    assert stored == prepared.sensitivities
    assert tuple(stored["kinds"]) == KINDS
    assert stored["forwards"] > 0
    assert {setting["fixed"]["model"] for setting in stored["settings"]} > {"trained"}


def test_every_trial_is_explained(folder: Path, found: Front, prepared: Prepared) -> None:
    url, models = url_of(folder), set()
    for point in every_point(url):
        told = explain(STUDY, url, trial=point.trial)
        (policy,) = policy_files([point], STUDY, url)
        models.add(policy.model)
        assert {one.site: one.option.choice for one in told.sites} == {
            name: choice.label for name, choice in policy.sites.items()
        }
        assert (told.bytes, told.accuracy) == (point.bytes, point.accuracy)
        assert all(one.saved is not None for one in told.sites)
        if told.exact:
            layout = prepared.scorer.models.variant(policy.policy).layout
            assert layout.file_bytes(sum(one.option.bytes for one in told.sites)) == point.bytes
    assert len(models) > 1
    assert any(point.stopped for point in found.complete)


def test_the_first_policies_are_explained_exactly(folder: Path, found: Front, prepared: Prepared) -> None:
    first = [point for point in found.complete if point.origin in ("uniform", "predicted")]
    assert len(first) == len(prepared.first) > 10
    assert all(explain(STUDY, url_of(folder), trial=point.trial).exact for point in first)


def test_a_policy_file_is_explained_as_its_trial_is(folder: Path, found: Front, tmp_path: Path) -> None:
    (policy,) = policy_files(found.points[:1], STUDY, url_of(folder))
    write_policy(policy, tmp_path / "policy.json")
    told = explain_policy(tmp_path / "policy.json", url_of(folder))
    assert told == explain(STUDY, url_of(folder), trial=found.points[0].trial)
