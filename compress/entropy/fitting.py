"""Which contexts an encoder takes for an array: those under which it is shortest, by the length that counts promise.

That is minimum description length (Rissanen 1978, doi:10.1016/0005-1098(78)90005-5): classes and groups have a price.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from compress.entropy import tree
from compress.entropy.contexts import LARGEST, Classes, Contexts, Near
from compress.entropy.learning import CLASSES, Prior, Tables
from compress.entropy.tree import Codes, Floats

PRIOR_BITS, GROUP_BITS = 8.0, 8.0  # that saying them takes
KERNELS = ((3, 3), (5, 5), (7, 7), (2, 2), (1, 3), (1, 5), (1, 7), (1, 8))  # height, width
PATTERNS = (4, 8, 16)  # columns
GROUP = 8  # columns whose sizes are seen together where there is no kernel
SAMPLE = 1 << 16  # weights by which contexts are compared, at most
CAUTION = 4.0  # codes that the mean of all is worth against a row's own, for codes as spread as their mean is large


@dataclass(frozen=True)
class Model:
    """All that a decoder must know before it can decode an array."""

    prior: Prior
    contexts: Contexts


def fit(codes: Codes, low: int, high: int) -> Model | None:
    """The model under which an array is about shortest; None where none is shorter than evenly likely codes.

    Args:
        codes: (channels, n), not all 0, within low to high.
        low: the smallest code there may be.
        high: the largest code there may be.
    """
    prior = Prior.of(codes, low, high)
    every = -(-codes.size // SAMPLE)  # row is looked at, one of so many
    plain = Contexts(prior.expected, np.zeros(len(codes), np.int16), np.zeros(codes.shape[1], np.int16))
    best, bits = plain, _bits(codes, prior, plain, every)
    for offers in (_scales, _shapes, _sizes, _patterns):
        for contexts in offers(codes, plain, best):
            if (length := _bits(codes, prior, contexts, every)) < bits:
                best, bits = contexts, length
    evenly = codes[::every].size * float(np.log2(high - low + 1))
    return Model(prior, best) if bits + PRIOR_BITS < evenly else None


def _scales(codes: Codes, plain: Contexts, best: Contexts) -> Iterator[Contexts]:
    """Classes for rows, columns and both."""
    sizes = np.abs(codes.astype(np.float32))
    rows = _classes(sizes, 1)
    columns = _classes(sizes, 0)
    yield replace(plain, rows=rows)
    yield replace(plain, columns=columns)
    rows = _classes(sizes / 2.0 ** (columns / 2), 1)
    yield replace(plain, rows=rows, columns=columns)


def _classes(sizes: Floats, axis: int) -> Classes:
    """How many factors of sqrt(2) the means along an axis differ from the mean of all, fewer where it may be chance."""
    mean = float(sizes.mean(dtype=np.float64))
    spread = float(np.square(sizes, dtype=np.float64).mean()) / mean**2 - 1  # squared coefficient of variation
    trust = CAUTION * max(spread, 0.05)
    own = (sizes.sum(axis=axis, dtype=np.float64) + trust * mean) / (sizes.shape[axis] + trust)
    classes: Classes = np.round(2 * np.log2(own / mean)).clip(-LARGEST, LARGEST).astype(np.int16)
    return classes


def _shapes(codes: Codes, plain: Contexts, best: Contexts) -> Iterator[Contexts]:
    """The signs of neighbours in kernels of each shape."""
    for height, width in KERNELS:
        if codes.shape[1] % (height * width) == 0:
            yield replace(best, near=Near.SIGN, height=height, width=width)


def _sizes(codes: Codes, plain: Contexts, best: Contexts) -> Iterator[Contexts]:
    """The sizes of the codes in a group, too; and groups without classes of rows and columns."""
    if best.near is Near.NOTHING:
        if codes.shape[1] % GROUP == 0:
            yield replace(best, near=Near.SIZE, width=GROUP)
        return
    yield replace(best, near=Near.SIGN_AND_SIZE)
    if best.rows.any() or best.columns.any():
        yield replace(best, near=Near.SIGN_AND_SIZE, rows=plain.rows, columns=plain.columns)
        yield replace(best, rows=plain.rows)
        yield replace(best, columns=plain.columns)


def _patterns(codes: Codes, plain: Contexts, best: Contexts) -> Iterator[Contexts]:
    """Patterns that leave some of so many consecutive columns zero, all over the array."""
    for width in PATTERNS:
        if codes.shape[1] % width == 0 and np.count_nonzero(codes.reshape(-1, width), axis=1).max() < width:
            yield replace(plain, near=Near.PATTERN, height=1, width=width)


def _bits(codes: Codes, prior: Prior, contexts: Contexts, every: int) -> float:
    """About how many bits one of so many rows of an array takes, with its share of what stands before them."""
    sample = np.ascontiguousarray(codes[::every])
    seen, learned = replace(contexts, rows=contexts.rows[::every]), Tables(prior, contexts)
    for part, tables, mirror in seen.walk(sample):
        learned.count(tables.ravel(), tree.leaves((part * np.where(mirror, -1, 1)).ravel(), prior.bits))
    ahead = _class_bits(contexts.rows) + _class_bits(contexts.columns) + GROUP_BITS * (contexts.near != Near.NOTHING)
    return learned.code_length() + ahead * len(sample) / len(codes)


def _class_bits(classes: Classes) -> float:
    if not classes.any():
        return 0.0
    plain = Contexts(1.0, np.zeros(1, np.int16), np.zeros(len(classes), np.int16))
    learned = Tables(CLASSES, plain)
    learned.count(np.zeros(len(classes), np.int16), tree.leaves(classes, CLASSES.bits))
    return learned.code_length()
