"""The coded form of one site's weights, and the shortest of three ways to write it as bytes.

Dense codes; a bitmap and the non-zero codes; or relative indices (Han et al. 2016, arXiv:1510.00149, section 2): gaps
of a few bits between non-zeros, where the largest gap value is an escape that stands for zeros only.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from compress.quantization.uniform import dequantize, top
from spaces.errors import ArtifactError

Bytes = npt.NDArray[np.uint8]
RECORD = struct.Struct("<BBBbI")  # form and kind, bits, gap bits, exponent, count of gap fields: fixed width
GAP_BITS = range(1, 9)


class Form(IntEnum):
    """How positions of the non-zeros are written."""

    DENSE = 0
    BITMAP = 1
    RELATIVE = 2


class Kind(IntEnum):
    """What one value is."""

    FLOAT32 = 0
    FLOAT16 = 1
    UNIFORM = 2


@dataclass(frozen=True)
class CodedWeight:
    """A site's weights as they are stored.

    Attributes:
        kind: what one value is.
        values: (channels, n): int8 codes, or float16 or float32 values.
        bits: bits of a code (16 and 32 for floats).
        scales: float32 (channels, 1), exact in float16 times 2**exponent; None for floats.
        exponent: the power of two of the scales.
    """

    kind: Kind
    values: torch.Tensor
    bits: int
    scales: torch.Tensor | None = None
    exponent: int = 0

    def decode(self) -> torch.Tensor:
        """The weights as (channels, n), float32."""
        return self.values.float() if self.scales is None else dequantize(self.values, self.scales)

    @cached_property
    def nonzero(self) -> int:
        """How many weights are not zero."""
        return int(np.count_nonzero(self._bare))

    @property
    def _flat(self) -> npt.NDArray[np.generic]:
        array: npt.NDArray[np.generic] = self.values.cpu().numpy().ravel()
        return array

    @property
    def _bare(self) -> npt.NDArray[np.unsignedinteger]:
        flat = self._flat
        return flat.view(np.dtype(f"u{flat.itemsize}"))  # a float's -0.0 is a value of its own

    def _positions(self) -> npt.NDArray[np.int64]:
        """Where the non-zeros are; not kept, as it is several times the size of the values."""
        return np.flatnonzero(self._bare)

    @property
    def _value_bits(self) -> int:
        """Bits of one value where zero need not be said."""
        return self.bits if self.scales is None else max(1, (2 * top(self.bits) - 1).bit_length())

    @cached_property
    def _best(self) -> tuple[int, Form, int]:
        """(payload bytes without scales, form, gap bits) of the shortest way."""
        positions = self._positions()
        gaps = np.diff(positions, prepend=-1) - 1
        n, nonzero = self.values.numel(), positions.size
        values = _whole(nonzero * self._value_bits)
        ways = [(_whole(n * self.bits), Form.DENSE, 0), (_whole(n) + values, Form.BITMAP, 0)]
        for bits in GAP_BITS if 2 * nonzero < n else GAP_BITS[:1]:  # 2 bits a non-zero would be a bitmap's n
            fields = nonzero + int((gaps // (2**bits - 1)).sum())
            ways.append((_whole(fields * bits) + values, Form.RELATIVE, bits))
        return min(ways)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload, scales included, without the fixed-width record."""
        return self._best[0] + (0 if self.scales is None else 2 * self.scales.numel())

    def write(self) -> tuple[bytes, bytes]:
        """The record and the payload."""
        _, form, gap_bits = self._best
        count, parts = 0, []
        if self.scales is not None:
            parts.append((self.scales * 2.0**-self.exponent).half().cpu().numpy().tobytes())
        if form is Form.DENSE:
            parts.append(self._dense())
        else:
            positions = self._positions()
            if form is Form.BITMAP:
                parts.append(np.packbits(self._bare != 0, bitorder="little").tobytes())
            else:
                fields = _gap_fields(np.diff(positions, prepend=-1) - 1, 2**gap_bits - 1)
                count = fields.size
                parts.append(pack_bits(fields, gap_bits))
            parts.append(self._sparse(positions))
        record = RECORD.pack(form * 16 + self.kind, self.bits, gap_bits, self.exponent, count)
        return record, b"".join(parts)

    def _dense(self) -> bytes:
        if self.scales is None:
            return self._flat.tobytes()
        return pack_bits((self._flat.astype(np.int16) + top(self.bits)).astype(np.uint8), self.bits)

    def _sparse(self, positions: npt.NDArray[np.int64]) -> bytes:
        values = self._flat[positions]
        if self.scales is None:
            return values.tobytes()
        code = values.astype(np.int16) + top(self.bits)  # 0 .. 2 top without the middle
        return pack_bits((code - (code > top(self.bits))).astype(np.uint8), self._value_bits)


def read(record: bytes, payload: memoryview, channels: int, n: int) -> tuple[CodedWeight, int]:
    """Decode what `CodedWeight.write` wrote for a site of (channels, n) weights.

    Returns:
        The coded weight and how many bytes of the payload it used.

    Raises:
        ArtifactError: the bytes are not such a site.
    """
    if len(record) != RECORD.size:
        raise ArtifactError(f"a record of {len(record)} bytes, expected {RECORD.size}: the file is truncated")
    tag, bits, gap_bits, exponent, fields = RECORD.unpack(record)
    try:
        form, kind = Form(tag // 16), Kind(tag % 16)
    except ValueError as error:
        raise ArtifactError(f"unknown way of coding {tag}: the file is damaged or from a later version") from error
    uniform = kind is Kind.UNIFORM
    if not (2 <= bits <= 8 if uniform else bits == (32 if kind is Kind.FLOAT32 else 16)):
        raise ArtifactError(f"{bits} bits do not go with {kind.name.lower()} weights: the file is damaged")
    if form is Form.RELATIVE and not (gap_bits in GAP_BITS and fields <= channels * n):
        raise ArtifactError(f"{fields} gaps of {gap_bits} bits do not fit {channels * n} weights: the file is damaged")
    cursor = _Cursor(payload)
    scales = None
    if uniform:
        halves = np.frombuffer(cursor.take(2 * channels), np.float16).copy()
        scales = torch.from_numpy(halves).float().reshape(channels, 1) * 2.0**exponent
        if not bool(torch.isfinite(scales).all()):
            raise ArtifactError("a scale is not finite: the file is damaged")
    dtype = np.dtype({Kind.UNIFORM: np.int8, Kind.FLOAT16: np.float16, Kind.FLOAT32: np.float32}[kind])
    total = channels * n
    if form is Form.DENSE:
        flat = _read_values(cursor, total, bits, kind, dtype, dense=True)
    else:
        if form is Form.BITMAP:
            bitmap = np.frombuffer(cursor.take(_whole(total)), np.uint8)
            positions = np.flatnonzero(np.unpackbits(bitmap, count=total, bitorder="little"))
        else:
            gaps = unpack_bits(cursor.take(_whole(fields * gap_bits)), gap_bits, fields).astype(np.int64)
            escape = 2**gap_bits - 1
            ends = np.cumsum(gaps + (gaps < escape))
            positions = ends[gaps < escape] - 1
            if positions.size and positions[-1] >= total:
                raise ArtifactError("a non-zero lies behind the last weight: the file is damaged")
        flat = np.zeros(total, dtype)
        flat[positions] = _read_values(cursor, positions.size, bits, kind, dtype, dense=False)
    return CodedWeight(kind, torch.from_numpy(flat.reshape(channels, n)), bits, scales, exponent), cursor.used


def _read_values(
    cursor: "_Cursor", count: int, bits: int, kind: Kind, dtype: np.dtype[np.generic], *, dense: bool
) -> npt.NDArray[np.generic]:
    if kind is not Kind.UNIFORM:
        return np.frombuffer(cursor.take(count * dtype.itemsize), dtype).copy()
    width = bits if dense else max(1, (2 * top(bits) - 1).bit_length())
    codes = unpack_bits(cursor.take(_whole(count * width)), width, count).astype(np.int16)
    codes = codes if dense else codes + (codes >= top(bits))
    if codes.size and codes.max() > 2 * top(bits):
        raise ArtifactError(f"a code is above the {bits} bits' largest: the file is damaged")
    return (codes - top(bits)).astype(np.int8)


class _Cursor:
    """Takes bytes off a payload, front to back."""

    def __init__(self, payload: memoryview) -> None:
        self._payload, self.used = payload, 0

    def take(self, count: int) -> memoryview:
        if self.used + count > len(self._payload):
            raise ArtifactError(f"{count} bytes wanted, {len(self._payload) - self.used} left: the file is truncated")
        part = self._payload[self.used : self.used + count]
        self.used += count
        return part


def _whole(bits: int) -> int:
    return (bits + 7) // 8


def _gap_fields(gaps: npt.NDArray[np.int64], escape: int) -> npt.NDArray[np.uint8]:
    escapes = gaps // escape
    fields = np.full(int(gaps.size + escapes.sum()), escape, np.uint8)
    fields[np.cumsum(escapes + 1) - 1] = gaps % escape
    return fields


def pack_bits(values: npt.NDArray[np.uint8], width: int) -> bytes:
    """Values below 2**width, least bit first, without gaps between them."""
    planes = (values[:, None] >> np.arange(width, dtype=np.uint8)) & 1
    return np.packbits(planes.ravel(), bitorder="little").tobytes()


def unpack_bits(packed: bytes | memoryview, width: int, count: int) -> Bytes:
    """The inverse of `pack_bits`."""
    planes = np.unpackbits(np.frombuffer(packed, np.uint8), count=count * width, bitorder="little")
    weights = (1 << np.arange(width, dtype=np.uint16)).astype(np.uint16)
    return (planes.reshape(count, width) @ weights).astype(np.uint8)
