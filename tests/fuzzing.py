"""Packed files and ways to damage them; run as a program it reads many damaged ones under limits of memory and time.

`python -m tests.fuzzing FIRST COUNT` prints how many were refused and how many gave a model; it fails on the first that
does anything else, and says which.
"""

import functools
import hashlib
import json
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from compress.apply import apply
from compress.artifact import DIGEST_BYTES, KEY, LENGTH, VERSION, open_packed
from compress.coding import RECORD
from compress.family import Family, Member
from compress.structure import Structure
from spaces.errors import ArtifactError
from spaces.policy import (
    Choice,
    Codebook,
    DynamicActivations,
    Float16,
    SemiStructured,
    StaticActivations,
    Uniform,
    Unstructured,
)
from spaces.target import CodingName
from tests.contracts import database_of, fitting
from tests.models import Subject, output, random_tensor, subject
from tests.shapes import shape

MORE_BYTES = 512 * 2**20  # of address space that reading may take
SECONDS = 20.0  # that one file may take
RARE, MOST = Unstructured(ratio=0.95), Unstructured(ratio=0.6)
KINDS = [
    Choice(),
    Choice(prune=MOST, weights=Float16()),
    Choice(weights=Uniform(bits=3)),
    Choice(prune=RARE, weights=Uniform(bits=4, symmetric=False)),
    Choice(prune=MOST, weights=Uniform(bits=5, scale_per="tensor"), activations=StaticActivations(bits=8)),
    Choice(weights=Uniform(bits=2, scale_per="group", group_size=3, symmetric=False)),
    Choice(prune=MOST, weights=Codebook(bits=2), activations=DynamicActivations(bits=6)),
    Choice(weights=Codebook(bits=4)),
    Choice(prune=RARE),
    Choice(prune=SemiStructured(n=1, m=3), weights=Uniform(bits=8)),
    Choice(prune=RARE, weights=Codebook(bits=1)),
]
NAMES = ("convolutions", "recurrent", "attention", "tied", "buffers", "bfloat16", "resnet", "cut resnet")
CODINGS: tuple[CodingName, ...] = ("packed", "entropy")


@dataclass(frozen=True)
class Sample:
    """A packed file, the family that reads it, and the model in it."""

    family: Family
    one: Subject
    blob: bytes
    state: dict[str, torch.Tensor]
    sites: int
    structure: int


@functools.cache
def sample(number: int) -> Sample:
    """One of the files that are damaged: its sites go through all kinds of choices."""
    name, coding = NAMES[number % len(NAMES)], CODINGS[number // len(NAMES) % 2]
    if "resnet" in name:
        given = shape("resnet")
        one = Subject(given.model, given.inputs)
    else:
        one = subject(name)
    member = Member(None, one.model, one.inputs, "mine:workload", coding)
    variant, database = member.whole, database_of(member, one)
    if name.startswith("cut"):
        group = member.groups[0]
        variant = member.variant(Structure({group.name: tuple(range(1, group.channels))}, member.blocks[:1]))
    choices = {}
    for i, site in enumerate(variant.sites):
        wished, cut = KINDS[(i + number) % len(KINDS)], variant.cuts.get(site.name)
        choices[site.name] = fitting(member, database, site, wished, cut)
    done = apply(variant.model, variant.sites, choices, database, variant.cuts)
    blob = variant.layout.pack(done.model, done.coded)
    state = {name: tensor.clone() for name, tensor in done.model.state_dict().items()}
    student = Member("small", nn.Linear(3, 2).eval(), random_tensor(1, 3), "mine:workload")
    family = Family({None: member, "small": student})
    return Sample(family, one, blob, state, len(variant.sites), len(variant.layout.structure))


def changed(draw: random.Random, blob: bytes, first: int = 0) -> bytes:
    """Some bytes from `first` on flipped, replaced, taken out, put in, doubled or cut off."""
    found = bytearray(blob)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        if len(found) <= first:
            break
        place = draw.randrange(first, len(found))
        match draw.randrange(7):
            case 0:
                found[place] ^= 1 << draw.randrange(8)
            case 1:
                found[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
            case 2:
                del found[place : place + draw.randrange(1, 40)]
            case 3:
                found[place:place] = draw.randbytes(draw.randrange(1, 20))
            case 4:
                found[place : place + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, (2**31).to_bytes(4, "little")])
            case 5:
                found[place:place] = found[place : place + draw.randrange(1, 60)]
            case _:
                del found[place:]
    return bytes(found)


def sealed(body: bytes) -> bytes:
    """A file of this content with the right checksum."""
    payload = hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body
    return save({"payload": np.frombuffer(payload, np.uint8)}, metadata={KEY: f"{VERSION} mine:workload"})


def headed(draw: random.Random, blob: bytes) -> bytes:
    """Another safetensors header before the same bytes."""
    (length,) = LENGTH.unpack(blob[:4])
    header, rest = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    numbers = [0, 1, -1, len(rest) - 1, len(rest) + 1, 2**31, 2**63, 2**64, 1.5, "3", None, [], 10**30]
    payload = header["payload"]
    match draw.randrange(8):
        case 0:
            payload["shape"] = draw.choice([[], [len(rest), 1], [2**62, 4], [draw.choice(numbers)], None, "x"])
        case 1:
            payload["dtype"] = draw.choice(["F64", "I8", "BF16", "F8_E4M3", "BOOL", "U16", "?", None, 3])
        case 2:
            payload["data_offsets"] = draw.choice([[0], [0, draw.choice(numbers)], [draw.choice(numbers), len(rest)]])
        case 3:
            header["__metadata__"] = draw.choice([{}, None, {KEY: 3}, {KEY: ""}, {KEY: str(VERSION)}, {"a": "b"}, []])
        case 4:
            header["__metadata__"][KEY] = draw.choice(
                ["9" * 5000, "٣ x", f"{VERSION}", f"{VERSION + 1} x", "-1 x", "\0"]
            )
        case 5:
            header[draw.choice(["more", "", "payload2"])] = payload
        case 6:
            header = draw.choice([[], {}, 3, {"__metadata__": {KEY: f"{VERSION} x"}}, {"payload": {}}])
        case _:
            text = changed(draw, json.dumps(header).encode())
            return len(text).to_bytes(8, "little") + text + rest
    text = json.dumps(header).encode()
    size = draw.choice([len(text)] * 6 + [0, 7, 2**40, 2**64 - 1, len(text) + 1])
    return size.to_bytes(8, "little") + text + rest


def damaged(seed: int) -> tuple[Sample, bytes, bool]:
    """A damaged file; and whether its checksum was made right again, so that what is in it may be anything."""
    draw = random.Random(seed)
    one = sample(draw.randrange(2 * len(NAMES)))
    way = draw.randrange(5)
    if way == 0:
        return one, changed(draw, one.blob), False
    if way == 1:
        return one, headed(draw, one.blob), False
    (length,) = LENGTH.unpack(one.blob[:4])
    body = one.blob[8 + length + DIGEST_BYTES :]
    records = DIGEST_BYTES + LENGTH.size + one.structure
    if way == 2:  # the structure and the records say how all else is read
        end = records + RECORD.size * one.sites
        return one, sealed(changed(draw, body[:end], DIGEST_BYTES) + body[end:]), True
    if way == 3:
        found = bytearray(body)
        for _ in range(draw.choice([1, 2, 3])):
            found[draw.randrange(records, records + RECORD.size * one.sites)] = draw.randrange(256)
        return one, sealed(bytes(found)), True
    return one, sealed(changed(draw, body)), True


def read(seed: int, path: Path) -> bool:
    """Read a damaged file: False if it was refused, True if it gave a model, which then must be one.

    Raises:
        AssertionError: it gave another model than was packed, where the checksum tells.
    """
    one, blob, forged = damaged(seed)
    path.write_bytes(blob)
    try:
        opened = open_packed(path)
        variant = one.family.of_file(opened)
        model = variant.layout.unpack(opened)
    except ArtifactError as error:
        if not str(error):
            raise AssertionError("the error says nothing") from error
        return False
    state = model.state_dict()
    if forged:
        fitting = variant.model.state_dict()
        if {name: tensor.shape for name, tensor in state.items()} != {n: t.shape for n, t in fitting.items()}:
            raise AssertionError("the model has tensors of other shapes")
        if "order" in state:  # it says where the model looks: wherever a damaged file wants it to
            return True
        if output(model, one.one.inputs).shape != output(one.one.model, one.one.inputs).shape:
            raise AssertionError("the model gives outputs of another shape")
        return True
    for name, tensor in state.items():
        if tensor.reshape(-1).view(torch.uint8).tolist() != one.state[name].reshape(-1).view(torch.uint8).tolist():
            raise AssertionError(f"{name} is another one than was packed")
    return True


def too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a file takes more than {SECONDS} s")


def limited() -> None:
    """From now on this process cannot take much more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(seeds: Iterator[int] | range) -> dict[str, int]:
    """Read damaged files, each in bounded time."""
    signal.signal(signal.SIGALRM, too_long)
    found = {"refused": 0, "models": 0}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                found["models" if read(seed, Path(folder) / "model.safetensors") else "refused"] += 1
            except BaseException:
                print(f"seed {seed}", file=sys.stderr)
                raise
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in range(2 * len(NAMES)):
        intact = sample(one)
        with tempfile.TemporaryDirectory() as kept:
            (Path(kept) / "model").write_bytes(intact.blob)
            output(intact.family.load(Path(kept) / "model"), intact.one.inputs)
    limited()
    start, count = int(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(run(range(start, start + count))))
