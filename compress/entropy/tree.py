"""Adaptive probabilities of codes: a Polya tree, Lavine 1992 (doi:10.1214/aos/1176348767), in batches.

A code is told by yes-or-no decisions: zero, else its sign, then its magnitude less one from the highest bit to the
lowest. A decision's probability is its count so far plus a prior, as Krichevsky and Trofimov 1981 estimate it
(doi:10.1109/TIT.1981.1056331), so neighbouring magnitudes learn together and a rare one costs little. Only
`code_length`, the encoder's own affair, uses more than the four basic operations on pairs of numbers, which IEEE 754
fixes to the bit: an encoder and a decoder agree whatever machines they run on.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Leaves = npt.NDArray[np.int32]
Codes = npt.NDArray[np.integer[Any]]

HALF_LOG_2_PI = 0.9189385332046727
LOG_2 = 0.6931471805599453
LEAST = 1e-9  # observations that the prior of a way is worth at least, where its logarithm is taken
TINY = 1e-300  # stands for a prior of 0 where it divides


def depth(low: int, high: int) -> int:
    """Bits of the largest magnitude less one; a tree has a leaf for zero and 2 ** depth for each sign."""
    return (max(high, -low, 1) - 1).bit_length()


def leaves(codes: Codes, bits: int) -> Leaves:
    """Codes as leaves of a tree of this depth, from left to right: 0, then 1, 2, ..., then -1, -2, ..."""
    wide = codes.astype(np.int32)
    return np.where(wide < 0, (1 << bits) - wide, wide)


def codes(leaves: Leaves, bits: int) -> Leaves:
    """The inverse of `leaves`."""
    return np.where(leaves > 1 << bits, (1 << bits) - leaves, leaves)


def mirrored(masses: Floats) -> Floats:
    """The mean of distributions (..., leaves) and of the same with the signs swapped."""
    ones = (masses.shape[-1] - 1) // 2
    mean = (masses[..., 1 : 1 + ones] + masses[..., 1 + ones :]) / 2
    return np.concatenate([masses[..., :1], mean, mean], axis=-1)


def probabilities(counts: Floats, prior: Floats, strength: float) -> Floats:
    """The distributions that tables of counts suggest.

    Args:
        counts: (tables, leaves), how often each code was seen.
        prior: (tables, leaves) or (1, leaves), masses to start from, in any unit.
        strength: how many observations of each decision the prior is worth.

    Returns:
        (tables, leaves); a row adds up to 1 but for rounding.
    """
    seen = _decisions(counts)
    share = (seen + strength * _shares(_decisions(prior))) / (_total(seen) + strength)
    zero, mass = share[:, 0, :1], share[:, 0, 1:]
    first = 1
    while first < share.shape[1]:  # a level of the tree, whose decisions are as many as there are masses above it
        level = share[:, first : first + mass.shape[1]]
        first += mass.shape[1]
        mass = (mass[:, :, None] * level).reshape(len(counts), -1)
    return np.concatenate([zero, mass], axis=1)


def code_length(counts: Floats, prior: Floats, strength: float) -> float:
    """Bits that it takes to code what was counted, in any order, when the tables learn after every code.

    Args:
        counts: as for `probabilities`.
        prior: as for `probabilities`.
        strength: as for `probabilities`.
    """
    seen = _decisions(counts)
    made = seen.any(axis=2)
    seen, share = seen[made], np.broadcast_to(_shares(_decisions(prior)), seen.shape)[made]
    share = np.maximum(strength * share, LEAST)
    ways = _log_gamma(share + seen) - _log_gamma(share)
    nats = _log_gamma(_total(share) + _total(seen)) - _log_gamma(_total(share)) - ways
    return nats / LOG_2


def _decisions(masses: Floats) -> Floats:
    """Masses of both ways at each decision, level by level from "zero or not": (tables, leaves - 1, 2)."""
    levels, below = [], masses[:, 1:]
    while below.shape[1] > 1:
        levels.append(below.reshape(len(masses), -1, 2))
        below = below[:, 0::2] + below[:, 1::2]
    levels.append(np.concatenate([masses[:, :1], below], axis=1)[:, None])
    return np.concatenate(levels[::-1], axis=1)


def _shares(pairs: Floats) -> Floats:
    return pairs / np.maximum(_total(pairs), TINY)


def _total(pairs: Floats) -> Floats:
    return pairs[..., :1] + pairs[..., 1:]


def _log_gamma(values: Floats) -> float:
    """The sum of the logarithms of the gamma function, by Stirling's series three above each value."""
    above = values + 3
    series = (above - 0.5) * np.log(above) - above + HALF_LOG_2_PI + 1 / (12 * above)
    return float((series - np.log(values * (values + 1) * (values + 2))).sum())
