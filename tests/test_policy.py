"""Policies as values: their JSON form, their digest, and what a policy file refuses."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spaces.errors import ConfigError
from spaces.policy import (
    ArtifactRecord,
    Choice,
    Distillation,
    DistillationRecord,
    Float16,
    Float32,
    NoPruning,
    Policy,
    PolicyFile,
    Provenance,
    ScoreRecord,
    Uniform,
    Unstructured,
    Weights,
    WorkloadRecord,
    read_policy,
)

SETTINGS = Distillation(temperature=4, alpha=0.7, learning_rate=1e-3, batch_size=32)
FILE = PolicyFile(
    workload=WorkloadRecord(entry="my.py:workload", model_sha256="1" * 64, data_sha256="2" * 64),
    target="storage",
    sites={
        "body": Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)),
        "köpfe.0": Choice(weights=Float16()),
    },
    channels={"group-1": 0.25},
    distillation=DistillationRecord(**SETTINGS.model_dump(), steps=200, ladder=(50, 200)),
    artifact=ArtifactRecord(sha256="a" * 64, bytes=31240),
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


def random_policy(seed: int) -> Policy:
    draw = random.Random(seed)
    weights: list[Weights] = [Float32(), Float16(), *(Uniform(bits=bits) for bits in range(2, 9))]
    sites = {}
    for i in range(draw.randrange(6)):
        prune = Unstructured(ratio=draw.uniform(0.001, 0.999)) if draw.random() < 0.5 else NoPruning()
        sites[f"layers.{i}.ü\n\"'{chr(draw.randrange(32, 0xD800))}"] = Choice(prune=prune, weights=draw.choice(weights))
    settings = Distillation(
        temperature=draw.uniform(0.1, 20), alpha=draw.random(), learning_rate=draw.random() + 1e-6, batch_size=8
    )
    return Policy(sites=sites, channels={"g": draw.random()}, distillation=draw.choice([None, settings]))


class TestPolicy:
    @pytest.mark.parametrize("seed", range(50))
    def test_it_comes_back_from_json(self, seed: int) -> None:
        policy = random_policy(seed)
        again = Policy.model_validate_json(policy.model_dump_json())
        assert again == policy
        assert again.digest == policy.digest

    def test_its_digest_is_the_sha256_of_canonical_json(self) -> None:
        policy = Policy(sites={"head": Choice(weights=Uniform(bits=4))})
        text = (
            '{"channels":{},"distillation":null,"sites":{"head":{"activations":null,"prune":{"kind":"none"},'
            '"weights":{"bits":4,"kind":"uniform","rounding":"nearest","scale_per":"channel","symmetric":true}}}}'
        )
        assert policy.digest == hashlib.sha256(text.encode()).hexdigest()

    def test_equal_policies_have_equal_digests(self) -> None:
        one, other = Choice(weights=Uniform(bits=4)), Choice(prune=Unstructured(ratio=0.5))
        settings = SETTINGS.model_dump()
        pairs = [
            (Policy(sites={"a": one, "b": other}), Policy(sites={"b": other, "a": one})),
            (
                Policy(sites={}, distillation=SETTINGS),
                Policy(sites={}, distillation=Distillation(**settings | {"temperature": 4.0})),
            ),
            (
                Policy(sites={}, distillation=Distillation(**settings | {"alpha": 0.0})),
                Policy(sites={}, distillation=Distillation(**settings | {"alpha": -0.0})),
            ),
            (Policy(sites={}, channels={"g": 0.0}), Policy(sites={}, channels={"g": -0.0})),
        ]
        for left, right in pairs:
            assert left == right
            assert left.digest == right.digest

    def test_every_setting_changes_the_digest(self) -> None:
        def at(choice: Choice) -> Policy:
            return Policy(sites={"a": choice}, distillation=SETTINGS)

        changed = [
            *(at(Choice(weights=weights)) for weights in (Float32(), Float16(), Uniform(bits=4), Uniform(bits=5))),
            *(at(Choice(prune=Unstructured(ratio=ratio))) for ratio in (0.5, 0.5 + 2**-50)),
            Policy(sites={"b": Choice()}, distillation=SETTINGS),
            Policy(sites={"a": Choice(), "b": Choice()}, distillation=SETTINGS),
            Policy(sites={"a": Choice()}, channels={"g": 0.5}, distillation=SETTINGS),
            Policy(sites={"a": Choice()}),
            *(
                Policy(sites={"a": Choice()}, distillation=Distillation(**SETTINGS.model_dump() | {key: value}))
                for key, value in (("temperature", 5), ("alpha", 0.5), ("learning_rate", 1e-4), ("batch_size", 16))
            ),
        ]
        assert len({policy.digest for policy in changed}) == len(changed)

    def test_it_is_frozen(self) -> None:
        policy = Policy(sites={"a": Choice()})
        with pytest.raises(ValidationError, match="frozen"):
            policy.distillation = SETTINGS

    @pytest.mark.parametrize(
        ("choice", "ratio", "label"),
        [
            (Choice(), 0.0, "float32"),
            (Choice(weights=Float16()), 0.0, "float16"),
            (Choice(prune=Unstructured(ratio=0.25)), 0.25, "float32, 25 % pruned"),
            (Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)), 0.5, "4 bits, 50 % pruned"),
        ],
    )
    def test_a_choice_has_a_ratio_and_a_label(self, choice: Choice, ratio: float, label: str) -> None:
        assert (choice.ratio, choice.label) == (ratio, label)

    @pytest.mark.parametrize(
        ("kind", "settings"),
        [
            (Unstructured, {"ratio": 0}),
            (Unstructured, {"ratio": 1}),
            (Unstructured, {"ratio": float("nan")}),
            (Uniform, {"bits": 1}),
            (Uniform, {"bits": 9}),
            (Distillation, SETTINGS.model_dump() | {"temperature": 0}),
            (Distillation, SETTINGS.model_dump() | {"temperature": float("inf")}),
            (Distillation, SETTINGS.model_dump() | {"alpha": 1.01}),
            (Distillation, SETTINGS.model_dump() | {"batch_size": 0}),
            (Policy, {"sites": {}, "channels": {"g": float("nan")}}),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 5, "ladder": (3,)}),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 3, "ladder": (5, 3)}),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 3, "ladder": (3, 3)}),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 3, "ladder": ()}),
        ],
    )
    def test_impossible_numbers_are_refused(self, kind: type[Policy], settings: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            kind(**settings)


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
        assert FILE.policy == Policy(sites=FILE.sites, channels=FILE.channels, distillation=SETTINGS)
        alone = PolicyFile.model_validate(changed("distillation", None))
        assert alone.policy == Policy(sites=FILE.sites, channels=FILE.channels)

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
            "distillation/surprise",
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
            ("sites/body/weights/kind", "codebook"),
            ("sites/body/weights/bits", 9),
            ("sites/body/prune/ratio", 1.5),
            ("sites/body/prune/criterion", "random"),
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

    @pytest.mark.parametrize("key", sorted(set(DOCUMENT) - {"format", "version", "channels"}))
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
