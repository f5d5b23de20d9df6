"""The models of a workload and their files: whole, with channels and blocks cut out, and of smaller models."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.apply import Applied, apply
from compress.artifact import DIGEST_BYTES, KEY, LENGTH, VERSION, open_packed
from compress.family import Family, Member, Variant
from compress.files import write_file
from compress.structure import Structure, masked, restructure
from objectives.workloads.resnet import ResNet
from spaces.errors import ArtifactError, CandidateError
from spaces.policy import Choice, Codebook, Uniform, Unstructured
from tests.contracts import database_of, fitting
from tests.models import Subject, digest, output, random_tensor
from tests.shapes import SHAPES, shape
from tests.test_artifact import body_of, forged

CHOICES = [
    Choice(prune=Unstructured(ratio=0.4), weights=Uniform(bits=4)),
    Choice(weights=Codebook(bits=3)),
    Choice(weights=Uniform(bits=5, symmetric=False)),
]
CUT = sorted(set(SHAPES) - {"shuffled", "recurrent"})  # these have groups


def member_of(name: str) -> tuple[Subject, Member]:
    one = shape(name)
    return Subject(one.model, one.inputs), Member(None, one.model, one.inputs, "mine:workload")


def structures(member: Member, seed: int) -> Structure:
    """Some units of some groups, and some blocks."""
    draw = random.Random(seed)
    kept = {}
    for group in member.groups:
        units = sorted(draw.sample(range(group.channels), draw.randint(1, group.channels)))
        if draw.random() < 0.7 and len(units) < group.channels:
            kept[group.name] = tuple(units)
    dropped = tuple(block for block in member.blocks if draw.random() < 0.3)
    inside = {group.name for group in member.groups for block in dropped if group.members[0].startswith(f"{block}.")}
    return Structure({name: units for name, units in kept.items() if name not in inside}, dropped)


def carried(one: Subject, variant: Variant, seed: int = 0) -> Applied:
    """A variant with some choice at each of its sites."""
    draw, member = random.Random(seed), variant.member
    database = database_of(member, one)
    choices = {}
    for site in variant.sites:
        wished = draw.choice(CHOICES)
        choices[site.name] = fitting(member, database, site, wished, variant.cuts.get(site.name))
    return apply(variant.model, variant.sites, choices, database, variant.cuts)


def put(path: Path, blob: bytes) -> Path:
    write_file(path, blob)
    return path


class TestFiles:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("name", CUT)
    def test_a_file_loads_back_as_the_scored_model(self, name: str, seed: int, tmp_path: Path) -> None:
        one, member = member_of(name)
        before = digest(one.model)
        structure = structures(member, seed)
        variant = member.variant(structure, refit=seed == 1)
        done = carried(one, variant, seed)
        path = put(tmp_path / "model", variant.layout.pack(done.model, done.coded))
        sizes = sum(line.bytes for line in done.report)
        assert path.stat().st_size == variant.layout.file_bytes(sizes)
        fresh = Member(None, shape(name).model, one.inputs, "mine:workload")
        loaded = Family({None: fresh}).load(path)
        assert torch.equal(output(loaded, one.inputs), output(done.model, one.inputs))
        found = fresh.structure_of(open_packed(path))
        assert (dict(found.kept), set(found.dropped)) == (dict(structure.kept), set(structure.dropped))
        assert not any(module.training for module in loaded.modules())
        assert digest(one.model) == before

    def test_many_structures_of_a_resnet(self, tmp_path: Path) -> None:
        model = ResNet(blocks=2, width=6, classes=3, in_channels=3).eval()
        one = Subject(model, random_tensor(2, 3, 8, 8))
        member = Member(None, model, one.inputs, "mine:workload")
        database = database_of(member, one)
        other = Family({None: Member(None, model, one.inputs, "mine:workload")})
        assert len(member.blocks) >= 2
        for seed in range(8):
            variant = member.variant(structures(member, seed))
            choices = {site.name: CHOICES[0] for site in variant.sites}
            done = apply(variant.model, variant.sites, choices, database, variant.cuts)
            path = put(tmp_path / "model", variant.layout.pack(done.model, done.coded))
            assert path.stat().st_size == variant.layout.file_bytes(sum(line.bytes for line in done.report))
            assert torch.equal(output(other.load(path), one.inputs), output(done.model, one.inputs))

    def test_float_weights_without_refit_are_the_model_with_zeros(self) -> None:
        one, member = member_of("resnet")
        structure = structures(member, 4)
        variant = member.variant(structure)
        database = database_of(member, one)
        done = apply(variant.model, variant.sites, {s.name: Choice() for s in variant.sites}, database, variant.cuts)
        assert torch.equal(output(done.model, one.inputs), output(variant.model, one.inputs))
        index = restructure(one.model, member.groups, Structure(structure.kept)).index
        if not structure.dropped:
            assert torch.allclose(
                output(done.model, one.inputs), output(masked(one.model, index), one.inputs), atol=1e-4
            )
        assert sum(p.numel() for p in done.model.parameters()) < sum(p.numel() for p in one.model.parameters())

    def test_a_smaller_file_is_smaller_by_its_tensors(self) -> None:
        _, member = member_of("resnet")
        group = member.groups[0]
        half = member.variant(Structure({group.name: tuple(range(0, group.channels, 2))}))
        bits = sum((one.channels + 7) // 8 for one in member.groups) + (len(member.blocks) + 7) // 8
        assert len(half.layout.structure) == bits
        assert half.layout.fixed_bytes < member.whole.layout.fixed_bytes
        assert half.layout.whole == member.whole.layout.whole


class TestVariants:
    def test_what_cuts_nothing_is_the_whole(self) -> None:
        _, member = member_of("resnet")
        group = member.groups[0]
        for structure in (Structure(), Structure({group.name: tuple(range(group.channels))})):
            assert member.variant(structure) is member.whole
        assert member.whole.cuts == {}
        assert member.whole.layout.structure == b""

    def test_the_same_one_is_given_again(self) -> None:
        _, member = member_of("resnet")
        group = member.groups[0]
        made = [member.variant(Structure({group.name: (0,)}), refit=refit) for refit in (False, True, False)]
        assert made[0] is made[2]
        assert made[0] is not made[1]
        assert [all(cut.refit for cut in one.cuts.values()) for one in made] == [False, True, False]
        for units in range(1, group.channels):
            member.variant(Structure({group.name: tuple(range(units))}))
        assert len(member._variants) <= 8

    @pytest.mark.parametrize(
        "structure",
        [
            Structure({"group-none": (0,)}),
            Structure(dropped=("none",)),
            Structure({"group-none": (0,)}, ("none",)),
            Structure({"group-stem.conv": (0, 99)}),
            Structure({"group-stem.conv": (-1, 0)}),
            Structure({"group-stem.conv": ()}),
            Structure({"group-stem.conv": (2, 1)}),
            Structure({"group-stem.conv": (1, 1)}),
        ],
    )
    def test_what_the_model_does_not_have_is_refused(self, structure: Structure) -> None:
        _, member = member_of("resnet")
        assert "group-stem.conv" in {group.name for group in member.groups}
        with pytest.raises(CandidateError, match=r"none|group-stem\.conv"):
            member.variant(structure)

    def test_without_an_example_only_the_whole_is_known(self, tmp_path: Path) -> None:
        one, member = member_of("resnet")
        plain = Member(None, one.model, None, "mine:workload")
        whole, cut = member.whole, member.variant(Structure({member.groups[0].name: (0, 1)}))
        for variant, fits in ((whole, True), (cut, False)):
            done = carried(one, variant)
            path = put(tmp_path / "model", variant.layout.pack(done.model, done.coded))
            if fits:
                assert torch.equal(output(Family({None: plain}).load(path), one.inputs), output(done.model, one.inputs))
            else:
                with pytest.raises(ArtifactError, match="example input: give one"):
                    Family({None: plain}).load(path)


class Strided(nn.Sequential):
    """A convolution whose stride no shape of a weight tells."""

    def __init__(self, stride: int, width: int = 4) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, stride=stride), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)
        )


class TestStudents:
    @staticmethod
    def family() -> Family:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            models = {None: Strided(1), "narrow": Strided(1, 3), "strided": Strided(2), "other": Strided(3)}
        example = random_tensor(2, 3, 9, 9)
        return Family({name: Member(name, one.eval(), example, "mine:workload") for name, one in models.items()})

    @pytest.mark.parametrize("name", [None, "narrow", "strided", "other"])
    def test_a_file_is_recognized_as_whose_it_is(self, name: str | None, tmp_path: Path) -> None:
        inputs = random_tensor(2, 3, 9, 9)
        member = self.family()[name]
        one = Subject(member.model, inputs)
        for structure in (Structure(), Structure({member.groups[0].name: (0, 2)})):
            variant = member.variant(structure)
            done = carried(one, variant)
            path = put(tmp_path / "model", variant.layout.pack(done.model, done.coded))
            fresh = self.family()
            assert fresh.of_file(open_packed(path)).member.name == name
            assert torch.equal(output(fresh.load(path), inputs), output(done.model, inputs))

    def test_fingerprints_differ_by_name_alone(self) -> None:
        prints = {name: member.fingerprint for name, member in self.family().members.items()}
        assert len(set(prints.values())) == 4


class TestRefusal:
    @pytest.fixture
    def packed(self) -> tuple[Subject, Member, bytes]:
        one, member = member_of("resnet")
        variant = member.variant(Structure({member.groups[0].name: (0, 2, 3)}))
        done = carried(one, variant)
        return one, member, variant.layout.pack(done.model, done.coded)

    def test_the_file_of_another_model(self, packed: tuple[Subject, Member, bytes], tmp_path: Path) -> None:
        path = put(tmp_path / "model", packed[2])
        for name in ("dense", "lenet"):
            with pytest.raises(ArtifactError, match=r"other layers than .*--workload"):
                Family({None: member_of(name)[1]}).load(path)

    @pytest.mark.parametrize("seed", range(4))
    def test_damaged_structure(self, packed: tuple[Subject, Member, bytes], seed: int, tmp_path: Path) -> None:
        _, member, blob = packed
        body, draw = body_of(blob), random.Random(seed)
        start = DIGEST_BYTES + LENGTH.size
        (length,) = LENGTH.unpack(body[DIGEST_BYTES:start])
        family = Family({None: member})
        for _ in range(20):
            bits = bytes(draw.randrange(256) for _ in range(length))
            path = put(tmp_path / "model", forged(body[:start] + bits + body[start + length :]))
            with pytest.raises(ArtifactError, match=r"damaged|truncated|left|channel"):
                family.load(path)

    @pytest.mark.parametrize("bits", [b"", b"\0" * 100, b"\xff"])
    def test_structure_of_another_length(
        self, packed: tuple[Subject, Member, bytes], bits: bytes, tmp_path: Path
    ) -> None:
        _, member, blob = packed
        body, start = body_of(blob), DIGEST_BYTES + LENGTH.size
        (length,) = LENGTH.unpack(body[DIGEST_BYTES:start])
        again = body[:DIGEST_BYTES] + LENGTH.pack(len(bits)) + bits + body[start + length :]
        with pytest.raises(ArtifactError, match="bytes of structure, expected" if bits else "damaged|truncated|left"):
            Family({None: member}).load(put(tmp_path / "model", forged(again)))

    def test_no_channel_left(self, packed: tuple[Subject, Member, bytes], tmp_path: Path) -> None:
        _, member, blob = packed
        body, start = body_of(blob), DIGEST_BYTES + LENGTH.size
        (length,) = LENGTH.unpack(body[DIGEST_BYTES:start])
        again = forged(body[:start] + bytes(length) + body[start + length :])
        with pytest.raises(ArtifactError, match=f"no channel of {member.groups[0].name} is left: the file is damaged"):
            Family({None: member}).load(put(tmp_path / "model", again))

    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_version(self, packed: tuple[Subject, Member, bytes], change: int, tmp_path: Path) -> None:
        _, member, blob = packed
        old, new = f"{VERSION} mine".encode(), f"{VERSION + change} mine".encode()
        assert blob.count(old) == 1
        assert KEY.encode() in blob
        fix = "pack it again" if change < 0 else "upgrade Slimfront"
        with pytest.raises(ArtifactError, match=f"artifact version {VERSION + change}, .*{fix}"):
            Family({None: member}).load(put(tmp_path / "model", blob.replace(old, new)))

    def test_a_damaged_file(self, packed: tuple[Subject, Member, bytes], tmp_path: Path) -> None:
        _, member, blob = packed
        with pytest.raises(ArtifactError, match="the checksum does not match"):
            Family({None: member}).load(put(tmp_path / "model", blob[:-1] + bytes([blob[-1] ^ 1])))
