"""Compressed layers on disk: one small safetensors file each, found by the hash of all that determines it.

A file is written aside and moved into place, so that any number of processes may build the same folder at once and be
killed at any time: a reader sees a whole layer or none, and what is there is not made again. Files are memory-mapped.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from compress.coding import CodedWeight, Kind
from compress.layer import CompressedLayer, Cost
from compress.quantization.uniform import Grid

KEY = "slimfront.layer"
ABANDONED_SECONDS = 3600.0  # a file that is still being written is younger


class Shelf:
    """A folder of compressed layers that stays below a bound; of several processes at once each keeps to it roughly.

    Args:
        folder: made when the first layer is put; it may vanish at any time.
        max_bytes: bound on the files together. To make room, the layers that were used longest ago go first, never
            those that this process used; what still does not fit is not kept.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._used: set[str] = set()
        self._total: int | None = None  # bytes, as far as this process knows

    def get(self, key: str) -> CompressedLayer | None:
        """The layer of this key; None if it is not here, or damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if _digest(key, tensors, about) != about["digest"]:
                return None
            layer = _layer(about, tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            return None
        self._used.add(key)
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return layer

    def put(self, key: str, layer: CompressedLayer) -> None:
        """Keep a layer, if there is room or room can be made; a full disk keeps nothing and is no error."""
        tensors, about = _document(layer)
        about["digest"] = _digest(key, tensors, about)
        blob = save(tensors, metadata={KEY: json.dumps(about)})
        path = self._path(key)
        with contextlib.suppress(OSError):
            if not self._room_for(len(blob)):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(blob)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
            self._used.add(key)
            self._total = (self._total or 0) + len(blob)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, its bytes and its path."""
        for path in self._folder.glob("??/*.safetensors"):
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path

    def _sweep(self) -> None:
        """Remove what processes that were killed while they wrote have left."""
        for path in self._folder.glob("??/.*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    path.unlink()

    def _room_for(self, size: int) -> bool:
        if self._total is None or self._total + size > self._max_bytes:
            self._sweep()
            files = sorted(self._files())
            self._total = sum(one for _, one, _ in files)
            for _, one, path in files:
                if self._total + size <= self._max_bytes:
                    break
                if path.stem not in self._used:
                    path.unlink(missing_ok=True)
                    self._total -= one
        return self._total + size <= self._max_bytes


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
