"""The policies that are proposed before anything was told: uniform ones, and the predicted front."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.samplers.features import Features
from search.samplers.loss_model import unlearned
from search.samplers.plan import front_choices
from search.samplers.table import Table


def start_points(tables: Sequence[Table], uniform: int, predicted: int) -> list[Mapping[str, Any]]:
    """Parameters of the first trials, none twice.

    Args:
        tables: the settings; the first one is the whole model.
        uniform: at most so many policies that take the same choice at each site, from the largest to the smallest.
        predicted: about so many policies of the predicted fronts, shared by the tables.
    """
    found: list[Mapping[str, Any]] = []
    if not tables:
        return found
    counts = {len(site.points) for site in tables[0].sites}
    if len(counts) == 1 and uniform:
        count = counts.pop()
        order = sorted(range(count), key=lambda i: -sum(int(site.bytes[i]) for site in tables[0].sites))
        taken = np.unique(np.linspace(0, count - 1, min(uniform, count)).round().astype(int))
        found += [tables[0].params([order[i]] * len(tables[0].sites)) for i in taken]
    model = unlearned(Features(tables))
    for number, table in enumerate(tables):
        wished = predicted // len(tables) + (number < predicted % len(tables))
        choices = front_choices(table, model.costs(number, model.weights()), table.smallest, table.largest)
        taken = np.unique(np.linspace(0, len(choices) - 1, wished).round().astype(int))
        found += [table.params(choices[i]) for i in taken]
    return [point for i, point in enumerate(found) if point not in found[:i]]
