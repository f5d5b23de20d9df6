"""A file is held against its policy: packed or ONNX, whole or cut, and whatever does not hold is said in words."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from objectives.deployment import deploy
from objectives.verification import Verification, verify
from objectives.workload import Workload
from spaces.errors import ArtifactError, CandidateError, WorkloadError
from spaces.policy import Choice, Float16, PolicyFile, StaticActivations, Uniform
from tests import deep, tiny
from tests.deep import ENTRY, POLICIES, file_of

NAMES = list(POLICIES)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> deep.Found:
    return deep.scored(tmp_path_factory.mktemp("deep"), list(POLICIES.values()))


def check(found: deep.Found, name: str, file: str | Path | None = None, **changed: Any) -> Verification:
    """Verify the file of a policy (or that of another, by its name) against the policy with changes."""
    path = file if isinstance(file, Path) else file_of(found, NAMES.index(file or name))
    return verify(path, found.policies[NAMES.index(name)].model_copy(update=changed), workload=ENTRY)


def said(verification: Verification) -> str:
    assert not verification.ok
    return "\n".join(verification.reasons)


def shifted() -> Workload:
    """The same models on other validation data."""
    made = deep.workload()
    inputs, targets = tiny.clouds(tiny.SIZES[2], seed=2)
    return replace(made, validation=(-inputs, targets))


def other() -> Workload:
    """Models of other architectures."""
    return replace(deep.workload(), model=deep.made(1, 4, 4), students={}, early=None)


@pytest.mark.parametrize("name", POLICIES)
def test_what_was_exported_is_what_was_scored(name: str, found: deep.Found) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = check(found, name)
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
    policy, path = found.policies[NAMES.index(name)], file_of(found, NAMES.index(name))
    assert (seen.ok, seen.reasons, seen.notes) == (True, (), ())
    assert seen.measured_accuracy == seen.expected_accuracy == policy.score.accuracy
    assert seen.measured_test_accuracy == seen.expected_test_accuracy == policy.score.test_accuracy
    assert seen.measured_bytes == seen.expected_bytes == path.stat().st_size
    assert seen.same_file
    assert seen.same_model
    assert seen.same_data
    assert (seen.document()["ok"], seen.kind) == (True, "packed")


class TestWhatAFileHolds:
    def test_another_policys_file_is_a_mismatch(self, found: deep.Found) -> None:
        text = said(check(found, "pruned", "codebook"))
        assert "bytes, the policy says" in text
        assert "SHA-256" in text
        assert (
            "site stem: the file holds codebook weights of 3 bits, 192 of 192 not zero; the policy says 4 bits" in text
        )
        assert f"accuracy on validation is {found.policies[NAMES.index('codebook')].score.accuracy:.6f}" in text

    def test_channels_that_are_left_are_counted(self, found: deep.Found) -> None:
        assert "group-stem: 24 of 24 channels are left, the policy says 12" in said(check(found, "channels", "pruned"))
        assert "group-stem: 12 of 24 channels are left, the policy says 24" in said(check(found, "pruned", "channels"))
        fewer = said(check(found, "channels", channels={"group-stem": 0.75, "group-x": 0.5}))
        assert "group-stem: 12 of 24 channels are left, the policy says 6" in fewer
        assert "the model has no channels group-x" in fewer

    def test_their_number_is_rounded_as_the_policy_says(self, found: deep.Found) -> None:
        policy = found.policies[NAMES.index("channels")]
        assert policy.channel_pruning is not None
        by_eight = policy.channel_pruning.model_copy(update={"multiple": 8})
        text = said(check(found, "channels", channel_pruning=by_eight))
        assert "group-stem: 12 of 24 channels are left, the policy says 16" in text

    def test_blocks_that_are_left_out_are_named(self, found: deep.Found) -> None:
        text = said(check(found, "channels", "blocks"))
        assert "the file leaves out blocks.1, the policy says no block" in text
        assert "sites are not those of the policy: blocks.1.down, blocks.1.up" in text
        assert "the file leaves out no block, the policy says blocks.1" in said(check(found, "blocks", "channels"))

    def test_another_model_of_the_workload_is_named(self, found: deep.Found) -> None:
        text = said(check(found, "student", "pruned"))
        assert "the file holds the model that was brought, the policy is of the student 'small'" in text
        text = said(check(found, "pruned", "student"))
        assert "the file holds the student 'small', the policy is of the model that was brought" in text
        assert "'tall', which the workload does not offer" in said(check(found, "student", model="tall"))

    @pytest.mark.parametrize(
        ("choice", "holds"),
        [
            (Choice(weights=Uniform(bits=8)), "8-bit static activations; the policy says 8 bits"),
            (Choice(weights=Uniform(bits=8), activations=StaticActivations(bits=7)), "8-bit static activations"),
            (POLICIES["dynamic"].sites["stem"], "uniform weights of 8 bits"),
            (Choice(weights=Float16(), activations=StaticActivations(bits=8)), "uniform weights of 8 bits"),
        ],
    )
    def test_what_is_done_to_inputs_is_compared(self, choice: Choice, holds: str, found: deep.Found) -> None:
        sites = {**POLICIES["activations"].sites, "stem": choice}
        text = said(check(found, "activations", sites=sites))
        assert text.count("site ") == 1
        assert holds in text

    def test_a_file_of_another_workload_is_refused(self, found: deep.Found) -> None:
        seen = verify(file_of(found, 0), found.policies[0], workload="tests.test_verification:other")
        assert "packed from a model with other layers" in said(seen)
        assert (seen.measured_accuracy, seen.measured_test_accuracy) == (None, None)

    def test_a_damaged_file_is_a_mismatch(self, found: deep.Found, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(file_of(found, 0).read_bytes()[:-1] + b"\xff")
        seen = check(found, "pruned", path)
        assert seen.measured_accuracy is None
        assert "damaged" in said(seen)

    def test_a_missing_file_is_named(self, found: deep.Found, tmp_path: Path) -> None:
        for name in ("nothing.safetensors", "nothing.onnx"):
            with pytest.raises(ArtifactError, match=rf"{name}: cannot be read"):
                check(found, "pruned", tmp_path / name)

    def test_a_hash_that_the_policy_lacks_is_noted(self, found: deep.Found) -> None:
        record = found.policies[0].artifact.model_copy(update={"sha256": None})
        seen = check(found, "pruned", artifact=record)
        assert (seen.ok, seen.same_file) == (True, None)
        assert "no hash" in seen.notes[0]


class TestScores:
    def wrong(self, found: deep.Found) -> PolicyFile:
        score = found.policies[0].score
        changed = {"accuracy": score.accuracy + 0.0015, "test_accuracy": None}
        return found.policies[0].model_copy(update={"score": score.model_copy(update=changed)})

    def test_one_that_is_not_reached_is_a_mismatch_beyond_the_tolerance(self, found: deep.Found) -> None:
        near = verify(file_of(found, 0), self.wrong(found), workload=ENTRY)
        assert near.ok
        assert "within 0.002" in near.notes[0]
        assert near.expected_test_accuracy is None
        far = verify(file_of(found, 0), self.wrong(found), workload=ENTRY, tolerance=0.001)
        assert "more than 0.001 apart" in said(far)

    def test_other_data_is_named(self, found: deep.Found) -> None:
        seen = verify(file_of(found, 0), found.policies[0], workload="tests.test_verification:shifted")
        assert (seen.same_file, seen.same_model, seen.same_data) == (True, True, False)
        assert said(seen).startswith(f"{ENTRY}: its data changed since the policy was found")

    def test_a_workload_that_does_not_ship_must_be_named(self, found: deep.Found) -> None:
        with pytest.raises(WorkloadError, match=r"'tests\.deep:workload', which does not ship"):
            verify(file_of(found, 0), found.policies[0])


@pytest.fixture(scope="module")
def onnx(found: deep.Found, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of the policy `channels`."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    deploy(file_of(found, NAMES.index("channels")), path, workload=ENTRY)
    return path


class TestOnnx:
    def test_it_is_scored_in_onnx_runtime_and_nothing_else_is_claimed(self, found: deep.Found, onnx: Path) -> None:
        seen = check(found, "channels", onnx)
        assert seen.ok
        assert (seen.kind, seen.expected_bytes, seen.same_file) == ("onnx", None, None)
        assert seen.measured_bytes == onnx.stat().st_size
        assert seen.measured_accuracy == pytest.approx(seen.expected_accuracy, abs=0.002)
        assert "judged by its scores alone" in seen.notes[0]

    def test_scores_of_another_policy_are_a_mismatch(self, found: deep.Found, onnx: Path) -> None:
        policy = found.policies[NAMES.index("channels")]
        score = policy.score.model_copy(update={"accuracy": policy.score.accuracy - 0.1})
        text = said(check(found, "channels", onnx, score=score))
        assert "accuracy on validation is" in text
        assert "more than 0.002 apart" in text

    def test_rounded_inputs_may_differ_by_more(self, found: deep.Found, onnx: Path) -> None:
        policy = found.policies[NAMES.index("channels")]
        score = policy.score.model_copy(update={"accuracy": policy.score.accuracy - 0.004})
        rounded = {
            name: choice.model_copy(update={"activations": StaticActivations(bits=8)})
            for name, choice in policy.sites.items()
        }
        assert check(found, "channels", onnx, score=score, sites=rounded).ok
        assert "more than 0.002 apart" in said(check(found, "channels", onnx, score=score))

    def test_a_file_that_is_none_is_a_mismatch(self, found: deep.Found, onnx: Path, tmp_path: Path) -> None:
        path = tmp_path / "packed.onnx"
        shutil.copy(file_of(found, 0), path)
        seen = check(found, "channels", path)
        assert "ONNX Runtime cannot run it" in said(seen)
        assert seen.measured_accuracy is None

    def test_a_metric_that_fails_on_it_is_said(self, found: deep.Found, onnx: Path) -> None:
        with pytest.raises(CandidateError, match="the metric failed on the validation split"):
            verify(onnx, found.policies[1], workload="tests.test_verification:broken")


def broken() -> Workload:
    """Its metric fails."""
    return replace(deep.workload(), metric=lambda outputs, targets: (outputs[:, 99] == targets).float())
