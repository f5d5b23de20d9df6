"""New policies from known ones: level switches that keep the bytes, and crossover between neighbours on the front.

Level switches are EvoPress's (Sieberling et al. 2024, arXiv:2410.14649, section 3): one site up, another one down.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search.samplers.table import Table

Ints = npt.NDArray[np.int64]


def switches(table: Table, ladders: Sequence[Ints], parent: Ints, count: int, draw: np.random.Generator) -> Ints:
    """Policies in which one site of the parent takes a larger choice and others smaller ones, of about its bytes.

    Args:
        table: of the parent.
        ladders: of each site, the choices to switch between, by bytes (see `search.sensitivity.ladder`).
        parent: its choices' numbers, (sites,).
        count: how many.
        draw: of random numbers.

    Returns:
        int64 (<= count, sites).
    """
    found = []
    movable = [i for i, steps in enumerate(ladders) if len(steps) > 1]
    for _ in range(count if len(movable) > 1 else 0):
        child = parent.copy()
        up, down = draw.choice(movable, 2, replace=False)
        owed = _step(table, ladders[up], child, int(up), int(draw.integers(1, 4)))
        if owed <= 0:
            continue
        _repay(table, ladders[down], child, int(down), owed)
        if draw.random() < 0.3:  # the odd one leaves the size
            _step(table, ladders[down], child, int(down), -1)
        found.append(child)
    return np.array(found, np.int64).reshape(-1, len(parent))


def crossed(first: Ints, second: Ints, count: int, draw: np.random.Generator) -> Ints:
    """Policies that take each site from one of two parents, (count, sites)."""
    return np.where(draw.random((count, len(first))) < draw.uniform(0.2, 0.8, (count, 1)), first, second)


def mutated(table: Table, parent: Ints, count: int, draw: np.random.Generator) -> Ints:
    """Policies in which one to three sites of the parent take any other choice, (count, sites)."""
    children = np.tile(parent, (count, 1))
    for child in children:
        for site in draw.choice(len(parent), size=min(len(parent), int(draw.integers(1, 4))), replace=False):
            child[site] = draw.integers(len(table.sites[site].bytes))
    return children


def _step(table: Table, rungs: Ints, child: Ints, site: int, steps: int) -> int:
    """Move a site along its ladder; the bytes that it gained."""
    bytes = table.sites[site].bytes
    now = int(bytes[child[site]])
    at = int(np.searchsorted(bytes[rungs], now, side="right" if steps > 0 else "left"))
    at += steps - 1 if steps > 0 else steps
    child[site] = rungs[min(len(rungs) - 1, max(0, at))]
    return int(bytes[child[site]]) - now


def _repay(table: Table, rungs: Ints, child: Ints, site: int, owed: int) -> None:
    """Make a site smaller by at least what another one has gained, or as small as it gets."""
    bytes = table.sites[site].bytes
    wished = int(bytes[child[site]]) - owed
    at = int(np.searchsorted(bytes[rungs], wished, side="right")) - 1
    child[site] = rungs[max(0, at)]
