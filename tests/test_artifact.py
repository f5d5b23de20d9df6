"""The packed file: its length by formula, what comes back from it, and what is refused."""

import copy
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import load_file, save_file
from torch import nn

from compress.apply import stitch
from compress.artifact import DIGEST_BYTES, KEY, Layout, layout_of, read_entry, read_payload
from compress.coding import RECORD, CodedWeight
from compress.database import LayerDatabase
from compress.sites import find_sites
from spaces.errors import ArtifactError
from spaces.policy import Choice, Float16, Uniform, Unstructured
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
    Choice(prune=Unstructured(ratio=0.3), weights=Uniform(bits=8)),
]


def mixed(one: nn.Module) -> dict[str, CodedWeight]:
    """Every site at another choice."""
    sites = find_sites(one)
    return LayerDatabase(one, sites).policy({site.name: CHOICES[i % 4] for i, site in enumerate(sites)})


def packed(one: Subject, entry: str = "mine:workload") -> tuple[Layout, nn.Module, bytes]:
    layout, coded = layout_of(one.model, entry), mixed(one.model)
    scored = stitch(one.model, layout.sites, coded)
    return layout, scored, layout.pack(scored, coded)


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
        assert layout.file_bytes(sum(one.payload_bytes for one in mixed(layout.model).values())) == len(blob)

    @pytest.mark.parametrize("power", range(3, 8))
    def test_nor_do_the_digits_of_the_length_matter(self, power: int) -> None:
        layout = layout_of(nn.Linear(2, 2), "mine:workload")
        for length in range(10**power - 3, 10**power + 4, 1 if power < 6 else 3):
            blob = save({"payload": np.zeros(length, np.uint8)}, metadata={KEY: "1 mine:workload"})
            assert layout.file_bytes(length - layout.fixed_bytes) == len(blob)

    @pytest.mark.parametrize("more", range(9))
    def test_nor_does_the_padding_of_the_header(self, more: int, tmp_path: Path) -> None:
        layout, scored, blob = packed(subject("buffers"), "é" + "x" * more)
        assert layout.file_bytes(sum(one.payload_bytes for one in mixed(layout.model).values())) == len(blob)
        assert same_state(layout.unpack(put(tmp_path / "model", blob)), scored)


class TestContent:
    @pytest.mark.parametrize("name", MODELS)
    def test_the_model_that_comes_back_is_the_scored_one_to_the_bit(self, name: str, tmp_path: Path) -> None:
        one = subject(name)
        layout, scored, blob = packed(one)
        found = layout.unpack(put(tmp_path / "model", blob))
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
        assert same_state(layout_of(blank, "other name").unpack(put(tmp_path / "model", blob)), scored)

    @pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
    def test_it_says_whose_model_it_is_and_is_plain_safetensors(self, entry: str, tmp_path: Path) -> None:
        path = put(tmp_path / "model", packed(subject("buffers"), entry)[2])
        assert read_entry(path) == entry
        assert load_file(path)["payload"].dtype == torch.uint8
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {KEY: f"1 {entry}"}

    def test_changed_statistics_and_biases_are_taken_from_the_scored_model(self, tmp_path: Path) -> None:
        layout, scored, _ = packed(subject("convolutions"))
        scored.get_buffer("1.running_mean").add_(3)
        scored.get_parameter("9.bias").data.mul_(-1)
        blob = layout.pack(scored, mixed(layout.model))
        assert same_state(layout.unpack(put(tmp_path / "model", blob)), scored)

    def test_a_weight_that_is_first_seen_under_another_name_is_there_once(self) -> None:
        class Late(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(30, 30, bias=False)
                self.table = self.head.weight  # a model's own parameters come before those of its modules

        layout = layout_of(Late(), "mine:workload")
        assert layout.rest == ()
        assert layout.fixed_bytes == 2 * DIGEST_BYTES + RECORD.size

    def test_a_norm_used_twice_is_there_once(self) -> None:
        norm = nn.BatchNorm1d(3)
        layout = layout_of(nn.Sequential(nn.Linear(3, 3), norm, nn.Sequential(norm)), "mine:workload")
        assert layout.rest == ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")

    def test_values_that_do_not_read_back_are_not_written(self) -> None:
        layout, scored, _ = packed(subject("buffers"))
        rough = CodedWeight(
            mixed(layout.model)["linear"].kind.UNIFORM, torch.ones(4, 5, dtype=torch.int8), 4, torch.full((4, 1), 0.1)
        )
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
            layout_of(other, "mine:workload").unpack(path)

    def test_the_weights_alone_in_another_type_are_another_model_too(self, tmp_path: Path) -> None:
        layout, _, blob = packed(Subject(nn.Linear(4, 3, bias=False), random_tensor(2, 4)))
        with pytest.raises(ArtifactError, match="--workload"):
            layout_of(copy.deepcopy(layout.model).double(), "mine:workload").unpack(put(tmp_path / "model", blob))

    @pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 50, 100, 150, 200, -100, -1])
    def test_a_truncated_file_is_refused(self, length: int, tmp_path: Path) -> None:
        layout, _, blob = packed(subject("buffers"))
        path = put(tmp_path / "model", blob[:length])
        with pytest.raises(ArtifactError, match="damaged"):
            layout.unpack(path)

    def test_what_is_no_packed_file_is_refused(self, tmp_path: Path) -> None:
        layout, scored, _ = packed(subject("buffers"))
        save_file({"payload": torch.zeros(8)}, tmp_path / "plain")
        save_file(scored.state_dict(), tmp_path / "state", metadata={KEY: "1 mine"})
        torch.save({}, tmp_path / "pickle")
        (tmp_path / "folder").mkdir()
        for name in ("plain", "state", "pickle", "folder", "missing"):
            with pytest.raises(ArtifactError, match=str(tmp_path / name)):
                layout.unpack(tmp_path / name)
            with pytest.raises(ArtifactError, match=str(tmp_path / name)):
                read_entry(tmp_path / name)

    @pytest.mark.parametrize("version", ["2", "0", "", "one", "11"])
    def test_another_version_is_refused(self, version: str, tmp_path: Path) -> None:
        blob = save({"payload": np.zeros(40, np.uint8)}, metadata={KEY: f"{version} mine:workload"})
        with pytest.raises(ArtifactError, match=f"artifact version {version}, this Slimfront reads 1: upgrade it"):
            read_payload(put(tmp_path / "model", blob))

    @pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I8", "I16", "BOOL", "F8_E4M3", "F8_E5M2", "C64"])
    def test_a_payload_of_another_type_is_refused(self, dtype: str, tmp_path: Path) -> None:
        width = {"F64": 8, "C64": 8, "F32": 4, "F16": 2, "BF16": 2, "I16": 2}.get(dtype, 1)
        header = {
            "__metadata__": {KEY: "1 mine:workload"},
            "payload": {"dtype": dtype, "shape": [64 // width], "data_offsets": [0, 64]},
        }
        text = json.dumps(header).encode()
        with pytest.raises(ArtifactError, match="damaged"):
            read_payload(put(tmp_path / "model", len(text).to_bytes(8, "little") + text + bytes(64)))

    @pytest.mark.parametrize("shape", [(8, 8), (1, 64), ()])
    def test_a_payload_of_another_shape_is_refused(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        blob = save({"payload": np.zeros(shape, np.uint8)}, metadata={KEY: "1 mine:workload"})
        with pytest.raises(ArtifactError, match="wrong type or shape"):
            read_payload(put(tmp_path / "model", blob))


class TestDamage:
    @pytest.mark.parametrize("seed", range(8))
    def test_a_damaged_file_is_refused_unless_the_model_is_whole(self, seed: int, tmp_path: Path) -> None:
        draw = random.Random(seed)
        layout, scored, blob = packed(subject(list(MODELS)[seed % len(MODELS)]))
        for _ in range(150):
            damaged = bytearray(blob)
            match draw.randrange(4):
                case 0:
                    damaged[draw.randrange(len(blob))] ^= 1 << draw.randrange(8)
                case 1:
                    damaged[draw.randrange(250)] = draw.randrange(256)
                case 2:
                    del damaged[draw.randrange(len(blob)) :][: draw.randrange(1, 100)]
                    del damaged[draw.randrange(len(damaged)) :]
                case _:
                    place = draw.randrange(len(blob))
                    damaged[place:place] = draw.randbytes(draw.randrange(1, 20))
            try:
                found = layout.unpack(put(tmp_path / "model", bytes(damaged)))
            except ArtifactError:
                continue
            assert same_state(found, scored)  # only the entry or the padding was hit

    @pytest.mark.parametrize("seed", range(6))
    def test_a_forged_checksum_gives_a_model_or_an_error_of_ours(self, seed: int, tmp_path: Path) -> None:
        draw = random.Random(seed)
        layout, scored, blob = packed(subject(list(MODELS)[seed % len(MODELS)]))
        _, payload = read_payload(put(tmp_path / "model", blob))
        refused = 0
        for _ in range(150):
            body = bytearray(payload[DIGEST_BYTES:])
            records = range(DIGEST_BYTES, DIGEST_BYTES + RECORD.size * len(layout.sites))
            body[draw.choice([draw.randrange(len(body)), draw.choice(records)])] = draw.randrange(256)
            if draw.random() < 0.3:
                del body[draw.randrange(DIGEST_BYTES, len(body)) :]
            forged = hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + bytes(body)
            again = save({"payload": np.frombuffer(forged, np.uint8)}, metadata={KEY: "1 mine:workload"})
            try:
                found = layout.unpack(put(tmp_path / "model", again))
            except ArtifactError:
                refused += 1
            else:
                assert found.state_dict().keys() == scored.state_dict().keys()
        assert refused > 20

    @pytest.mark.parametrize("more", [b"\0", b"more"])
    def test_bytes_after_the_last_site_are_refused(self, more: bytes, tmp_path: Path) -> None:
        layout, _, blob = packed(subject("tied"))
        body = read_payload(put(tmp_path / "model", blob))[1][DIGEST_BYTES:] + more
        forged = hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body
        again = save({"payload": np.frombuffer(forged, np.uint8)}, metadata={KEY: "1 mine:workload"})
        with pytest.raises(ArtifactError, match=f"{len(more)} bytes too many"):
            layout.unpack(put(tmp_path / "model", again))
