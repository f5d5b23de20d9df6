"""The coded form of one site's weights, and the shortest of four ways to write it as bytes.

Dense codes; a bitmap and the non-zero codes; relative indices (Han et al. 2016, arXiv:1510.00149, section 2) and the
non-zero codes; or, where it is allowed, one entropy-coded stream. Before them stands what the codes mean: the range of
the input, the steps of a grid with their smallest codes, or the entries of a codebook.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from compress import entropy
from compress.alphabet import Alphabet, Codes, below_zero, signed, unsigned
from compress.packing import Cursor, Positions, gap_fields, gap_lengths, gap_positions, pack_bits, whole_bytes
from compress.quantization import codebook, uniform
from compress.quantization.activations import InputGrid
from compress.quantization.uniform import Grid
from compress.record import FLOAT_BITS, RECORD, Form, Kind, Record, StepPer
from spaces.errors import ArtifactError

__all__ = ["RECORD", "CodedWeight", "Coding", "Form", "Kind", "read"]

Coding = Literal["packed", "entropy"]
RANGE = struct.Struct("<2f")  # of a static input
GROUPS = struct.Struct("<I")  # a channel has


@dataclass(frozen=True)
class CodedWeight:
    """A site's weights as they are stored.

    Attributes:
        kind: what one value is.
        values: (channels, n): float16 or float32 values; UNIFORM: int8 codes (int16 on an asymmetric grid), in which 0
            is the number zero; CODEBOOK: uint8, 0 is the number zero and k > 0 is entries[k - 1].
        bits: bits of a code (16 and 32 for floats).
        grid: steps of UNIFORM codes.
        entries: of a CODEBOOK, float32 (2**bits - 1,), increasing, exact in float16 times 2**exponent.
        exponent: the power of two of the entries.
        inputs: how the site's input is quantized when the model runs; None: it stays float.
    """

    kind: Kind
    values: torch.Tensor
    bits: int
    grid: Grid | None = None
    entries: torch.Tensor | None = None
    exponent: int = 0
    inputs: InputGrid | None = None

    def decode(self) -> torch.Tensor:
        """The weights as (channels, n), float32."""
        if self.grid is not None:
            return uniform.dequantize(self.values, self.grid)
        return self.values.float() if self.entries is None else codebook.dequantize(self.values, self.entries)

    @cached_property
    def nonzero(self) -> int:
        """How many weights are not zero."""
        return int(np.count_nonzero(self._bare))

    @property
    def head_bytes(self) -> int:
        """Bytes of the payload that say what the codes mean: the input's range, steps, entries."""
        return len(self._head())

    def payload_bytes(self, coding: Coding = "packed") -> int:
        """Bytes of the payload, without the fixed-width record.

        Args:
            coding: "entropy" allows an entropy-coded stream, where that is shorter than all other ways.
        """
        return len(self._head()) + self._best(coding)[0]

    def write(self, coding: Coding = "packed") -> tuple[bytes, bytes]:
        """The record and the payload; `coding` as for `payload_bytes`."""
        _, form, gap_bits = self._best(coding)
        count, parts = 0, [self._head()]
        if form is Form.DENSE:
            parts.append(self._dense())
        elif form is Form.ENTROPY:
            parts.append(self._stream())
            count = len(parts[-1])
        else:
            positions = self._positions()
            if form is Form.BITMAP:
                parts.append(np.packbits(self._bare != 0, bitorder="little").tobytes())
            else:
                fields = gap_fields(positions, gap_bits)
                parts.append(pack_bits(fields, gap_bits))
                count = fields.size
            parts.append(self._sparse(positions))
        return self._record(form, gap_bits, count).pack(), b"".join(parts)

    def _best(self, coding: Coding) -> tuple[int, Form, int]:
        return self._shortest if coding == "packed" or self.kind in FLOAT_BITS else self._shortest_of_all

    @cached_property
    def _shortest(self) -> tuple[int, Form, int]:
        """(payload bytes without the head, form, gap bits) of the shortest way without the entropy coder."""
        total, nonzero = self.values.numel(), self.nonzero
        alphabet = self._alphabet()
        values = whole_bytes(nonzero * (self.bits if alphabet is None else alphabet.bits_beside_zero))
        ways = [(whole_bytes(total * self.bits), Form.DENSE, 0), (whole_bytes(total) + values, Form.BITMAP, 0)]
        for bits, fields in gap_lengths(self._positions()).items():
            ways.append((whole_bytes(fields * bits) + values, Form.RELATIVE, bits))
        return min(ways)

    @cached_property
    def _shortest_of_all(self) -> tuple[int, Form, int]:
        return min(self._shortest, (len(self._stream()), Form.ENTROPY, 0))

    @property
    def _flat(self) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self.values.cpu().numpy().ravel()
        return array

    @property
    def _bare(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        flat = self._flat
        return flat.view(np.dtype(f"u{flat.itemsize}"))  # a float's -0.0 is a value of its own

    def _positions(self) -> Positions:
        """Where the non-zeros are; not kept, as it is several times the size of the values."""
        return np.flatnonzero(self._bare)

    def _alphabet(self) -> Alphabet | None:
        if self.grid is not None:
            return Alphabet.of_grid(self.grid, self.bits, *self.values.shape)
        return None if self.entries is None else Alphabet.of_entries(self.entries, self.bits)

    def _codes(self, alphabet: Alphabet) -> Codes:
        """The codes of the alphabet, (channels * n,)."""
        return self._flat if self.entries is None else signed(self._flat, below_zero(self.entries))

    def _dense(self) -> bytes:
        alphabet = self._alphabet()
        if alphabet is None:
            return self._flat.tobytes()
        return pack_bits(alphabet.numbers(self._codes(alphabet)), self.bits)

    def _sparse(self, positions: Positions) -> bytes:
        alphabet = self._alphabet()
        if alphabet is None:
            return self._flat[positions].tobytes()
        numbers = alphabet.numbers_beside_zero(self._codes(alphabet), positions)
        return pack_bits(numbers, alphabet.bits_beside_zero)

    def _stream(self) -> bytes:
        alphabet = self._alphabet()
        if alphabet is None:
            raise ValueError(f"{self.kind.name.lower()} weights are no integer codes")
        return entropy.encode(self._codes(alphabet).reshape(self.values.shape), *alphabet.range)

    def _record(self, form: Form, gap_bits: int, count: int) -> Record:
        grid, inputs = self.grid, self.inputs
        per = StepPer.TENSOR
        if grid is not None and grid.step.shape != (1, 1):
            per = StepPer.CHANNEL if grid.step.shape[1] == 1 else StepPer.GROUP
        return Record(
            form,
            self.kind,
            self.bits,
            gap_bits,
            exponent=self.exponent if grid is None else grid.exponent,
            per=per,
            asymmetric=grid is not None and grid.low is not None,
            input_bits=0 if inputs is None else inputs.bits,
            static=inputs is not None and inputs.low is not None,
            count=count,
        )

    def _head(self) -> bytes:
        """What stands before the codes."""
        parts = []
        if self.inputs is not None and self.inputs.low is not None:
            parts.append(RANGE.pack(self.inputs.low, self.inputs.high))
        if self.grid is not None:
            groups = self.grid.step.shape[1]
            parts += [GROUPS.pack(groups)] if groups > 1 else []
            parts.append(_halves(self.grid.step, self.grid.exponent))
            if self.grid.low is not None:
                parts.append(pack_bits((-self.grid.low).cpu().numpy().ravel().astype(np.uint8), self.bits))
        if self.entries is not None:
            parts.append(_halves(self.entries, self.exponent))
        return b"".join(parts)


def read(record: bytes, payload: memoryview, channels: int, n: int) -> tuple[CodedWeight, int]:
    """Decode what `CodedWeight.write` wrote for a site of (channels, n) weights.

    Returns:
        The coded weight and how many bytes of the payload it used.

    Raises:
        ArtifactError: the bytes are not such a site.
    """
    how, cursor = Record.unpack(record, channels * n), Cursor(payload)
    inputs, grid, entries = _read_inputs(how, cursor), None, None
    if how.kind is Kind.UNIFORM:
        grid = _read_grid(how, cursor, channels, n)
        codes = _read_codes(how, cursor, Alphabet.of_grid(grid, how.bits, channels, n), channels, n)
        values = codes.astype(np.int16 if how.asymmetric else np.int8)
    elif how.kind is Kind.CODEBOOK:
        entries = _read_halves(cursor, (1 << how.bits) - 1, how.exponent)
        if bool((entries[1:] < entries[:-1]).any()):
            raise ArtifactError("the entries of a codebook are not in order: the file is damaged")
        codes = _read_codes(how, cursor, Alphabet.of_entries(entries, how.bits), channels, n)
        values = unsigned(codes, below_zero(entries))
    else:
        values = _read_floats(how, cursor, channels * n)
    coded = CodedWeight(
        how.kind,
        torch.from_numpy(values.reshape(channels, n)),
        how.bits,
        grid,
        entries,
        exponent=how.exponent if grid is None else 0,
        inputs=inputs,
    )
    return coded, cursor.used


def _read_inputs(how: Record, cursor: Cursor) -> InputGrid | None:
    if how.input_bits == 0:
        return None
    low, high = RANGE.unpack(cursor.take(RANGE.size)) if how.static else (None, None)
    try:
        return InputGrid(how.input_bits, low, high)
    except ValueError as error:
        raise ArtifactError(f"the range of a site's input is none, the file is damaged: {error}") from error


def _read_grid(how: Record, cursor: Cursor, channels: int, n: int) -> Grid:
    shape = (1, 1) if how.per is StepPer.TENSOR else (channels, 1)
    if how.per is StepPer.GROUP:
        (groups,) = GROUPS.unpack(cursor.take(GROUPS.size))
        if groups < 2 or n % groups:
            raise ArtifactError(f"{groups} groups do not divide {n} weights a channel: the file is damaged")
        shape = (channels, groups)
    step = _read_halves(cursor, shape[0] * shape[1], how.exponent).reshape(shape)
    if bool((step < 0).any()):
        raise ArtifactError("a scale is negative: the file is damaged")
    if not how.asymmetric:
        return Grid(step, how.exponent)
    low = -cursor.numbers(how.bits, step.numel()).astype(np.int16).reshape(shape)
    return Grid(step, how.exponent, torch.from_numpy(low))


def _read_codes(how: Record, cursor: Cursor, alphabet: Alphabet, channels: int, n: int) -> Codes:
    total = channels * n
    if how.form is Form.DENSE:
        return alphabet.codes(cursor.numbers(how.bits, total))
    if how.form is Form.ENTROPY:
        return alphabet.check(entropy.decode(cursor.take(how.count), channels, n, *alphabet.range).ravel())
    positions = _read_positions(how, cursor, total)
    codes = np.zeros(total, np.int16)
    numbers = cursor.numbers(alphabet.bits_beside_zero, positions.size)
    codes[positions] = alphabet.codes_beside_zero(numbers, positions)
    return codes


def _read_floats(how: Record, cursor: Cursor, total: int) -> npt.NDArray[np.floating[Any]]:
    dtype = np.dtype(f"<f{how.bits // 8}")
    if how.form is Form.DENSE:
        return np.frombuffer(cursor.take(total * dtype.itemsize), dtype).copy()
    positions = _read_positions(how, cursor, total)
    values = np.zeros(total, dtype)
    values[positions] = np.frombuffer(cursor.take(positions.size * dtype.itemsize), dtype)
    return values


def _read_positions(how: Record, cursor: Cursor, total: int) -> Positions:
    if how.form is Form.BITMAP:
        return np.flatnonzero(cursor.numbers(1, total))
    return gap_positions(cursor.numbers(how.gap_bits, how.count), how.gap_bits, total)


def _halves(numbers: torch.Tensor, exponent: int) -> bytes:
    data: bytes = (numbers * 2.0**-exponent).half().cpu().numpy().tobytes()
    return data


def _read_halves(cursor: Cursor, count: int, exponent: int) -> torch.Tensor:
    halves = np.frombuffer(cursor.take(2 * count), np.float16).copy()
    numbers = torch.from_numpy(halves).float() * 2.0**exponent
    if not bool(torch.isfinite(numbers).all()):
        raise ArtifactError("a scale or an entry is not finite: the file is damaged")
    return numbers
