"""From a policy to what is deployed, on the command line: the packed file, its ONNX model, and what was done."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from objectives.serving import load
from search.export import write_policy
from tests import deep
from tests.commands import Ended, refused, run
from tests.deep import ENTRY, POLICIES, file_of

ONE = {"accuracy", "expected_accuracy", "bytes", "path", "retrained", "same_file", "sha256"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> deep.Found:
    return deep.scored(tmp_path_factory.mktemp("deep"), [POLICIES["channels"]])


@pytest.fixture
def folder(found: deep.Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with policy.json, which is the current one."""
    monkeypatch.chdir(tmp_path)
    write_policy(found.policies[0], tmp_path / "policy.json")
    return tmp_path


def apply(found: deep.Found, *words: str) -> Ended:
    return run("apply", "policy.json", *words, "--cache", str(found.cache), "--workload", ENTRY)


def documents(ended: Ended) -> dict[str, Any]:
    assert (ended.code, ended.err) == (0, "")
    told: dict[str, Any] = json.loads(ended.out)
    assert list(told) == ["model", "onnx", "report"]
    return told


def test_the_packed_file_and_its_onnx_model_are_written_and_verified(folder: Path, found: deep.Found) -> None:
    ended = apply(found, "-o", "model.safetensors", "--onnx", "model.onnx")
    assert (ended.code, ended.err) == (0, "")
    packed, onnx, kinds = ended.out.splitlines()
    size, accuracy = found.policies[0].artifact.bytes, found.policies[0].score.accuracy
    assert packed == f"model.safetensors: {size:,} bytes, the file that scored {accuracy:.4f}"
    assert onnx.startswith(f"model.onnx: {(folder / 'model.onnx').stat().st_size:,} bytes, differs from torch by ")
    assert kinds == "weights of sites: 7 int4"
    assert load(folder / "model.safetensors", workload=ENTRY).get_parameter("stem.weight").shape == (12, 8)
    for name, verdict in (("model.onnx", "scores what the policy says"), ("model.safetensors", "is what the policy")):
        ended = run("verify", name, "policy.json", "--workload", ENTRY)
        assert (ended.code, ended.err) == (0, "")
        assert verdict in ended.out.splitlines()[-1]
        assert ("hash" in ended.out) == (name == "model.safetensors")


def test_the_onnx_model_alone_and_json(folder: Path, found: deep.Found) -> None:
    told = documents(apply(found, "--onnx", "model.onnx", "--json"))
    assert told["model"] is None
    assert told["report"] is None
    assert set(told["onnx"]["stored"].values()) == {"int4"}
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "policy.json"]
    seen = json.loads(run("verify", "model.onnx", "policy.json", "--workload", ENTRY, "--json").out)
    assert (seen["ok"], seen["kind"], seen["expected_bytes"]) == (True, "onnx", None)
    assert seen["measured_bytes"] == told["onnx"]["bytes"]


def test_handing_out_and_retraining_tell_the_same(folder: Path, found: deep.Found) -> None:
    first = documents(apply(found, "-o", "one.safetensors", "--json"))["model"]
    again = documents(apply(found, "-o", "two.safetensors", "--retrain", "--json"))["model"]
    assert first.keys() == again.keys() == ONE
    assert (first.pop("retrained"), again.pop("retrained")) == (False, True)
    assert (first.pop("path"), again.pop("path")) == ("one.safetensors", "two.safetensors")
    assert first == again
    assert (folder / "one.safetensors").read_bytes() == (folder / "two.safetensors").read_bytes()


def test_a_report_says_what_was_done_at_each_site(folder: Path, found: deep.Found) -> None:
    ended = apply(found, "--report")
    assert (ended.code, ended.err) == (0, "")
    assert all(f" {site} " in ended.out for site in deep.WHOLE)
    assert "4 bits, 50 % pruned" in ended.out
    told = documents(apply(found, "--report", "--json"))["report"]
    assert [one["site"] for one in told["sites"]] == list(deep.WHOLE)
    assert told["sites"][0]["sparsity"] == 0.5
    assert [path.name for path in folder.iterdir()] == ["policy.json"]


def test_without_the_extra_packages_the_packed_file_is_there(
    folder: Path, found: deep.Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ended = apply(found, "-o", "model.safetensors", "--onnx", "model.onnx")
    assert ended.code == 2
    assert "pip install slimfront[onnx]" in ended.err
    assert (folder / "model.safetensors").read_bytes() == file_of(found, 0).read_bytes()
    assert not (folder / "model.onnx").exists()
    (folder / "model.onnx").touch()
    assert "pip install slimfront[onnx]" in refused(run("verify", "model.onnx", "policy.json", "--workload", ENTRY), 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to do: give -o FILE, --onnx FILE, --report"),
        (("--retrain", "--onnx", "m.onnx"), "--retrain: makes the packed file again; name it with -o FILE"),
        (("-o", "m.onnx"), "-o writes the packed file; for an ONNX file give --onnx m.onnx"),
        (("-o", "m", "--onnx", "./m"), "-o and --onnx: both are m; give them two names"),
    ],
)
def test_what_contradicts_itself_is_refused(
    words: tuple[str, ...], message: str, folder: Path, found: deep.Found
) -> None:
    assert message in refused(apply(found, *words), 2)
    assert [path.name for path in folder.iterdir()] == ["policy.json"]


def test_the_tolerance_can_be_given(folder: Path, found: deep.Found) -> None:
    score = found.policies[0].score
    off = score.model_copy(update={"accuracy": score.accuracy - 0.01})
    write_policy(found.policies[0].model_copy(update={"score": off}), folder / "policy.json")
    words = ("verify", str(file_of(found, 0)), "policy.json", "--workload", ENTRY)
    assert "more than 0.002 apart" in run(*words).out
    assert run(*words).code == 1
    assert run(*words, "--tolerance", "0.02").code == 0
    for bad in ("-1", "nan"):
        assert "--tolerance: given" in refused(run(*words, "--tolerance", bad), 2)


def test_inspect_shows_channels_blocks_and_students(folder: Path) -> None:
    (folder / "deep.yaml").write_text(f"study: deep\nworkload: {ENTRY}\nspace: {{channels: [0.5], bits: [4, 8]}}\n")
    ended = run("inspect", "deep.yaml")
    assert ended.code == 0
    assert "group-blocks.0.up" in ended.out
    assert "0, 0.5" in ended.out
    assert "channels of head cannot be removed: they are the model's output" in ended.out
    assert "blocks that can be left out (not searched): blocks.0, blocks.1" in ended.out
    assert "student small: 496 weights" in ended.out
    assert "coding: entropy" in ended.out
    seen = json.loads(run("inspect", "deep.yaml", "--json", "--set", "space.blocks=true", "--set", "coding=packed").out)
    assert [(one["name"], one["channels"], one["ratios"]) for one in seen["groups"]] == [
        ("group-stem", 24, [0.0, 0.5]),
        ("group-blocks.0.up", 16, [0.0, 0.5]),
        ("group-blocks.1.up", 16, [0.0, 0.5]),
    ]
    assert seen["groups"][0]["members"] == ["stem"]
    assert seen["skipped"].keys() == {"group-narrow", "group-head"}
    assert (seen["blocks"], seen["blocks_searched"]) == (["blocks.0", "blocks.1"], True)
    assert seen["students"] == [{"name": "small", "weights": 496, "searched": True}]
    assert seen["coding"] == "packed"
