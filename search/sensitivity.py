"""A predicted front before the first trial: for each size, the policy of least summed predicted loss.

A dynamic programme over sites that keeps the non-dominated (bytes, error) states, as AutoRound's AutoScheme and SPDY
(Frantar & Alistarh 2022, arXiv:2201.13096, section 3) do: one pass gives the policies of all sizes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_STATES = 4096  # states kept after each site, spread evenly over log bytes; their bytes stay exact


def predicted_front(
    site_bytes: Sequence[Sequence[int] | npt.NDArray[np.int64]],
    errors: Sequence[Sequence[float] | npt.NDArray[np.float64]],
    most: int = MAX_STATES,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """All non-dominated policies, predicted.

    Args:
        site_bytes: for each site, the bytes of each of its choices.
        errors: for each site, the predicted loss of each of its choices.
        most: states that are kept after each site.

    Returns:
        Summed bytes (states,) increasing, summed errors (states,) decreasing, and the choices' indexes (states, sites).
    """
    total = np.zeros(1, np.int64)
    error = np.zeros(1, np.float64)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for own_bytes, own_errors in zip(site_bytes, errors, strict=True):
        sums = (total[:, None] + np.asarray(own_bytes, np.int64)[None, :]).ravel()
        losses = (error[:, None] + np.asarray(own_errors, np.float64)[None, :]).ravel()
        kept = _thin(sums, _undominated(sums, losses), most)
        steps.append((kept // len(own_bytes), kept % len(own_bytes)))
        total, error = sums[kept], losses[kept]
    state = np.arange(total.size)
    chosen = np.empty((total.size, len(steps)), np.int64)
    for site in range(len(steps) - 1, -1, -1):
        before, choice = steps[site]
        chosen[:, site] = choice[state]
        state = before[state]
    return total, error, chosen


def _undominated(sums: npt.NDArray[np.int64], losses: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The states that no other one is better than, by bytes; of equal ones the first."""
    order = np.argsort(sums, kind="stable")  # one sort; a second one by losses would take longer than all the rest
    sorted_losses = losses[order]
    least = np.minimum.accumulate(sorted_losses)
    fresh = order[np.concatenate(([True], sorted_losses[1:] < least[:-1]))]
    bytes = sums[fresh]
    return np.asarray(fresh[np.concatenate((bytes[1:] != bytes[:-1], [True]))])  # the last has the least loss


def _thin(sums: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most `most` of the kept states: the last (least loss) of each slice of log bytes, and the smallest."""
    if kept.size <= most:
        return kept
    logs = np.log(np.maximum(sums[kept], 1))
    slices = np.floor((logs - logs[0]) / (logs[-1] - logs[0]) * (most - 2)).astype(np.int64)
    last = np.concatenate((slices[1:] != slices[:-1], [True]))
    last[0] = True
    return kept[last]


def ladder(bytes: npt.NDArray[np.int64], losses: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The choices of a site that no other one is better than, in bytes and predicted loss, by bytes: (rungs,).

    Args:
        bytes: of each choice, (choices,).
        losses: of each choice, (choices,).
    """
    return _undominated(bytes, losses)


def within(total: npt.NDArray[np.int64], most_bytes: float) -> int:
    """Index of the state of least predicted loss of at most so many bytes: the shortest answer that a front gives.

    Args:
        total: bytes of the states, increasing; their losses decrease.
        most_bytes: of the sites' choices together.

    Raises:
        ValueError: no state is that small.
    """
    reach = int(np.searchsorted(total, most_bytes, side="right"))
    if reach == 0:
        raise ValueError(f"no policy has at most {most_bytes:,.0f} bytes; the smallest has {total[0]:,}")
    return reach - 1


def spread(total: npt.NDArray[np.int64], error: npt.NDArray[np.float64], count: int, largest: float) -> list[int]:
    """Indexes of up to `count` states of at most `largest` bytes, evenly along the predicted front.

    The way along it is measured in log bytes and in error, both scaled to 0..1, so that half of the states go to each:
    evenly in size, and densely where the loss changes fast. They come in an order in which any first few cover the
    whole range, largest first.

    Args:
        total: bytes of the states, increasing.
        error: their predicted losses, decreasing.
        count: how many are wished.
        largest: bytes; the smallest state is taken even if it is larger.
    """
    if count == 0:
        return []
    reach = max(1, int(np.searchsorted(total, largest, side="right")))
    way = _share(np.log(total[:reach])) + _share(-error[:reach])
    wished = np.linspace(0, way[-1], count) if count > 1 else way[-1:]
    at = np.minimum(np.searchsorted(way, wished * (1 - 1e-12)), reach - 1)
    width = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda i: int(format(count - 1 - i, f"0{width}b")[::-1], 2))
    return list(dict.fromkeys(int(at[i]) for i in order))


def _share(rising: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Numbers that rise, scaled to 0..1."""
    whole = rising[-1] - rising[0]
    return (rising - rising[0]) / whole if whole > 0 else np.zeros_like(rising)
