"""The space that a config allows on a workload: sites, groups, blocks and students; all of it can be made."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from objectives.judging import FixedJudge
from objectives.workload import LoadedWorkload, load_workload
from search.config_sections import DistillationConfig, PenaltyConfig, RuleConfig, SpaceConfig
from search.space import channel_pruning_of, distillation_of, space_of
from spaces.build import kept_count
from spaces.choice import DynamicActivations, SemiStructured
from spaces.errors import ConfigError
from spaces.policy import ChannelPruning, Distillation, Penalty
from spaces.space import Block, Space
from tests.scoring import evaluation, scorer_of
from tests.searches import tiny
from tests.test_space import random_point

FAMILY = "tests.tiny:family"


@pytest.fixture(scope="module")
def loaded() -> LoadedWorkload:
    return load_workload(FAMILY)


def of(loaded: LoadedWorkload, folder: Path = Path(), target: str = "storage", **changed: Any) -> Space:
    config = tiny(folder, workload=loaded.entry, target=target, space=SpaceConfig(**changed))
    return space_of(config, loaded)


class TestSpaceOf:
    def test_sites_are_those_of_the_model_and_of_the_students(self, loaded: LoadedWorkload) -> None:
        space = of(loaded, bits=(4,), ratios=(0.0, 0.5))
        assert [site.name for site in space.sites] == [site.name for site in loaded.sites]
        assert [(one.name, [site.name for site in one.sites]) for one in space.students] == [("small", ["0", "2"])]
        assert (space.groups, space.blocks, space.smoothing) == ((), (), None)
        assert of(loaded, students=False).students == ()

    def test_groups_have_the_shares_that_leave_different_numbers(self, loaded: LoadedWorkload) -> None:
        space = of(loaded, channels=(0.5, 0.51, 0.95))
        assert {group.name: group.ratios for group in space.groups} == {
            "group-first": (0.0, 0.5, 0.95),
            "group-one.down": (0.0, 0.5, 0.95),
            "group-two.down": (0.0, 0.5, 0.95),
        }
        assert space.channel_pruning == ChannelPruning()
        space = of(loaded, target="onnxruntime-cpu", bits=(8,), channels=(0.2, 0.5, 0.8))  # 24, 12 and 12 channels
        assert {group.name: group.ratios for group in space.groups} == {
            "group-first": (0.0, 0.2, 0.8),
            "group-one.down": (0.0, 0.2),
            "group-two.down": (0.0, 0.2),
        }
        assert space.channel_pruning == ChannelPruning(multiple=8)

    def test_a_group_of_which_nothing_can_go_is_none(self, loaded: LoadedWorkload) -> None:
        assert [one.name for one in of(loaded, channels=(0.5,), channel_multiple=12).groups] == ["group-first"]

    def test_blocks_have_the_sites_and_groups_that_are_in_them(self, loaded: LoadedWorkload) -> None:
        sites = {"one": ("one.down", "one.up"), "two": ("two.down", "two.up")}
        assert of(loaded, blocks=True).blocks == tuple(Block(name, inside) for name, inside in sites.items())
        assert of(loaded, blocks=True, channels=(0.5,)).blocks == tuple(
            Block(name, inside, (f"group-{name}.down",)) for name, inside in sites.items()
        )

    def test_what_the_model_has_not_is_refused(self, tmp_path: Path) -> None:
        plain = load_workload("tests.tiny:workload")
        with pytest.raises(ConfigError, match=r"space\.blocks: given true, but the model has no residual block"):
            of(plain, tmp_path, blocks=True)
        flat = load_workload("tests.tiny:flat")
        with pytest.raises(ConfigError, match=r"space\.channels: given \[0\.5\], but no channel .* can be removed: "):
            of(flat, tmp_path, channels=(0.5,))
        assert of(flat, tmp_path, channels=(0.0,)).groups == of(flat, tmp_path).groups == ()

    def test_what_does_not_fit_is_refused_with_the_site_and_both_numbers(self, loaded: LoadedWorkload) -> None:
        with pytest.raises(ConfigError, match=r"5:16 does not fit site first, .* 8 weights, .* multiple of 16"):
            of(loaded, prune=("nm",), patterns=("5:16",))
        with pytest.raises(ConfigError, match=r"scale_per: 24 does not fit site first, .* 8 weights, .* of 24"):
            of(loaded, scale_per=24)
        with pytest.raises(ConfigError, match=r"space\.exclude\[0\]: given 'heads'.* the sites are first, one\.down,"):
            of(loaded, exclude=("heads",))

    def test_rules_and_exclude_are_for_students_too(self, loaded: LoadedWorkload) -> None:
        space = of(loaded, bits=(4, 8), rules=(RuleConfig(sites="*", bits=(5,)),), exclude=("head",))
        assert {site.bits for one in space.students for site in one.sites} == {(5,)}
        assert [site.name for site in space.sites if site.kinds == ("float32",)] == ["head"]

    def test_inputs_are_quantized_where_they_can_be(self) -> None:
        """The words an embedding looks up cannot."""
        space = of(load_workload("tests.tiny:words"), activations=("float", "dynamic"))
        found = {site.name: site.activations for site in space.sites}
        assert found == {"words": (None,), "head": (None, DynamicActivations(bits=8))}

    def test_channels_that_patterns_and_groups_of_weights_fit_are_left(self, loaded: LoadedWorkload) -> None:
        def multiple(target: str = "storage", **changed: Any) -> int:
            config = tiny(Path(), workload=FAMILY, target=target, space=SpaceConfig(**changed))
            return channel_pruning_of(config).multiple

        assert multiple() == multiple(patterns=("2:4",)) == 1
        assert multiple(prune=("nm",), patterns=("2:4",)) == 4
        assert multiple(prune=("nm",), patterns=("2:4",), channel_multiple=6) == 12
        assert multiple(scale_per=8, rules=(RuleConfig(sites="a", scale_per=12),)) == 24
        assert multiple(prune=("nm",), patterns=(), rules=(RuleConfig(sites="a", patterns=("1:8",)),)) == 8
        assert multiple("onnxruntime-cpu", prune=("none", "nm"), patterns=("1:16",)) == 8


class TestDistillationOf:
    def test_it_has_every_setting_of_the_config(self, tmp_path: Path) -> None:
        given: dict[str, Any] = {
            "learning_rate": 0.5,
            "batch_size": 7,
            "optimizer": "sgd",
            "schedule": "linear",
            "masks": "gradual",
            "rewind": True,
            "grids": "learned",
            "features": 0.25,
            "labels": "teacher",
            "cache_bytes": 17,
            "student_steps": 19,
        }
        penalty = PenaltyConfig(kind="batchnorm_l1", strength=0.1)
        settings = DistillationConfig(temperature=(2.0, 4.0), alpha=(0.1, 0.2), steps=(3,), penalty=penalty, **given)
        found = distillation_of(tiny(tmp_path, distillation=settings))
        own = Penalty(kind="batchnorm_l1", strength=0.1)
        assert found == Distillation(temperature=2.0, alpha=0.1, penalty=own, **given)
        assert given.keys() | {"temperature", "alpha", "penalty"} == Distillation.model_fields.keys()

    def test_without_steps_there_is_none(self, tmp_path: Path, loaded: LoadedWorkload) -> None:
        config = tiny(tmp_path, workload=FAMILY, distillation=DistillationConfig(steps=()))
        assert distillation_of(config) is None
        space = space_of(config, loaded)
        assert (space.temperature, space.alpha, space.distillation) == (None, None, None)


class TestEverything:
    """Whatever the space allows can be carried out."""

    @pytest.mark.parametrize("seed", range(3))
    def test_random_policies_are_what_they_say(self, seed: int, loaded: LoadedWorkload, tmp_path: Path) -> None:
        space = of(
            loaded,
            tmp_path,
            bits=(3, 8),
            weights=("uniform", "codebook", "float16"),
            ratios=(0.0, 0.5),
            prune=("unstructured", "nm", "threshold"),
            patterns=("2:4",),
            thresholds=(0.05,),
            activations=("float", "static", "dynamic"),
            scale_per=4,
            symmetric=False,
            channels=(0.3, 0.5),
            blocks=True,
            smoothing=0.5,
        )
        scorer = scorer_of(loaded, replace(evaluation(tmp_path, steps=()), smoothing=space.smoothing))
        draw = random.Random(seed)
        for _ in range(8):
            policy = space.policy(random_point(space, draw))
            policy = policy.model_copy(update={"distillation": None})
            score = scorer.score(policy, FixedJudge(0))
            assert score.artifact is not None
            path = tmp_path / "artifacts" / f"{score.artifact}.safetensors"
            assert path.stat().st_size == score.bytes
            variant = scorer.models.variant(policy)
            assert {site.name for site in variant.sites} == policy.sites.keys()
            assert scorer.score_file(path, "validation").value == score.accuracy
            model = variant.model
            if policy.model is None:
                wished = policy.channels.get("group-first", 0.0)
                first = model.get_submodule("first")
                assert isinstance(first, torch.nn.Linear)
                assert first.out_features == kept_count(24, wished, space.channel_pruning.multiple)
            for report in scorer.report(policy):
                pattern = policy.sites[report.site].prune
                if isinstance(pattern, SemiStructured):
                    assert report.sparsity >= 1 - pattern.n / pattern.m
