"""The packed file: its length by formula, what comes back from it, and what is refused."""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import load_file, save_file
from torch import nn

from compress.apply import stitch
from compress.artifact import DIGEST_BYTES, KEY, LENGTH, VERSION, Layout, open_packed, read_entry
from compress.coding import RECORD, CodedWeight, Kind
from compress.family import Member
from compress.quantization.uniform import Grid
from spaces.errors import ArtifactError
from spaces.policy import Choice, Codebook, Float16, Uniform, Unstructured
from tests.contracts import database_of
from tests.models import MODELS, Subject, output, random_tensor, subject

ENTRIES = {
    "plain": "objectives.workloads.digits:workload",
    "letters": "größe/模型/🦊.py:workload",
    "escaped": 'a"b\\c/d\n\r\t\b\f\x00\x1f\x7f\u2028.py:w',
    "long": "x" * 5000,
    "empty": "",
}
CHOICES = [
    Choice(),
    Choice(weights=Float16()),
    Choice(prune=Unstructured(ratio=0.7), weights=Uniform(bits=3)),
    Choice(prune=Unstructured(ratio=0.3), weights=Uniform(bits=8, symmetric=False)),
    Choice(weights=Codebook(bits=2)),
]


def layout_of(model: nn.Module, entry: str) -> Layout:
    return Member(None, model, None, entry).whole.layout


def mixed(one: Subject) -> dict[str, CodedWeight]:
    """Every site at another choice."""
    member = Member(None, one.model, one.inputs, "mine:workload")
    database = database_of(member, one)
    return {site.name: database.layer(site, CHOICES[i % 5]).coded for i, site in enumerate(member.sites)}


def packed(one: Subject, entry: str = "mine:workload") -> tuple[Layout, nn.Module, bytes]:
    layout, coded = layout_of(one.model, entry), mixed(one)
    scored = stitch(one.model, layout.sites, coded)
    return layout, scored, layout.pack(scored, coded)


def unpack(layout: Layout, path: Path) -> nn.Module:
    return layout.unpack(open_packed(path))


def forged(body: bytes, entry: str = "mine:workload") -> bytes:
    """A file of this content behind the digest, with the right checksum."""
    payload = hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body
    return save({"payload": np.frombuffer(payload, np.uint8)}, metadata={KEY: f"{VERSION} {entry}"})


def body_of(blob: bytes) -> bytes:
    """What the checksum of a file is over."""
    (length,) = LENGTH.unpack(blob[:4])
    return blob[8 + length + DIGEST_BYTES :]


def put(path: Path, blob: bytes) -> Path:
    path.write_bytes(blob)
    return path


def same_state(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        tensor.dtype == right[name].dtype
        and tensor.reshape(-1).view(torch.uint8).tolist() == right[name].reshape(-1).view(torch.uint8).tolist()
        for name, tensor in left.items()
    )


class TestLength:
    @pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
    @pytest.mark.parametrize("name", MODELS)
    def test_it_is_known_without_writing(self, name: str, entry: str) -> None:
        layout, _, blob = packed(subject(name), entry)
        assert layout.file_bytes(sum(one.payload_bytes() for one in mixed(subject(name)).values())) == len(blob)

    @pytest.mark.parametrize("power", range(3, 8))
    def test_nor_do_the_digits_of_the_length_matter(self, power: int) -> None:
        layout = layout_of(nn.Linear(2, 2), "mine:workload")
        for length in range(10**power - 3, 10**power + 4, 1 if power < 6 else 3):
            blob = save({"payload": np.zeros(length, np.uint8)}, metadata={KEY: f"{VERSION} mine:workload"})
            assert layout.file_bytes(length - layout.fixed_bytes) == len(blob)

    @pytest.mark.parametrize("more", range(9))
    def test_nor_does_the_padding_of_the_header(self, more: int, tmp_path: Path) -> None:
        name = "buffers"
        layout, scored, blob = packed(subject(name), "é" + "x" * more)
        assert layout.file_bytes(sum(one.payload_bytes() for one in mixed(subject(name)).values())) == len(blob)
        assert same_state(unpack(layout, put(tmp_path / "model", blob)), scored)


class TestContent:
    @pytest.mark.parametrize("name", MODELS)
    def test_the_model_that_comes_back_is_the_scored_one_to_the_bit(self, name: str, tmp_path: Path) -> None:
        one = subject(name)
        layout, scored, blob = packed(one)
        found = unpack(layout, put(tmp_path / "model", blob))
        assert same_state(found, scored)
        assert torch.equal(output(found, one.inputs), output(scored, one.inputs))
        assert [m.training for m in found.modules()] == [False] * len(list(found.modules()))

    @pytest.mark.parametrize("name", MODELS)
    def test_everything_but_the_architecture_comes_from_the_file(self, name: str, tmp_path: Path) -> None:
        layout, scored, blob = packed(subject(name))
        blank = copy.deepcopy(layout.model)
        counters = [key for key in blank.state_dict() if key.endswith("num_batches_tracked")]  # these are not in it
        with torch.no_grad():
            for key, tensor in blank.state_dict().items():
                if key not in counters:
                    tensor.zero_()
        assert same_state(unpack(layout_of(blank, "other name"), put(tmp_path / "model", blob)), scored)

    @pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
    def test_it_says_whose_model_it_is_and_is_plain_safetensors(self, entry: str, tmp_path: Path) -> None:
        path = put(tmp_path / "model", packed(subject("buffers"), entry)[2])
        assert read_entry(path) == entry
        assert load_file(path)["payload"].dtype == torch.uint8
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {KEY: f"{VERSION} {entry}"}

    def test_changed_statistics_and_biases_are_taken_from_the_scored_model(self, tmp_path: Path) -> None:
        layout, scored, _ = packed(subject("convolutions"))
        scored.get_buffer("1.running_mean").add_(3)
        scored.get_parameter("9.bias").data.mul_(-1)
        blob = layout.pack(scored, mixed(subject("convolutions")))
        assert same_state(unpack(layout, put(tmp_path / "model", blob)), scored)

    def test_a_weight_that_is_first_seen_under_another_name_is_there_once(self) -> None:
        class Late(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(30, 30, bias=False)
                self.table = self.head.weight  # a model's own parameters come before those of its modules

        layout = layout_of(Late(), "mine:workload")
        assert layout.rest == ()
        assert layout.fixed_bytes == 2 * DIGEST_BYTES + LENGTH.size + RECORD.size

    def test_a_norm_used_twice_is_there_once(self) -> None:
        norm = nn.BatchNorm1d(3)
        layout = layout_of(nn.Sequential(nn.Linear(3, 3), norm, nn.Sequential(norm)), "mine:workload")
        assert layout.rest == ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")

    def test_values_that_do_not_read_back_are_not_written(self) -> None:
        layout, scored, _ = packed(subject("buffers"))
        grid = Grid(torch.full((4, 1), 0.1), 0)  # no half-precision number
        rough = CodedWeight(Kind.UNIFORM, torch.ones(4, 5, dtype=torch.int8), 4, grid)
        with pytest.raises(ArtifactError, match="site linear: what was written does not read back the same"):
            layout.pack(scored, {"linear": rough})


class TestRefusal:
    @pytest.mark.parametrize(
        "other",
        [
            nn.Linear(5, 4),
            nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4)),
            nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3, bias=False)),
            nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 3)),
            nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
            nn.Sequential(nn.Linear(5, 6).bfloat16(), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3).bfloat16()),
        ],
        ids=["other layers", "other shape", "no bias", "other order", "float32", "norm in float32"],
    )
    def test_the_file_of_another_model_is_refused(self, other: nn.Module, tmp_path: Path) -> None:
        path = put(tmp_path / "model", packed(subject("bfloat16"))[2])
        with pytest.raises(ArtifactError, match="--workload"):
            unpack(layout_of(other, "mine:workload"), path)

    def test_the_weights_alone_in_another_type_are_another_model_too(self, tmp_path: Path) -> None:
        layout, _, blob = packed(Subject(nn.Linear(4, 3, bias=False), random_tensor(2, 4)))
        with pytest.raises(ArtifactError, match="--workload"):
            unpack(layout_of(copy.deepcopy(layout.model).double(), "mine:workload"), put(tmp_path / "model", blob))

    @pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 50, 100, 150, 200, -100, -1])
    def test_a_truncated_file_is_refused(self, length: int, tmp_path: Path) -> None:
        layout, _, blob = packed(subject("buffers"))
        path = put(tmp_path / "model", blob[:length])
        with pytest.raises(ArtifactError, match="damaged"):
            unpack(layout, path)

    def test_what_is_no_packed_file_is_refused(self, tmp_path: Path) -> None:
        layout, scored, _ = packed(subject("buffers"))
        save_file({"payload": torch.zeros(8)}, tmp_path / "plain")
        save_file(scored.state_dict(), tmp_path / "state", metadata={KEY: f"{VERSION} mine"})
        torch.save({}, tmp_path / "pickle")
        (tmp_path / "folder").mkdir()
        for name in ("plain", "state", "pickle", "folder", "missing"):
            with pytest.raises(ArtifactError, match=str(tmp_path / name)):
                unpack(layout, tmp_path / name)
            with pytest.raises(ArtifactError, match=str(tmp_path / name)):
                read_entry(tmp_path / name)

    @pytest.mark.parametrize(
        ("version", "fix"),
        [
            (VERSION - 1, "pack it again"),
            (0, "pack it again"),
            (VERSION + 1, "upgrade"),
            (11, "upgrade"),
            ("", "upgrade"),
            ("one", "upgrade"),
            ("²", "upgrade"),
            ("1" * 5000, "upgrade"),
        ],
    )
    def test_another_version_is_refused_with_what_to_do(self, version: object, fix: str, tmp_path: Path) -> None:
        blob = save({"payload": np.zeros(40, np.uint8)}, metadata={KEY: f"{version} mine:workload"})
        words = f"artifact version {str(version)[:20]}, this Slimfront reads {VERSION}: {fix}"
        with pytest.raises(ArtifactError, match=words):
            open_packed(put(tmp_path / "model", blob))

    @pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I8", "I16", "BOOL", "F8_E4M3", "F8_E5M2", "C64"])
    def test_a_payload_of_another_type_is_refused(self, dtype: str, tmp_path: Path) -> None:
        width = {"F64": 8, "C64": 8, "F32": 4, "F16": 2, "BF16": 2, "I16": 2}.get(dtype, 1)
        header = {
            "__metadata__": {KEY: f"{VERSION} mine:workload"},
            "payload": {"dtype": dtype, "shape": [64 // width], "data_offsets": [0, 64]},
        }
        text = json.dumps(header).encode()
        with pytest.raises(ArtifactError, match="damaged"):
            open_packed(put(tmp_path / "model", len(text).to_bytes(8, "little") + text + bytes(64)))

    @pytest.mark.parametrize("shape", [(8, 8), (1, 64), ()])
    def test_a_payload_of_another_shape_is_refused(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        blob = save({"payload": np.zeros(shape, np.uint8)}, metadata={KEY: f"{VERSION} mine:workload"})
        with pytest.raises(ArtifactError, match="wrong type or shape"):
            open_packed(put(tmp_path / "model", blob))


class TestForged:
    """Content that no packing writes, behind a checksum that is right: an error of ours, never another one."""

    START = DIGEST_BYTES + LENGTH.size  # of the records in what the checksum is over

    @pytest.mark.parametrize("more", [b"\0", b"more"])
    def test_bytes_after_the_last_site_are_refused(self, more: bytes, tmp_path: Path) -> None:
        layout, _, blob = packed(subject("tied"))
        with pytest.raises(ArtifactError, match=f"{len(more)} bytes too many"):
            unpack(layout, put(tmp_path / "model", forged(body_of(blob) + more)))

    @pytest.mark.parametrize("length", [1, 9, 10**6, 2**32 - 1])
    def test_a_length_of_structure_that_does_not_fit_is_refused(self, length: int, tmp_path: Path) -> None:
        layout, _, blob = packed(subject("tied"))
        body = body_of(blob)
        again = forged(body[:DIGEST_BYTES] + LENGTH.pack(length) + body[self.START :])
        with pytest.raises(ArtifactError, match=r"damaged|truncated|too many|fit"):
            unpack(layout, put(tmp_path / "model", again))

    @pytest.mark.parametrize("length", [0, 1, 15, 16, 19, 20, 21, 27, 28, 60, 100, -200, -100, -1])
    def test_content_that_ends_early_is_refused(self, length: int, tmp_path: Path) -> None:
        layout, _, blob = packed(subject("convolutions"))
        with pytest.raises(ArtifactError, match=r"truncated|too short|--workload|do not fit|left"):
            unpack(layout, put(tmp_path / "model", forged(body_of(blob)[:length])))

    def test_rounded_inputs_of_a_layer_that_takes_none_are_refused(self, tmp_path: Path) -> None:
        layout, _, blob = packed(subject("tied"))
        body = bytearray(body_of(blob))
        assert layout.sites[0].name == "embedding"
        body[self.START + 3] += 8 * 16  # the input's bits, dynamic: nothing else in the file changes
        with pytest.raises(ArtifactError, match=r"model: site embedding: .*: the file is damaged"):
            unpack(layout, put(tmp_path / "model", forged(bytes(body))))

    def test_the_same_content_again_is_the_same_file(self) -> None:
        _, _, blob = packed(subject("recurrent"))
        assert forged(body_of(blob)) == blob
