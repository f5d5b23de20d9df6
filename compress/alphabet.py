"""The integer codes that one site may have, and the numbers that stand for them in a file."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compress.packing import Bytes, Positions
from compress.quantization.uniform import Grid, spread, top
from spaces.errors import ArtifactError

Codes = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Alphabet:
    """Codes around 0, which is the number zero; in order of the weights that they stand for.

    Attributes:
        bits: of a code.
        levels: how many codes there are.
        zero: how many of them are below 0: for all weights, or for each, (channels * n,).
    """

    bits: int
    levels: int
    zero: int | Codes

    @staticmethod
    def of_grid(grid: Grid, bits: int, channels: int, n: int) -> "Alphabet":
        """The codes of a grid."""
        if grid.low is None:
            return Alphabet(bits, 2 * top(bits) + 1, top(bits))
        if grid.low.numel() == 1:
            return Alphabet(bits, 1 << bits, -int(grid.low))
        zero = spread(-grid.low, n).expand(channels, n).reshape(-1)
        return Alphabet(bits, 1 << bits, zero.cpu().numpy())

    @staticmethod
    def of_entries(entries: torch.Tensor, bits: int) -> "Alphabet":
        """The codes of a codebook, negative for entries below zero."""
        return Alphabet(bits, 1 << bits, below_zero(entries))

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest code of all weights."""
        return -int(np.max(self.zero)), self.levels - 1 - int(np.min(self.zero))

    @property
    def bits_beside_zero(self) -> int:
        """Bits of a code that is known not to be 0: none where only one is left."""
        return (self.levels - 2).bit_length()

    def numbers(self, codes: Codes) -> Bytes:
        """Codes of all weights, (channels * n,), numbered from 0."""
        return (codes.astype(np.int16) + self.zero).astype(np.uint8)

    def numbers_beside_zero(self, codes: Codes, positions: Positions) -> Bytes:
        """Codes of the weights at these positions, none of them 0, numbered from 0 without it."""
        codes = codes[positions].astype(np.int16)
        return (codes + self._zero(positions) - (codes > 0)).astype(np.uint8)

    def codes(self, numbers: Bytes) -> Codes:
        """The inverse of `numbers`.

        Raises:
            ArtifactError: a number stands for no code.
        """
        return self._checked(numbers.astype(np.int16) - self.zero, self.zero)

    def codes_beside_zero(self, numbers: Bytes, positions: Positions) -> Codes:
        """The inverse of `numbers_beside_zero`.

        Raises:
            ArtifactError: a number stands for no code.
        """
        zero = self._zero(positions)
        codes = numbers.astype(np.int16) - zero
        return self._checked(codes + (codes >= 0), zero)

    def check(self, codes: Codes) -> Codes:
        """The codes of all weights, (channels * n,).

        Raises:
            ArtifactError: one is none of the alphabet's.
        """
        return self._checked(codes, self.zero)

    def _zero(self, positions: Positions) -> int | Codes:
        return self.zero if isinstance(self.zero, int) else self.zero[positions]

    def _checked(self, codes: Codes, zero: int | Codes) -> Codes:
        if bool(((codes < -zero) | (codes >= self.levels - zero)).any()):
            raise ArtifactError(f"a code is none of the {self.levels} of {self.bits} bits: the file is damaged")
        return codes


def below_zero(entries: torch.Tensor) -> int:
    """How many entries of a codebook are below zero."""
    return int((entries < 0).sum())


def signed(codes: Codes, below: int) -> Codes:
    """Codes of a codebook, of which 0 is the number zero and k entry k - 1, as those of an alphabet.

    Args:
        codes: uint8, any shape.
        below: how many entries are below zero.
    """
    wide = codes.astype(np.int16)
    return np.where(wide == 0, 0, wide - below - (wide <= below))


def unsigned(codes: Codes, below: int) -> Codes:
    """The inverse of `signed`, uint8."""
    return np.where(codes == 0, 0, codes + below + (codes < 0)).astype(np.uint8)
