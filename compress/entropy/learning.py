"""What a model of codes starts from, and the tables of counts that it learns while it codes.

A table's prior is the distribution of all codes so far, whose own prior is a geometric one that the first bytes tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from compress.entropy import tree
from compress.entropy.contexts import LARGEST, Contexts
from compress.entropy.tree import Codes, Floats, Leaves

COMMON = 2.0  # observations of a decision that the geometric prior is worth to all codes
OWN = 24.0  # and what all codes together are worth to one table
FIRST = 32  # codes of a part before the tables are looked at again
LATER = 8  # and one more for so many in all, or as many as there were of the part
DENSITIES, MAGNITUDES = 32, 8
ODDS = [float(np.ldexp((1.0, 1.4142135623730951)[i % 2], i // 2 - 12)) for i in range(DENSITIES)]  # of not zero


@dataclass(frozen=True)
class Prior:
    """A geometric distribution of codes.

    Attributes:
        low: the smallest code.
        high: the largest code.
        density: class of the odds that a code is not zero, 0 to 31, a factor of sqrt(2) each.
        magnitude: class of the mean magnitude of a code that is not zero, 0 to 7.
    """

    low: int
    high: int
    density: int
    magnitude: int

    @staticmethod
    def of(codes: Codes, low: int, high: int) -> "Prior":
        """The closest one to an array that is not all zeros."""
        sizes = np.abs(codes[codes != 0].astype(np.int32))
        odds = sizes.size / max(codes.size - sizes.size, 0.25)
        density = int(np.abs(np.log2(ODDS) - np.log2(odds)).argmin())
        means = [Prior(low, high, density, magnitude)._mean for magnitude in range(MAGNITUDES)]
        return Prior(low, high, density, int(np.abs(np.log2(means) - np.log2(sizes.mean())).argmin()))

    @staticmethod
    def numbered(number: int, low: int, high: int) -> "Prior":
        """The prior that has this number, 0 to 255."""
        return Prior(low, high, *divmod(number, MAGNITUDES))

    @property
    def number(self) -> int:
        """The inverse of `numbered`."""
        return self.density * MAGNITUDES + self.magnitude

    @property
    def bits(self) -> int:
        """Depth of the tree."""
        return tree.depth(self.low, self.high)

    @property
    def _mean(self) -> float:
        """Mean magnitude where not zero: 1 to about half of the largest, in steps that grow evenly."""
        return 1 + self.magnitude * self.magnitude * ((1 << self.bits) - 1) / (2 * (MAGNITUDES - 1) * (MAGNITUDES - 1))

    @property
    def expected(self) -> float:
        """Mean magnitude."""
        return self._mean * ODDS[self.density] / (1 + ODDS[self.density])

    @cached_property
    def masses(self) -> Floats:
        """Of a tree's leaves, (1, leaves), in an arbitrary unit."""
        size = 2**self.bits
        falling = np.multiply.accumulate(np.full(size, 1 - 1 / max(self._mean, 1.1)))
        inside = np.arange(1, size + 1)
        sides = np.concatenate([falling * (inside <= self.high), falling * (inside <= -self.low)])
        whole = float(np.add.accumulate(sides)[-1])
        return np.concatenate([[max(whole, tree.TINY) / ODDS[self.density]], sides])[None]


CLASSES = Prior(-LARGEST, LARGEST, density=24, magnitude=2)  # of the classes of rows and columns


class Tables:
    """Counts of codes, in all and by table.

    Args:
        prior: what all codes start from.
        contexts: which tables there are. Where signs are relative to neighbours', codes of all tables together say
            nothing of the signs in one.
    """

    def __init__(self, prior: Prior, contexts: Contexts) -> None:
        self._masses, self._mirrored = prior.masses, contexts.signs
        if self._mirrored:
            self._masses = tree.mirrored(self._masses)
        self._all = np.zeros_like(self._masses)
        self._own = np.zeros((contexts.tables, self._masses.shape[1]))
        self._seen = 0

    def pieces(self, count: int) -> Iterator[slice]:
        """Cut a run of codes where the tables are to be looked at anew."""
        start = 0
        while start < count:
            stop = min(count, start + max(FIRST, min(start, self._seen // LATER)))
            yield slice(start, stop)
            start = stop

    def distributions(self, tables: npt.NDArray[np.int16]) -> Floats:
        """What these tables expect, (tables, leaves)."""
        common = tree.probabilities(self._all, self._masses, COMMON)
        if len(self._own) == 1:
            return common
        if self._mirrored:
            common = tree.mirrored(common)
        return tree.probabilities(self._own[tables], common, OWN)

    def count(self, tables: npt.NDArray[np.int16], symbols: Leaves) -> None:
        """Learn from symbols, each of a table."""
        size = self._all.shape[1]
        self._seen += len(symbols)
        self._all += np.bincount(symbols, minlength=size)
        if len(self._own) > 1:
            places = tables * np.intp(size) + symbols
            if len(places) > self._own.size // 2:
                self._own += np.bincount(places, minlength=self._own.size).reshape(self._own.shape)
            else:
                np.add.at(self._own.reshape(-1), places, 1.0)

    def code_length(self) -> float:
        """Bits that coding what was counted takes, about: as if all codes together had been known from the start."""
        bits = tree.code_length(self._all, self._masses, COMMON)
        if len(self._own) == 1:
            return bits
        common = tree.probabilities(self._all, self._masses, COMMON)
        learning = bits - _entropy(self._all, common)
        used = self._own[self._own.any(axis=1)]
        return learning + tree.code_length(used, tree.mirrored(common) if self._mirrored else common, OWN)


def _entropy(counts: Floats, distribution: Floats) -> float:
    """Bits of coding counts under a fixed distribution."""
    return float(-(counts * np.log2(np.maximum(distribution, tree.TINY))).sum())
