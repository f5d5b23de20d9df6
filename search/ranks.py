"""Non-dominated ranks (Deb et al. 2002, NSGA-II, section III) of scores in bytes and accuracy, kept as scores arrive.

The rank of a score is one more than the longest chain of scores that dominate it. Those of one rank form a staircase,
and a score has a rank above k exactly where one of rank k dominates it. A new score pushes a contiguous piece of its
staircase to the next rank, which pushes a piece of that one, and so on (Yakupov & Buzdalov 2015, for two objectives).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import inf, nextafter


@dataclass(frozen=True)
class Staircase:
    """Scores of which none dominates another: bytes and accuracies, both strictly increasing."""

    bytes: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()

    def dominates(self, accuracy: float, bytes: int) -> bool:
        """Whether one of these scores is at least as good in both and better in one."""
        at = bisect_right(self.bytes, bytes) - 1
        return at >= 0 and (self.accuracy[at], bytes) > (accuracy, self.bytes[at])

    def bar(self, bytes: int) -> float | None:
        """The accuracy above which none of these dominates a score of so many bytes; None where none ever does."""
        at = bisect_right(self.bytes, bytes) - 1
        if at < 0:
            return None
        equal = self.bytes[at] == bytes  # the same score again is not dominated
        return nextafter(self.accuracy[at], -inf) if equal else self.accuracy[at]


class Ranks:
    """The ranks of all scores that were added; a score that is there already counts once."""

    def __init__(self) -> None:
        self._bytes: list[list[int]] = []  # by rank - 1; within a rank both increase strictly
        self._accuracy: list[list[float]] = []

    def __len__(self) -> int:
        """How many different scores there are."""
        return sum(map(len, self._bytes))

    def __iter__(self) -> Iterator[Staircase]:
        """The scores of rank 1, of rank 2, and so on."""
        return map(self.of_rank, range(1, len(self._bytes) + 1))

    def of_rank(self, rank: int) -> Staircase:
        """The scores of a rank; none where no score has it."""
        if not 1 <= rank <= len(self._bytes):
            return Staircase()
        return Staircase(tuple(self._bytes[rank - 1]), tuple(self._accuracy[rank - 1]))

    def best(self, ranks: int | None) -> Iterator[Iterator[tuple[int, float]]]:
        """The scores of the first so many ranks, or of all, as bytes and accuracy; nothing may be added meanwhile."""
        return (zip(*layer, strict=True) for layer in zip(self._bytes[:ranks], self._accuracy[:ranks], strict=True))

    def rank(self, accuracy: float, bytes: int) -> int:
        """The rank that a score has among these, whether it is one of them or not."""
        low, high = 0, len(self._bytes)  # what rank k + 1 dominates, rank k does, too
        while low < high:
            middle = (low + high) // 2
            if self._dominates(middle, accuracy, bytes):
                low = middle + 1
            else:
                high = middle
        return low + 1

    def is_within(self, rank: int, accuracy: float, bytes: int) -> bool:
        """Whether a score has this rank or a better one among these, whether it is one of them or not."""
        return rank > len(self._bytes) or not self._dominates(rank - 1, accuracy, bytes)

    def _dominates(self, layer: int, accuracy: float, bytes: int) -> bool:
        sizes = self._bytes[layer]
        at = bisect_right(sizes, bytes) - 1
        return at >= 0 and (self._accuracy[layer][at], bytes) > (accuracy, sizes[at])

    def add(self, accuracy: float, bytes: int) -> None:
        """Add a score."""
        layer = self.rank(accuracy, bytes) - 1
        if layer < len(self._bytes):
            at = bisect_left(self._bytes[layer], bytes)
            if self._bytes[layer][at : at + 1] == [bytes] and self._accuracy[layer][at] == accuracy:
                return
        sizes, accuracies = [bytes], [accuracy]
        while sizes:
            if layer == len(self._bytes):
                self._insert(layer, sizes, accuracies)
                return
            start = bisect_left(self._bytes[layer], sizes[0])
            end = bisect_right(self._accuracy[layer], accuracies[-1])
            if start == 0 and end == len(self._bytes[layer]):  # all of it moves, and so does what comes behind it
                self._insert(layer, sizes, accuracies)
                return
            pushed = self._bytes[layer][start:end], self._accuracy[layer][start:end]
            self._bytes[layer][start:end], self._accuracy[layer][start:end] = sizes, accuracies
            sizes, accuracies = pushed
            layer += 1

    def _insert(self, layer: int, sizes: list[int], accuracies: list[float]) -> None:
        self._bytes.insert(layer, sizes)
        self._accuracy.insert(layer, accuracies)

    def last_within(self, share: float) -> int:
        """The largest rank that has a score, such that no more than a share of all scores have it or a better one.

        At least 1: all of rank 1 are within any share. 0 where there is no score.
        """
        counts = list(accumulate(map(len, self._bytes)))
        return max(1, bisect_right(counts, share * counts[-1])) if counts else 0
