"""What a safetensors file in memory holds: its metadata, which `safetensors` reads from paths only, and its tensors."""

import json

import torch
from safetensors import deserialize
from safetensors.torch import load

LENGTH_BYTES = 8  # of the header's length, little-endian


def metadata_of(blob: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; nothing where it has none.

    Raises:
        SafetensorError: it is none, or damaged.
    """
    deserialize(blob)  # type: ignore[no-untyped-call]
    length = int.from_bytes(blob[:LENGTH_BYTES], "little")
    found: dict[str, str] = json.loads(blob[LENGTH_BYTES : LENGTH_BYTES + length]).get("__metadata__", {})
    return found or {}


def contents(blob: bytes) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and the tensors of a safetensors file.

    Raises:
        SafetensorError: it is none, or damaged.
    """
    return metadata_of(blob), load(blob)
