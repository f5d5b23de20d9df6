"""What a search found can be made again, byte by byte, whatever it did; and what a policy does at each site is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import open_packed
from objectives.retraining import report, retrain
from objectives.serving import family_of, unpack
from objectives.verification import verify
from objectives.workload import load_workload
from search.config_sections import DistillationConfig, PenaltyConfig
from spaces.errors import ConfigError, WorkloadError
from spaces.policy import PolicyFile
from tests import deep
from tests.deep import ENTRY, POLICIES, file_of


def trained(**changed: Any) -> DistillationConfig:
    """Two rungs, to which every candidate gets."""
    short = {"steps": (3, 7), "batch_size": 32, "learning_rate": 0.01, "share": 1.0, "alpha": (0.5, 0.8)}
    return DistillationConfig(**{**short, **changed})


SEARCHES: dict[str, dict[str, Any]] = {
    "channels, blocks and learned grids": {
        "space": {"channels": (0.5,), "blocks": True, "weights": ("uniform", "codebook")},
        "distillation": trained(grids="learned"),
    },
    "students, entropy coded": {
        "space": {"students": True},
        "distillation": trained(student_steps=10, cache_bytes=100),
        "coding": "entropy",
    },
    "gradual masks, rewound": {
        "space": {"ratios": (0.5, 0.8)},
        "distillation": trained(masks="gradual", rewind=True, penalty=PenaltyConfig(kind="l1", strength=1e-4)),
    },
    "the teacher's labels, smoothed": {
        "space": {"smoothing": 0.5, "activations": ("static", "dynamic")},
        "distillation": trained(labels="teacher", optimizer="sgd", schedule="linear", features=0.1),
    },
    "Hessians, one-shot": {
        "space": {
            "criterion": "hessian",
            "rounding": "gptq",
            "symmetric": False,
            "prune": ("none", "unstructured", "nm"),
        },
        "distillation": trained(steps=()),
    },
    "gradients, one-shot": {
        "space": {
            "criterion": "taylor",
            "weights": ("codebook",),
            "fisher": True,
            "channels": (0.5,),
            "channel_criterion": "taylor",
        },
        "distillation": trained(steps=()),
    },
}


@pytest.mark.parametrize("name", SEARCHES)
def test_what_a_search_found_is_the_same_file_again(name: str, tmp_path: Path) -> None:
    found = deep.search(tmp_path, 5, **SEARCHES[name])
    assert len(found.policies) == 5
    kept = [policy for policy in found.policies if policy.artifact.sha256 is not None]
    special = [one for one in kept if one.channels or one.model]
    for policy in [*kept[:1], *(special or kept)[-2:]]:
        path = tmp_path / "model.safetensors"
        again = retrain(policy, path, workload=ENTRY)
        assert again.same_file is True, (policy.provenance.trial, policy.policy)
        assert (again.bytes, again.accuracy) == (policy.score.bytes, policy.score.accuracy)
        assert again.document()["sha256"] == policy.artifact.sha256
        assert policy.score.rung == (0 if "one-shot" in name else 2)
        assert verify(path, policy, workload=ENTRY).ok


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> deep.Found:
    return deep.scored(tmp_path_factory.mktemp("deep"), list(POLICIES.values()))


class TestRetrain:
    def test_a_file_that_was_not_kept_is_made(self, found: deep.Found, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        unkept = found.policies[0].artifact.model_copy(update={"sha256": None})
        again = retrain(found.policies[0].model_copy(update={"artifact": unkept}), path, workload=ENTRY)
        assert again.same_file is None
        assert path.read_bytes() == file_of(found, 0).read_bytes()

    def test_another_file_says_so(self, found: deep.Found, tmp_path: Path) -> None:
        other = found.policies[0].artifact.model_copy(update={"sha256": "0" * 64})
        changed = found.policies[0].model_copy(update={"artifact": other})
        assert retrain(changed, tmp_path / "model.safetensors", workload=ENTRY).same_file is False

    def test_other_data_or_models_are_refused(self, found: deep.Found, tmp_path: Path) -> None:
        for entry, what in (("shifted", "data"), ("other", "float model")):
            with pytest.raises(WorkloadError, match=rf"its {what} changed since the policy was found"):
                retrain(found.policies[0], tmp_path / "m", workload=f"tests.test_verification:{entry}")
            with pytest.raises(WorkloadError, match=rf"its {what} changed since the policy was found"):
                report(found.policies[0], workload=f"tests.test_verification:{entry}")

    def test_an_output_that_cannot_be_written_is_named(self, found: deep.Found, tmp_path: Path) -> None:
        shutil.copy(__file__, tmp_path / "file")
        with pytest.raises(ConfigError, match="cannot be written"):
            retrain(found.policies[0], tmp_path / "file" / "model.safetensors", workload=ENTRY)


class TestReport:
    @pytest.mark.parametrize("name", ["blocks", "student", "activations"])
    def test_one_shot_it_is_what_is_in_the_file(self, name: str, found: deep.Found) -> None:
        number = list(POLICIES).index(name)
        policy = found.policies[number]
        content = unpack(family_of(load_workload(ENTRY)), open_packed(file_of(found, number)))
        told = report(policy, workload=ENTRY)
        assert not told.trained
        assert [one.site for one in told.sites] == list(content.coded)
        for one in told.sites:
            coded = content.coded[one.site]
            assert one.choice == policy.sites[one.site]
            assert one.bytes == coded.payload_bytes("packed")
            assert one.sparsity == 1 - coded.nonzero / coded.values.numel()
            assert 0 <= one.error < 1
            assert one.note is None
        layout = content.variant.layout
        assert layout.file_bytes(sum(one.bytes for one in told.sites)) == policy.artifact.bytes

    def test_a_trained_file_is_another(self, found: deep.Found) -> None:
        policy = found.policies[0]
        trained = policy.model_copy(update={"score": policy.score.model_copy(update={"rung": 1})})
        told = report(trained, workload=ENTRY).document()
        assert told["trained_after"] is True
        assert json.loads(json.dumps(told))["sites"][0]["choice"]["weights"]["bits"] == 4


def test_what_shapes_a_file_is_in_the_policy(found: deep.Found) -> None:
    for policy in found.policies:
        assert PolicyFile.model_validate_json(policy.text()) == policy
