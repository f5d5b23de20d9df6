"""The fixed-width record of one site: how its payload is written."""

import struct
from dataclasses import dataclass
from enum import IntEnum

from compress.packing import GAP_BITS
from spaces.errors import ArtifactError

RECORD = struct.Struct("<BBbBI")  # form and kind, gap bits and bits, exponent, flags, count


class Form(IntEnum):
    """How positions of the non-zeros, or all codes, are written."""

    DENSE = 0
    BITMAP = 1
    RELATIVE = 2
    ENTROPY = 3


class Kind(IntEnum):
    """What one value is."""

    FLOAT32 = 0
    FLOAT16 = 1
    UNIFORM = 2
    CODEBOOK = 3


class StepPer(IntEnum):
    """What has a step of its own; how many groups a channel has is in the payload."""

    TENSOR = 0
    CHANNEL = 1
    GROUP = 2


FLOAT_BITS = {Kind.FLOAT32: 32, Kind.FLOAT16: 16}
CODE_BITS = {Kind.UNIFORM: range(2, 9), Kind.CODEBOOK: range(1, 9)}
INPUT_BITS = range(4, 9)
LEAST_EXPONENT = -126  # whose power of two float32 holds together with its inverse


@dataclass(frozen=True)
class Record:
    """How a site's payload is written.

    Attributes:
        form: how the positions are written.
        kind: what one value is.
        bits: of a value.
        gap_bits: of a relative index; 0 in other forms.
        exponent: the power of two of the steps or entries.
        per: what has a step.
        asymmetric: whether each step has a smallest code.
        input_bits: bits of the site's input when the model runs; 0: it stays float.
        static: whether the input's range is stored.
        count: relative indices, or bytes of an entropy-coded stream; 0 in other forms.
    """

    form: Form
    kind: Kind
    bits: int
    gap_bits: int = 0
    exponent: int = 0
    per: StepPer = StepPer.TENSOR
    asymmetric: bool = False
    input_bits: int = 0
    static: bool = False
    count: int = 0

    def pack(self) -> bytes:
        """The record's bytes."""
        bits = 0 if self.kind in FLOAT_BITS else self.bits
        flags = self.per + 4 * self.asymmetric + 8 * self.static + 16 * self.input_bits
        return RECORD.pack(self.form * 16 + self.kind, self.gap_bits * 16 + bits, self.exponent, flags, self.count)

    @staticmethod
    def unpack(record: bytes, total: int) -> "Record":
        """The inverse of `pack`, for a site of `total` weights.

        Raises:
            ArtifactError: it is no record, or one that no site of this size has.
        """
        if len(record) != RECORD.size:
            raise ArtifactError(f"a record of {len(record)} bytes, expected {RECORD.size}: the file is truncated")
        tag, widths, exponent, flags, count = RECORD.unpack(record)
        try:
            form, kind, per = Form(tag // 16), Kind(tag % 16), StepPer(flags % 4)
        except ValueError as error:
            raise ArtifactError(
                f"unknown way of coding {tag}, {flags}: the file is damaged or from a later version"
            ) from error
        bits = FLOAT_BITS.get(kind, widths % 16)
        one = Record(
            form, kind, bits, widths // 16, exponent, per, bool(flags & 4), flags // 16, bool(flags & 8), count
        )
        if one.pack() != record or (kind in CODE_BITS and bits not in CODE_BITS[kind]):
            raise ArtifactError(f"{widths % 16} bits do not go with {kind.name.lower()} weights: the file is damaged")
        if kind is not Kind.UNIFORM and (per or one.asymmetric):
            raise ArtifactError(f"{kind.name.lower()} weights have no steps: the file is damaged")
        if kind in FLOAT_BITS and (exponent or form is Form.ENTROPY):
            raise ArtifactError(f"{kind.name.lower()} weights are coded as integers: the file is damaged")
        if exponent < LEAST_EXPONENT:
            raise ArtifactError(f"an exponent of {exponent}, the least is {LEAST_EXPONENT}: the file is damaged")
        if one.input_bits not in (INPUT_BITS if one.static else (0, *INPUT_BITS)):
            raise ArtifactError(f"inputs of {one.input_bits} bits: the file is damaged")
        one._check_count(total)
        return one

    def _check_count(self, total: int) -> None:
        if self.form is Form.RELATIVE:
            fits = self.gap_bits in GAP_BITS and self.count <= total
        else:
            fits = self.gap_bits == 0 and (self.form is Form.ENTROPY or self.count == 0)
        if not fits:
            raise ArtifactError(
                f"{self.count} gaps of {self.gap_bits} bits do not fit {total} weights "
                f"in {self.form.name.lower()} form: the file is damaged"
            )
