"""Compressed layers on disk: one small safetensors file each, found by the hash of all that determines it.

What is there is not made again, by any process, nor by other nodes where they share a store. Local files are
memory-mapped.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from compress.bounded import BoundedFolder, name_of
from compress.coding import CodedWeight, Kind
from compress.contents import contents
from compress.layer import CompressedLayer, Cost
from compress.quantization.uniform import Grid
from compress.shared import Shared

KEY = "slimfront.layer"
WRONG = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Shelf:
    """A folder of compressed layers that stays below a bound (see `BoundedFolder`).

    Args:
        folder: made when the first layer is put; it may vanish at any time.
        max_bytes: bound on the files together. To make room, the layers that were used longest ago go first, never
            those that this process used; what still does not fit is not kept.
        shared: where nodes share layers; what is here has been put there.
    """

    def __init__(self, folder: Path, max_bytes: int, shared: Shared | None = None) -> None:
        self._files, self._shared = BoundedFolder(folder, max_bytes, spare=True), shared

    def get(self, key: str) -> CompressedLayer | None:
        """The layer of this key; None if it is not here, or damaged, and not in what nodes share."""
        layer = self._local(key)
        if layer is not None or self._shared is None:
            return layer

        def fetched(blob: bytes) -> CompressedLayer | None:
            found = _fetched(key, blob)
            if found is not None:
                self._files.put(key, blob)
            return found

        return self._shared.get(_name(key), fetched)

    def _local(self, key: str) -> CompressedLayer | None:
        try:
            with safe_open(self._files.path(key), framework="pt") as file:
                about = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            layer = _read(key, about, tensors)
        except WRONG:
            return None
        self._files.use(key)
        return layer

    def put(self, key: str, layer: CompressedLayer) -> None:
        """Keep a layer, if there is room or room can be made; a full disk keeps nothing and is no error."""
        tensors, about = _document(layer)
        about["digest"] = _digest(key, tensors, about)
        blob = save(tensors, metadata={KEY: json.dumps(about)})
        self._files.put(key, blob)
        if self._shared is not None:
            self._shared.put(_name(key), blob)


def _name(key: str) -> str:
    return f"layers/{name_of(key)}"


def _fetched(key: str, blob: bytes) -> CompressedLayer | None:
    """The layer of a file that was fetched; None where it is damaged or another one's."""
    try:
        metadata, tensors = contents(blob)
        return _read(key, json.loads(metadata[KEY]), tensors)
    except WRONG:
        return None


def _read(key: str, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> CompressedLayer:
    """The layer that a file holds.

    Raises:
        ValueError: it is damaged, or another one's.
    """
    if _digest(key, tensors, about) != about["digest"]:
        raise ValueError("the digest does not match")
    return _layer(about, tensors)


def _document(layer: CompressedLayer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    coded = layer.coded
    named = {"values": coded.values, "entries": coded.entries, "shift": layer.shift, "kept": layer.kept}
    if coded.grid is not None:
        named |= {"step": coded.grid.step, "low": coded.grid.low}
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
        if tensor is not None
    }
    about = {
        "cost": asdict(layer.cost),
        "kind": int(coded.kind),
        "bits": coded.bits,
        "exponent": coded.exponent if coded.grid is None else coded.grid.exponent,
    }
    return tensors, about


def _layer(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> CompressedLayer:
    kind, exponent = Kind(about["kind"]), int(about["exponent"])
    grid = Grid(tensors["step"], exponent, tensors.get("low")) if kind is Kind.UNIFORM else None
    entries = tensors.get("entries")
    own = 0 if grid is not None else exponent
    coded = CodedWeight(kind, tensors["values"], int(about["bits"]), grid=grid, entries=entries, exponent=own)
    return CompressedLayer(coded, Cost(**about["cost"]), tensors.get("kept"), tensors.get("shift"))


def _digest(key: str, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> str:
    """Of all that a file holds, and of the key under which it was put."""
    known = {name: value for name, value in about.items() if name != "digest"}
    digest = hashlib.blake2b(f"{key} {json.dumps(known, sort_keys=True)}\n".encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
