"""Codebooks by k-means, Han et al. 2016 (arXiv:1510.00149), section 3, on the line, where the best one can be computed.

Lloyd's iterations are run from the linear initialisation that the paper found best, and from the best partition at some
hundred places by dynamic programming (Wang & Song 2011, "Ckmeans.1d.dp", R Journal 3/2), which for so few different
weights is the best of all partitions. The one with less error is taken.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from compress.quantization.uniform import exponent_of
from spaces.errors import CandidateError

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
PLACES = 512  # where the dynamic programme may cut
ITERATIONS = 300
LEAST_WEIGHT = 1e-6  # of the mean weight: what plays no part would be put anywhere


def fit(
    rows: torch.Tensor, kept: torch.Tensor, bits: int, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """The values that kept weights may have, with the least squared error that is found.

    Args:
        rows: weights, (channels, n).
        kept: boolean, (channels, n); what is not kept is zero, which is no entry.
        bits: of a code, 1 to 8.
        weights: Fisher information or another weight of each squared error, (channels, n), not negative.

    Returns:
        entries, float32 (2**bits - 1,), increasing and exact in float16 times 2**exponent; exponent. No two entries
        are equal, unless there is nothing but zeros.

    Raises:
        CandidateError: a weight of an error is negative or not finite.

    Example:
        >>> rows = torch.tensor([[-1.0, 0.0, 2.0, 2.0, 3.0]])
        >>> entries, _ = fit(rows, rows != 0, 2)
        >>> entries, encode(rows, rows != 0, entries)
        (tensor([-1.,  2.,  3.]), tensor([[1, 0, 2, 2, 3]], dtype=torch.uint8))
    """
    count = (1 << bits) - 1
    chosen = rows[kept].float().cpu()
    if len(chosen) == 0:
        return torch.zeros(count), 0
    exponent = exponent_of(chosen.abs().max())
    centres = _Points.of((chosen * 2.0**-exponent).numpy(), _positive(weights, kept)).best_centres(count)
    halves = _distinct(centres.astype(np.float16), count)
    return torch.from_numpy(halves).float() * 2.0**exponent, exponent


def encode(rows: torch.Tensor, kept: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest entries, uint8 (channels, n): k for entries[k - 1], and 0 for what is not kept."""
    wide = entries.double()
    between = ((wide[1:] + wide[:-1]) / 2).float()
    codes = torch.bucketize(rows.contiguous(), between).add_(1)
    return torch.where(kept, codes, 0).to(torch.uint8)


def dequantize(codes: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """The number zero for code 0, entries[k - 1] for code k, float32."""
    return torch.cat([entries.new_zeros(1), entries])[codes.long()]


def _positive(weights: torch.Tensor | None, kept: torch.Tensor) -> Numbers | None:
    """The weights of kept errors around 1, none of them zero; None where they say nothing."""
    if weights is None:
        return None
    chosen = weights[kept].double().cpu()
    if not bool((torch.isfinite(chosen) & (chosen >= 0)).all()):
        raise CandidateError("the Fisher information of a weight is negative or not finite: take `fisher` out")
    mean = float(chosen.mean())
    if mean == 0:
        return None
    around: Numbers = (chosen / mean).clamp(min=LEAST_WEIGHT).numpy()
    return around


@dataclass(frozen=True)
class _Points:
    """Numbers on the line in order, with sums over those before each place between them.

    Attributes:
        values: (points,).
        mass, first, second: sums of weights w, of w x and of w x^2 over the points before a place, (points + 1,).
    """

    values: npt.NDArray[np.float32]
    mass: Numbers
    first: Numbers
    second: Numbers

    @staticmethod
    def of(values: npt.NDArray[np.float32], weights: Numbers | None) -> "_Points":
        """Sort numbers and add them up."""
        if weights is None:
            values = np.sort(values)
            wide = weighted = values.astype(np.float64)
            mass = np.arange(len(values) + 1, dtype=np.float64)
        else:
            order = np.argsort(values, kind="stable")
            values, weights = values[order], weights[order]
            wide = values.astype(np.float64)
            weighted = weights * wide
            mass = np.cumsum(np.concatenate([[0.0], weights]))
        first, second = (np.cumsum(np.concatenate([[0.0], numbers])) for numbers in (weighted, weighted * wide))
        return _Points(values, mass, first, second)

    def best_centres(self, count: int) -> Numbers:
        """At most `count` centres of clusters, increasing."""
        places = self._places()
        if len(places) - 1 <= count:  # no more different numbers than centres
            return self._centres(places)
        linear = np.linspace(self.values[0], self.values[-1], count)  # Han et al. 2016, section 3.2
        starts = [self._between(linear), self._cuts(places, count)[1:-1]]
        found = [self._lloyd(np.concatenate([[0], start, [len(self.values)]])) for start in starts]
        return self._centres(min(found, key=self._error))

    def _places(self) -> Places:
        """Where clusters may begin or end: between different numbers, or at some hundred of those places."""
        inside = np.flatnonzero(np.diff(self.values)) + 1
        if len(inside) > PLACES - 1:
            # half of them after equal masses, half at equal distances
            masses = np.searchsorted(self.mass, np.linspace(0, self.mass[-1], PLACES // 2 + 1)[1:-1])
            evenly = np.linspace(self.values[0], self.values[-1], PLACES // 2 + 1)[1:-1]
            wanted = np.concatenate([masses, np.searchsorted(self.values, evenly.astype(np.float32))])
            inside = np.unique(inside[np.searchsorted(inside, wanted).clip(max=len(inside) - 1)])
        return np.concatenate([[0], inside, [len(self.values)]])

    def _cost(self, start: Places, end: Places) -> Numbers:
        """Squared error of the points from one place to another around their mean."""
        mass, first = self.mass[end] - self.mass[start], self.first[end] - self.first[start]
        second = self.second[end] - self.second[start]
        around: Numbers = second - np.divide(first**2, mass, out=np.zeros_like(mass), where=mass > 0)
        return around.clip(min=0.0)

    def _between(self, centres: Numbers) -> Places:
        """Where the middles between centres lie."""
        return np.searchsorted(self.values, ((centres[1:] + centres[:-1]) / 2).astype(np.float32))

    def _error(self, cuts: Places) -> float:
        return float(self._cost(cuts[:-1], cuts[1:]).sum())

    def _centres(self, cuts: Places) -> Numbers:
        cuts = np.unique(cuts)
        return np.diff(self.first[cuts]) / np.diff(self.mass[cuts])

    def _cuts(self, places: Places, count: int) -> Places:
        """The best partition into `count` clusters that begin and end at these places."""
        costs = self._cost(places[:, None], places[None, :])  # (from, to)
        costs[np.tril_indices(len(places))] = np.inf
        least = costs[0]  # of one cluster from the first place to each
        begins = []
        for _ in range(count - 1):
            total = least[:, None] + costs
            begins.append(total.argmin(axis=0))  # Wang & Song 2011, eq. 1
            least = total[begins[-1], np.arange(len(places))]
        cuts = [len(places) - 1]
        for begin in reversed(begins):
            cuts.append(int(begin[cuts[-1]]))
        return places[[0, *reversed(cuts)]]

    def _lloyd(self, cuts: Places) -> Places:
        """Move cuts to the middle between centres until none moves; a cluster without a point is given up."""
        for _ in range(ITERATIONS):
            moved = np.concatenate([[0], self._between(self._centres(cuts)), [len(self.values)]])
            if np.array_equal(moved, cuts):
                break
            cuts = moved
        return cuts


def _distinct(halves: npt.NDArray[np.float16], count: int) -> npt.NDArray[np.float16]:
    """Different numbers in order, filled up with the ones next to that furthest from zero, on its side of zero."""
    found = {float(half) for half in halves}
    if not any(found):
        return np.zeros(count, np.float16)
    half = np.float16(max(found, key=abs))
    towards = np.float16(0) if abs(half) >= 1 else half * np.float16(np.inf)  # far from zero and from the largest
    while len(found) < count:
        half = np.nextafter(half, towards)
        found.add(float(half))
    return np.array(sorted(found), np.float16)
