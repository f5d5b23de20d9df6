"""The animals workload: 10,000 silhouettes of 28x28 pixels from PyPI's animal-mnist, and a ResNet-14."""

import gzip
import hashlib
import importlib.util
import math
import pickletools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from objectives.workload import Workload
from objectives.workloads import Splits, stratified_split
from objectives.workloads.resnet import trained
from spaces.errors import WorkloadError

WEIGHTS = Path(__file__).parent / "weights" / "animals.safetensors"
SIZES = (6000, 500, 1500, 2000)  # train, calibration, validation, test
SEED = 0
CLASSES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
LICENCE = (
    "Data: animal-mnist 0.4 on PyPI, Copyright (c) 2025 SinaSR-6 (MIT), installed by you and not part of "
    "Slimfront; weights: Apache-2.0."
)
INSTALL = "pip install --no-deps animal-mnist==0.4"
IMAGES_SHA256 = "3d1bb93498a7f7cb5a4c0d5dc57d57d78adc2ac1722398921542a7515172c46f"
LABELS_SHA256 = "c5575395e636cadcdfe5764ffc8d56f56d234a4dc687096f8fc2d975dd6a5597"

_Opcode: TypeAlias = tuple[str, object]  # its name, its argument
_NEUTRAL = {"PROTO", "FRAME", "MEMOIZE"}  # opcodes that put nothing into the value
_SAME = {"BININT": "INT", "BININT1": "INT", "BININT2": "INT"}
_NUMPY = {"numpy._core.multiarray": "numpy.core.multiarray"}  # numpy 2's name of the same place


def read_array(raw: bytes, dtype: str, shape: Sequence[int]) -> npt.NDArray[np.generic]:
    """Return the one array in a pickle, read without unpickling it.

    The opcodes are only listed, never carried out; the bytes of the array are taken when the list is, opcode
    for opcode and argument for argument, the one that numpy writes (protocol 4) for a C-ordered array of this
    dtype and shape.

    Args:
        raw: the pickle.
        dtype: numpy's string for it with its byte order, such as `|u1` or `<i8`.
        shape: of one to three dimensions, 256 bytes of data or more.

    Returns:
        A new array of that dtype and shape.

    Raises:
        WorkloadError: `raw` is anything else.
    """
    found: list[_Opcode] = []
    payload = b""
    try:
        for opcode, argument, position in pickletools.genops(raw):
            if opcode.name == "BINBYTES" and isinstance(argument, bytes):
                payload, argument = argument, len(argument)
            elif opcode.name == "STOP":
                argument = position
            if opcode.name not in _NEUTRAL:
                found.append((_SAME.get(opcode.name, opcode.name), _NUMPY.get(str(argument), argument)))
    except ValueError as error:
        raise WorkloadError(f"the file is not a whole pickle: {error}") from error
    expected = _opcodes(dtype, shape, total=len(raw))
    if found != expected:
        pairs = zip(found, expected, strict=False)
        given, wanted = next((pair for pair in pairs if pair[0] != pair[1]), (len(found), len(expected)))
        raise WorkloadError(
            f"the pickle holds something other than one {dtype} array of shape {tuple(shape)}: "
            f"{given} where {wanted} is allowed; it was not unpickled"
        )
    return np.frombuffer(payload, dtype).reshape(shape).copy()


def _opcodes(dtype: str, shape: Sequence[int], total: int) -> list[_Opcode]:
    """List what numpy writes for an array, in a pickle of `total` bytes; BINBYTES stands with its length."""

    def text(value: str) -> _Opcode:
        return "SHORT_BINUNICODE", value

    def number(value: int) -> _Opcode:
        return "INT", value

    def do(name: str) -> _Opcode:
        return name, None

    order, code = dtype[0], dtype[1:]
    empty: list[_Opcode] = [  # _reconstruct(ndarray, (0,), b"b")
        text("numpy.core.multiarray"), text("_reconstruct"), do("STACK_GLOBAL"),
        text("numpy"), text("ndarray"), do("STACK_GLOBAL"),
        number(0), do("TUPLE1"), ("SHORT_BINBYTES", b"b"), do("TUPLE3"), do("REDUCE"),
    ]  # fmt: skip
    kind: list[_Opcode] = [  # dtype(code, False, True), its state: (3, order, None, None, None, -1, -1, 0)
        ("BINGET", 3), text("dtype"), do("STACK_GLOBAL"),
        text(code), do("NEWFALSE"), do("NEWTRUE"), do("TUPLE3"), do("REDUCE"),
        do("MARK"), number(3), text(order), do("NONE"), do("NONE"), do("NONE"),
        number(-1), number(-1), number(0), do("TUPLE"), do("BUILD"),
    ]  # fmt: skip
    return [  # the array's state: (1, shape, dtype, False, bytes)
        *empty, do("MARK"), number(1), *map(number, shape), do(f"TUPLE{len(shape)}"),
        *kind, do("NEWFALSE"), ("BINBYTES", math.prod(shape) * np.dtype(dtype).itemsize),
        do("TUPLE"), do("BUILD"), ("STOP", total - 1),
    ]  # fmt: skip


def _load(name: str, dtype: str, shape: Sequence[int], sha256: str) -> npt.NDArray[np.generic]:
    """Return one of the package's two arrays; the package is only found: importing it needs tensorflow."""
    spec = importlib.util.find_spec("animal_mnist")
    if spec is None or not spec.submodule_search_locations:
        raise WorkloadError(
            "the animals workload reads its images from the package animal-mnist, which is not installed: "
            f"run `{INSTALL}` (it names tensorflow as a dependency; that is not needed here)"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "Animal_MNIST" / name
    most = math.prod(shape) * np.dtype(dtype).itemsize + 1024  # bytes; the rest of the pickle is about 200
    try:
        with gzip.open(path) as file:
            raw = file.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise WorkloadError(f"{path} cannot be read ({error}): run `{INSTALL} --force-reinstall`") from error
    array = read_array(raw, dtype, shape)
    if (digest := hashlib.sha256(array.tobytes()).hexdigest()) != sha256:
        raise WorkloadError(
            f"{path} is not the one of version 0.4: SHA-256 of its data is {digest}, not {sha256}; "
            f"run `{INSTALL} --force-reinstall`"
        )
    return array


def splits() -> Splits:
    """Return train (6,000), calibration (500), validation (1,500), test (2,000): disjoint, stratified, fixed.

    Images are float32 (n, 1, 28, 28) in 0..1 (a silhouette is light on dark), targets int64 (n,), an index
    into `CLASSES`. 568 of the 10,000 images are 284 pairs of equal ones (always of one class): both of a pair
    are in the same part, so that no image a model was trained on is used to score it.

    Raises:
        WorkloadError: animal-mnist 0.4 is not installed, or its files are not the published ones.
    """
    images = _load("animal_data_version_3.gz", "|u1", (10_000, 28, 28), IMAGES_SHA256)
    labels = _load("animal_label_version_3.gz", "<i8", (10_000,), LABELS_SHA256)
    inputs = torch.from_numpy(images).float().div(255).unsqueeze(1)  # (10000, 1, 28, 28)
    targets = torch.from_numpy(labels.astype(np.int64))
    parts = stratified_split([image.tobytes() for image in images], targets.tolist(), SIZES, seed=SEED)
    return Splits(*((inputs[part], targets[part]) for part in parts))


def workload() -> Workload:
    """Return the animals workload; its model is loaded from the weights that `train.py` wrote.

    Raises:
        WorkloadError: animal-mnist 0.4 is not installed, or its files are not the published ones.
    """
    data = splits()
    return Workload(
        model=trained(WEIGHTS),
        train=data.train,
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        example_input=torch.zeros(1, 1, 28, 28),
        chance=0.1,
        licence=LICENCE,
    )
