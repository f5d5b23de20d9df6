"""The packed model file: a safetensors file with one payload tensor and one metadata entry, readable without pickle.

The payload is: digest of what follows (16 bytes), fingerprint of the whole model's names and shapes (16), what was cut
out of it (4 bytes and a bit for each unit of each channel group and for each block; 4 bytes where nothing was), one
fixed-width record per site, all other tensors as they are, then each site's scales and codes. Its length is a closed
formula, so a candidate's bytes are known to the byte without writing it. There are no scores in it.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.apply import stitch
from compress.coding import RECORD, CodedWeight
from compress.coding import read as read_coded
from compress.contents import metadata_of
from compress.sites import Site
from spaces.errors import ArtifactError, CandidateError
from spaces.target import CodingName

KEY = "slimfront.artifact"
VERSION = 2
DIGEST_BYTES = 16
LENGTH = struct.Struct("<I")  # of the bits that say what was cut out


def rest_of(model: nn.Module, sites: Sequence[Site]) -> tuple[str, ...]:
    """Names of the tensors that are no site, each once; BatchNorm's batch counters serve training only."""
    parameters = {site.parameter for site in sites}
    seen = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in parameters}
    counters = {
        f"{name}.num_batches_tracked".lstrip(".")
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
    }
    names = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in counters:
            seen.add(id(tensor))
            names.append(name)
    return tuple(names)


def fingerprint_of(model: nn.Module, sites: Sequence[Site], name: str | None = None) -> bytes:
    """Digest of names, shapes and types of everything that a file of this whole model holds, and of the model's name.

    (A smaller model may have tensors of the same shapes as the brought one and compute something else with them.)
    """
    state = model.state_dict()
    parts = [] if name is None else [name]
    parts += [f"{site.name} {site.shape} {state[site.parameter].dtype}" for site in sites]
    parts += [f"{key} {tuple(state[key].shape)} {state[key].dtype}" for key in rest_of(model, sites)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class Opened:
    """A packed file that was read and whose checksum is right.

    Attributes:
        path: where it was.
        entry: of the workload it was made for: a text to show or compare, never to import.
        fingerprint: of the whole model it was packed from.
        structure: bits that say what was cut out of that; empty where nothing was.
        body: what follows.
    """

    path: Path
    entry: str
    fingerprint: bytes
    structure: bytes
    body: memoryview


@dataclass(frozen=True)
class Layout:
    """What a packed file of a model holds besides its sites, and how long it is.

    Attributes:
        model: with the architecture of the file, cut as it is there.
        sites: of that model.
        entry: the workload's entry, written into the file so that a reader knows where the model comes from.
        whole: fingerprint of the model before anything was cut out.
        structure: bits that say what was cut out.
        coding: how integers are written.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    entry: str
    whole: bytes
    structure: bytes = b""
    coding: CodingName = "packed"

    @cached_property
    def rest(self) -> tuple[str, ...]:
        """Names of the tensors that are no site."""
        return rest_of(self.model, self.sites)

    @cached_property
    def fixed_bytes(self) -> int:
        """Payload bytes that do not depend on the choices."""
        state = self.model.state_dict()
        rest = sum(int(state[name].nbytes) for name in self.rest)
        return 2 * DIGEST_BYTES + LENGTH.size + len(self.structure) + RECORD.size * len(self.sites) + rest

    def file_bytes(self, site_bytes: int) -> int:
        """Size of the file whose sites' payloads add up to `site_bytes`."""
        length = self.fixed_bytes + site_bytes
        header = {
            "__metadata__": {KEY: self._metadata},
            "payload": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]},
        }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        return 8 + (len(text) + 7) // 8 * 8 + length

    @property
    def _metadata(self) -> str:
        return f"{VERSION} {self.entry}"

    def pack(self, model: nn.Module, coded: Mapping[str, CodedWeight]) -> bytes:
        """The file: coded sites, and all other tensors taken from `model`.

        Raises:
            ArtifactError: what was written does not read back as the same coded weights.
        """
        state = model.state_dict()
        written = [coded[site.name].write(self.coding) for site in self.sites]
        rest = [_raw(state[name]) for name in self.rest]
        head = [self.whole, LENGTH.pack(len(self.structure)), self.structure]
        body = b"".join([*head, *(record for record, _ in written), *rest, *(data for _, data in written)])
        payload = hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body
        for site, (record, data) in zip(self.sites, written, strict=True):
            again, _ = read_coded(record, memoryview(data), site.channels, site.size // site.channels)
            given = coded[site.name]
            if again.inputs != given.inputs or not torch.equal(again.decode(), given.decode().cpu()):
                raise ArtifactError(
                    f"site {site.name}: what was written does not read back the same; please report this"
                )
        return save({"payload": np.frombuffer(payload, np.uint8)}, metadata={KEY: self._metadata})

    def unpack(self, opened: Opened) -> nn.Module:
        """A new model, in evaluation mode, with everything that is in the file.

        Raises:
            ArtifactError: the file is damaged, from a later version, or of another model.
        """
        return self.assemble(opened, *self.read(opened))

    def assemble(self, opened: Opened, rest: Mapping[str, torch.Tensor], coded: Mapping[str, CodedWeight]) -> nn.Module:
        """A new model, in evaluation mode, with what `read` gave.

        Raises:
            ArtifactError: it does not go with the model: the file is damaged.
        """
        try:
            model = stitch(self.model, self.sites, coded)
        except CandidateError as error:
            raise ArtifactError(f"{opened.path}: {error}: the file is damaged") from error
        model.load_state_dict(dict(rest), strict=False)
        return model

    def read(self, opened: Opened) -> tuple[dict[str, torch.Tensor], dict[str, CodedWeight]]:
        """The tensors that are no site, by name, and the coded weights, by site.

        Raises:
            ArtifactError: the file is damaged, from a later version, or of another model.
        """
        if opened.fingerprint != self.whole:
            raise ArtifactError(
                f"{opened.path}: packed from a model with other layers than {type(self.model).__name__} of "
                f"{self.entry}: name the workload it was packed for with --workload"
            )
        body, start = opened.body, RECORD.size * len(self.sites)
        records = [bytes(body[RECORD.size * i :][: RECORD.size]) for i in range(len(self.sites))]
        state = self.model.state_dict()
        rest = {}
        for name in self.rest:
            part = body[start : start + state[name].nbytes]
            rest[name] = _tensor(part, state[name])
            start += state[name].nbytes
        coded = {}
        for site, record in zip(self.sites, records, strict=True):
            coded[site.name], used = read_coded(record, body[start:], site.channels, site.size // site.channels)
            start += used
        if start != len(body):
            raise ArtifactError(f"{opened.path}: {len(body) - start} bytes too many: the file is damaged")
        return rest, coded


def read_entry(path: Path) -> str:
    """The workload entry a packed file was made for: a text to show or compare, never to import.

    Raises:
        ArtifactError: not a packed file that this version reads.
    """
    return open_packed(path).entry


def open_packed(path: Path) -> Opened:
    """Read a packed file and check its version and checksum.

    Raises:
        ArtifactError: not a packed file, damaged, or from another version.
    """
    try:
        return opened(path.read_bytes(), path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except OSError as error:
        raise ArtifactError(f"{path}: not a safetensors file, or damaged: {error}") from error


def opened(blob: bytes, path: Path) -> Opened:
    """Check the version and checksum of a packed file that was read.

    Args:
        blob: it.
        path: where it was, for messages.

    Raises:
        ArtifactError: not a packed file, damaged, or from another version.
    """
    payload, entry = _payload(blob, path)
    start = 2 * DIGEST_BYTES + LENGTH.size
    if len(payload) < start:
        raise ArtifactError(f"{path}: the payload has {len(payload)} bytes, which is too short: the file is damaged")
    if hashlib.blake2b(payload[DIGEST_BYTES:], digest_size=DIGEST_BYTES).digest() != payload[:DIGEST_BYTES]:
        raise ArtifactError(f"{path}: the checksum does not match its content: the file is damaged")
    (length,) = LENGTH.unpack(payload[2 * DIGEST_BYTES : start])
    if length > len(payload) - start:
        raise ArtifactError(f"{path}: {length} bytes of structure do not fit: the file is damaged")
    structure = payload[start : start + length]
    fingerprint = payload[DIGEST_BYTES : 2 * DIGEST_BYTES]
    return Opened(path, entry, fingerprint, structure, memoryview(payload)[start + length :])


def _payload(blob: bytes, path: Path) -> tuple[bytes, str]:
    """A packed file's payload, and the entry of its workload.

    Raises:
        ArtifactError: not a packed file, or from another version.
    """
    try:
        metadata, tensors = metadata_of(blob).get(KEY), load(blob)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: not a safetensors file, or damaged: {error}") from error
    if metadata is None or set(tensors) != {"payload"}:
        raise ArtifactError(f'{path}: not a packed model: it has no "{KEY}" entry; `slimfront apply` writes one')
    version, _, entry = metadata.partition(" ")
    if version != str(VERSION):
        earlier = version.isascii() and version.isdigit() and len(version) < 10 and int(version) < VERSION
        fix = "pack it again: `slimfront apply --retrain`" if earlier else "upgrade Slimfront"
        raise ArtifactError(f"{path}: artifact version {version[:20]}, this Slimfront reads {VERSION}: {fix}")
    payload = tensors["payload"]
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise ArtifactError(f"{path}: the payload is of the wrong type or shape: the file is damaged")
    return payload.tobytes(), entry


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(part: memoryview, like: torch.Tensor) -> torch.Tensor:
    if len(part) != like.nbytes:
        raise ArtifactError(f"{like.nbytes} bytes wanted, {len(part)} left: the file is truncated")
    # copied: alignment of memory changes the last bits of a product
    flat = torch.from_numpy(np.frombuffer(part, np.uint8).copy()).view(like.dtype) if len(part) else like.new_empty(0)
    return flat.reshape(like.shape).clone()
