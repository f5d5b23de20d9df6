"""What is known of a code before it is decoded: contexts of quantized expectations, after CALIC (Wu and Memon 1997).

How large a code is expected to be comes from classes of its row and its column, which are sent ahead, and from the
codes before it in its group of columns (a kernel, or what an N:M pattern repeats over); which sign it is expected to
have comes from its neighbours to the left and above in its kernel, the context that DeepCABAC (Wiedemann et al. 2019,
arXiv:1907.11900) takes from the one before. A table of probabilities belongs to each quantized pair of the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from compress.entropy.tree import Codes, Floats

Classes = npt.NDArray[np.int16]

LARGEST = 16  # sizes lie within 2 ** (-LARGEST / 2) and 2 ** (LARGEST / 2) of the mean
SQRT2 = 1.4142135623730951
SIZES = np.array([np.ldexp((1.0, SQRT2)[i % 2], i // 2) for i in range(-LARGEST, LARGEST + 1)])  # by class + LARGEST
STEPS = np.array([np.ldexp((1.189207115002721, 1.681792830507429)[i % 2], i // 2) for i in range(-8, 8)])  # between
SIGNS = np.array([0.1, 0.35, 0.7, 1.2])  # of the neighbours' sum in units of the expected magnitude
PATTERN = 16  # columns of the longest pattern
MEMORY = 2.0  # non-zeros that the row's and the column's expectation is worth against what the group shows
BLOCK = 1 << 18  # weights whose contexts are held at a time


class Near(IntEnum):
    """What is taken from the codes before one in its group."""

    NOTHING = 0
    SIGN = 1
    SIZE = 2
    SIGN_AND_SIZE = 3
    PATTERN = 4  # how many are not zero


@dataclass(frozen=True)
class Contexts:
    """How the codes of one array (channels, n) are sorted into tables.

    Attributes:
        expected: mean magnitude of all codes.
        rows: (channels,), by how many factors of sqrt(2) a row's codes are larger than the mean.
        columns: (n,), the same of columns.
        near: what is taken from a code's group.
        height: rows of a kernel; its `width` columns side by side are columns of the array.
        width: columns of a kernel. Height times width, columns of a group, divides n.
    """

    expected: float
    rows: Classes
    columns: Classes
    near: Near = Near.NOTHING
    height: int = 1
    width: int = 1

    @property
    def group(self) -> int:
        """Columns of a group."""
        return self.height * self.width

    @property
    def signs(self) -> bool:
        """Whether signs are seen relative to the neighbours' sign."""
        return self.near in (Near.SIGN, Near.SIGN_AND_SIZE)

    @property
    def tables(self) -> int:
        """How many tables there are."""
        if self.near is Near.NOTHING and not (self.rows.any() or self.columns.any()):
            return 1
        if self.near is Near.PATTERN:
            return self.group * self.group
        return (2 * LARGEST + 1) * (len(SIGNS) + 1)

    def walk(self, codes: Codes) -> Iterator[tuple[Codes, npt.NDArray[np.int16], npt.NDArray[np.bool_]]]:
        """Go through an array in the order of coding, a column of all groups of some rows at a time.

        Args:
            codes: (channels, n), contiguous. A decoder fills in each part before it asks for the next.

        Yields:
            The next part of `codes`, a view (rows, groups); the table of each; whether its sign is mirrored.
        """
        channels, n = codes.shape
        step = max(1, BLOCK // n)
        for first in range(0, channels, step):
            block = codes[first : first + step]
            rows = self.rows[first : first + len(block), None]
            block = block.reshape(len(rows), n // self.group, self.group)
            so_far = np.zeros(block.shape[:2], np.int32)
            for at in range(self.group):
                size = rows + self.columns[None, at :: self.group]
                if self.tables == 1:
                    yield block[:, :, at], np.zeros_like(size), np.zeros(size.shape, bool)
                    continue
                if self.near is Near.PATTERN:
                    mirror = np.zeros(size.shape, bool)
                    yield block[:, :, at], (so_far * self.group + at).astype(np.int16), mirror
                    so_far += block[:, :, at] != 0
                    continue
                table, mirror = self._table(block, at, size, so_far)
                yield block[:, :, at], table, mirror
                if self.near in (Near.SIZE, Near.SIGN_AND_SIZE):
                    so_far += np.abs(block[:, :, at])

    def _table(
        self, block: Codes, at: int, size: Classes, so_far: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
        size = size.clip(-LARGEST, LARGEST)
        if self.near in (Near.SIZE, Near.SIGN_AND_SIZE):
            expected = self.expected * SIZES[size + LARGEST]
            memory = MEMORY / min(self.expected, 1.0)
            seen = (so_far / expected + memory) / (at + memory)
            size = (size + np.searchsorted(STEPS, seen) - len(STEPS) // 2).clip(-LARGEST, LARGEST)
        table = (size + LARGEST) * (len(SIGNS) + 1)
        around = np.zeros(block.shape[:2], np.int32)
        if self.signs:
            if at % self.width:
                around += block[:, :, at - 1]
            if at >= self.width:
                around += block[:, :, at - self.width]
            units: Floats = np.abs(around) / (self.expected * SIZES[size + LARGEST])
            table = table + np.searchsorted(SIGNS, units)
        return table.astype(np.int16), around < 0
