"""Policy files: what comes back from one, and what is refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from spaces.errors import ConfigError
from spaces.policy import (
    ArtifactRecord,
    ChannelPruning,
    Choice,
    Codebook,
    DistillationRecord,
    DynamicActivations,
    Float16,
    Policy,
    PolicyFile,
    Provenance,
    ScoreRecord,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    WorkloadRecord,
    read_policy,
)
from tests.test_policy import CHANGED, SETTINGS, random_policy

FILE = PolicyFile(
    workload=WorkloadRecord(entry="my.py:workload", model_sha256="1" * 64, data_sha256="2" * 64),
    target="storage",
    sites={
        "body": Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)),
        "köpfe.0": Choice(weights=Float16()),
        "words": Choice(
            prune=SemiStructured(n=2, m=4, criterion="taylor"),
            weights=Codebook(bits=3, fisher=True, rounding="gptq"),
            activations=DynamicActivations(bits=8),
        ),
        "neck": Choice(
            prune=Threshold(value=0.01),
            weights=Uniform(bits=4, scale_per="group", group_size=16, symmetric=False, rounding="adaround"),
            activations=StaticActivations(bits=4, range="percentile"),
        ),
    },
    channels={"group-1": 0.25},
    channel_pruning=ChannelPruning(criterion="apoz", multiple=8),
    dropped=("body.7",),
    model="half",
    smoothing=0.5,
    distillation=DistillationRecord(**{**SETTINGS.model_dump(), **CHANGED}, steps=200, ladder=(50, 200)),
    artifact=ArtifactRecord(sha256="a" * 64, bytes=31240, coding="entropy"),
    score=ScoreRecord(
        accuracy=0.98,
        accuracy_ci95=(0.97, 0.99),
        test_accuracy=None,
        bytes=31240,
        macs=1.2e7,
        float_accuracy=0.985,
        float_test_accuracy=0.98,
        float_bytes=695360,
        rung=2,
    ),
    provenance=Provenance(
        study="mine", trial=57, seed=0, chunk=200, threads=1, device="cpu", versions={"torch": "2.13.0"}
    ),
)
DOCUMENT: dict[str, Any] = json.loads(FILE.text())
OPTIONAL = {"channels", "channel_pruning", "dropped", "model", "smoothing"}


def changed(path: str, value: Any) -> dict[str, Any]:
    """A copy of the document with one key set; keys are separated by slashes."""
    document: dict[str, Any] = json.loads(json.dumps(DOCUMENT))
    *way, last = path.split("/")
    inner = document
    for key in way:
        inner = inner[key]
    inner[last] = value
    return document


class TestPolicyFile:
    def test_it_comes_back_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "policy.json").write_text(FILE.text(), encoding="utf-8")
        assert read_policy(tmp_path / "policy.json") == FILE
        assert FILE.text().endswith("}\n")

    def test_it_holds_the_policy_that_was_searched(self) -> None:
        policy = Policy(
            sites=FILE.sites,
            channels={"group-1": 0.25},
            channel_pruning=ChannelPruning(criterion="apoz", multiple=8),
            dropped=("body.7",),
            model="half",
            smoothing=0.5,
            distillation=SETTINGS.model_copy(update=CHANGED),
        )
        assert FILE.policy == policy
        assert FILE.policy.digest == policy.digest
        alone = PolicyFile.model_validate(changed("distillation", None))
        assert alone.policy == policy.model_copy(update={"distillation": None})

    def test_every_field_of_a_policy_is_in_its_file(self) -> None:
        assert Policy.model_fields.keys() <= PolicyFile.model_fields.keys()
        for name in set(Policy.model_fields) - {"sites", "distillation"}:
            other = PolicyFile.model_validate({k: v for k, v in DOCUMENT.items() if k != name})
            assert getattr(other.policy, name) == getattr(Policy(sites={}), name)
            assert other.policy.digest != FILE.policy.digest

    @pytest.mark.parametrize("seed", range(20))
    def test_every_policy_comes_back_from_its_file(self, tmp_path: Path, seed: int) -> None:
        policy = random_policy(seed)
        settings = policy.distillation
        record = DistillationRecord(**settings.model_dump(), steps=3, ladder=(3,)) if settings else None
        fields = {name: getattr(policy, name) for name in Policy.model_fields} | {"distillation": record}
        path = tmp_path / "policy.json"
        path.write_text(FILE.model_copy(update=fields).text(), encoding="utf-8")
        assert read_policy(path).policy == policy
        assert read_policy(path).policy.digest == policy.digest

    def test_a_file_of_before_there_were_more_kinds_is_read(self) -> None:
        """Keys that were added since have the value that it was then."""
        old = {
            "prune": {"kind": "unstructured", "ratio": 0.5, "criterion": "magnitude"},
            "weights": {
                "kind": "uniform",
                "bits": 4,
                "scale_per": "channel",
                "symmetric": True,
                "rounding": "nearest",
            },
            "activations": None,
        }
        settings = {"temperature": 4.0, "alpha": 0.7, "learning_rate": 0.001, "batch_size": 32}
        document = {
            **{key: DOCUMENT[key] for key in ("format", "version", "workload", "target", "score", "provenance")},
            "sites": {"body": old},
            "channels": {},
            "distillation": {**settings, "steps": 200, "ladder": [200]},
            "artifact": {"sha256": "a" * 64, "bytes": 31240, "coding": "packed"},
        }
        expected = Policy(sites={"body": FILE.sites["body"]}, distillation=SETTINGS)
        assert PolicyFile.model_validate(document).policy == expected

    def refused(self, folder: Path, text: str | bytes) -> str:
        path = folder / "policy.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError) as caught:
            read_policy(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        "path",
        [
            "surprise",
            "workload/surprise",
            "sites/body/surprise",
            "sites/body/weights/surprise",
            "sites/body/prune/surprise",
            "sites/body/prune/n",
            "sites/words/weights/scale_per",
            "sites/words/activations/range",
            "sites/neck/activations/surprise",
            "channel_pruning/surprise",
            "distillation/surprise",
            "distillation/penalty/surprise",
            "artifact/surprise",
            "score/surprise",
            "provenance/surprise",
        ],
    )
    def test_a_key_it_does_not_know_is_named(self, tmp_path: Path, path: str) -> None:
        message = self.refused(tmp_path, json.dumps(changed(path, 1)))
        problem = message.splitlines()[1]
        assert problem.endswith(": given 1: Extra inputs are not permitted")
        assert all(key in problem for key in path.split("/"))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("sites/body/weights/kind", "ternary"),
            ("sites/body/weights/bits", 9),
            ("sites/body/weights/group_size", 16),
            ("sites/neck/weights/scale_per", "channel"),
            ("sites/body/prune/ratio", 1.5),
            ("sites/body/prune/criterion", "l2"),
            ("sites/words/prune/n", 4),
            ("sites/words/activations/bits", 16),
            ("sites/body/activations", "static"),
            ("channels/group-1", 1.0),
            ("channel_pruning/multiple", 0),
            ("dropped", "body.7"),
            ("model", 1),
            ("smoothing", 2),
            ("distillation/penalty", "l1"),
            ("distillation/masks", "none"),
            ("artifact/coding", "zip"),
            ("target", "phone"),
            ("artifact/sha256", "../../etc/passwd"),
            ("artifact/bytes", 0),
            ("score/rung", -1),
            ("distillation/ladder", [50, 199]),
            ("provenance/trial", -1),
            ("provenance", None),
        ],
    )
    def test_a_value_it_does_not_know_is_named(self, tmp_path: Path, path: str, value: Any) -> None:
        message = self.refused(tmp_path, json.dumps(changed(path, value)))
        assert path.rpartition("/")[-1] in message

    @pytest.mark.parametrize("key", sorted(set(DOCUMENT) - {"format", "version"} - OPTIONAL))
    def test_a_missing_key_is_named(self, tmp_path: Path, key: str) -> None:
        message = self.refused(tmp_path, json.dumps({k: v for k, v in DOCUMENT.items() if k != key}))
        assert message.endswith(f"\n  {key}: is missing")

    @pytest.mark.parametrize("version", [2, 0, "1", None, 1.5])
    def test_another_version_is_refused(self, tmp_path: Path, version: Any) -> None:
        assert f"version: given {version!r}" in self.refused(tmp_path, json.dumps(changed("version", version)))

    @pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"format": "other"}'])
    def test_json_that_is_no_policy_is_refused(self, tmp_path: Path, text: str) -> None:
        assert '"format" must be "slimfront.policy"' in self.refused(tmp_path, text)

    @pytest.mark.parametrize(
        "text",
        [b"", b"\xff\xfe", FILE.text().encode()[:-10], b"[" * 200_000, b'{"format": ' + b"1" * 10_000 + b"}"],
        ids=["empty", "not UTF-8", "truncated", "too deep", "too long a number"],
    )
    def test_what_is_no_json_is_refused(self, tmp_path: Path, text: bytes) -> None:
        assert "cannot be read as policy JSON" in self.refused(tmp_path, text)

    def test_a_number_that_is_not_finite_is_refused(self, tmp_path: Path) -> None:
        assert "macs" in self.refused(tmp_path, FILE.text().replace("12000000.0", "NaN"))

    def test_a_missing_file_and_a_folder_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="slimfront export"):
            read_policy(tmp_path / "missing.json")
        with pytest.raises(ConfigError, match="cannot be read"):
            read_policy(tmp_path)

    @pytest.mark.parametrize("seed", range(20))
    def test_damage_is_refused_or_reads_as_another_policy_file(self, tmp_path: Path, seed: int) -> None:
        draw = random.Random(seed)
        path = tmp_path / "policy.json"
        for _ in range(25):
            blob = bytearray(FILE.text().encode())
            for _ in range(draw.randrange(1, 4)):
                blob[draw.randrange(len(blob))] = draw.randrange(256)
            path.write_bytes(blob)
            try:
                found = read_policy(path)
            except ConfigError:
                continue
            assert PolicyFile.model_validate_json(found.text()) == found
