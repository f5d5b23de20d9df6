"""Bits and bytes: numbers of a few bits without gaps between them, relative indices, and reading them back safely.

Relative indices (Han et al. 2016, arXiv:1510.00149, section 2) are gaps of a few bits between non-zeros, where the
largest gap value is an escape that stands for zeros only.
"""

import numpy as np
import numpy.typing as npt

from spaces.errors import ArtifactError

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
GAP_BITS = range(1, 9)


def whole_bytes(bits: int) -> int:
    """Bytes that hold so many bits."""
    return (bits + 7) // 8


def pack_bits(values: Bytes, width: int) -> bytes:
    """Values below 2**width, width 0 to 8, least bit first, without gaps between them."""
    planes = (values[:, None] >> np.arange(width, dtype=np.uint8)) & 1
    return np.packbits(planes.ravel(), bitorder="little").tobytes()


def unpack_bits(packed: bytes | memoryview, width: int, count: int) -> Bytes:
    """The inverse of `pack_bits`."""
    planes = np.unpackbits(np.frombuffer(packed, np.uint8), count=count * width, bitorder="little")
    weights = (1 << np.arange(width, dtype=np.uint16)).astype(np.uint16)
    return (planes.reshape(count, width) @ weights).astype(np.uint8)


def gaps_between(positions: Positions) -> Positions:
    """Zeros before each non-zero, given where the non-zeros are (increasing)."""
    return np.diff(positions, prepend=-1) - 1


def gap_lengths(positions: Positions) -> dict[int, int]:
    """How many fields relative indices take, for each number of bits of a field."""
    counts = np.bincount(gaps_between(positions))
    gaps = np.flatnonzero(counts)
    return {bits: len(positions) + int(counts[gaps] @ (gaps // (2**bits - 1))) for bits in GAP_BITS}


def gap_fields(positions: Positions, gap_bits: int) -> Bytes:
    """Relative indices: one field for each non-zero, and one of the largest value for each full gap before it."""
    escape = 2**gap_bits - 1
    gaps = gaps_between(positions)
    escapes = gaps // escape
    fields = np.full(int(gaps.size + escapes.sum()), escape, np.uint8)
    fields[np.cumsum(escapes + 1) - 1] = gaps % escape
    return fields


def gap_positions(fields: Bytes, gap_bits: int, total: int) -> Positions:
    """The inverse of `gap_fields`, for a site of `total` weights.

    Raises:
        ArtifactError: a position is none of the site's.
    """
    escape = 2**gap_bits - 1
    ends = np.cumsum(fields.astype(np.int64) + (fields < escape))
    positions: Positions = ends[fields < escape] - 1
    if positions.size and positions[-1] >= total:
        raise ArtifactError("a non-zero lies behind the last weight: the file is damaged")
    return positions


class Cursor:
    """Takes bytes off a payload, front to back.

    Args:
        payload: the bytes.

    Attributes:
        used: how many bytes were taken.
    """

    def __init__(self, payload: memoryview) -> None:
        self._payload, self.used = payload, 0

    def take(self, count: int) -> memoryview:
        """The next `count` bytes.

        Raises:
            ArtifactError: there are not so many left.
        """
        if self.used + count > len(self._payload):
            raise ArtifactError(f"{count} bytes wanted, {len(self._payload) - self.used} left: the file is truncated")
        part = self._payload[self.used : self.used + count]
        self.used += count
        return part

    def numbers(self, width: int, count: int) -> Bytes:
        """The next `count` numbers of `width` bits.

        Raises:
            ArtifactError: there are not so many left.
        """
        return unpack_bits(self.take(whole_bytes(count * width)), width, count)
