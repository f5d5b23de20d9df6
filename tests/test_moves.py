"""New policies from known ones: what they keep of their parents, and of their bytes."""

import numpy as np
import pytest

from search.samplers.moves import crossed, mutated, switches
from search.samplers.table import SiteTable, Table
from search.sensitivity import ladder
from tests.worlds import world

TABLE = world(2, 6).table
COSTS = [site.losses[:, 1] for site in TABLE.sites]
LADDERS = [ladder(site.bytes, cost) for site, cost in zip(TABLE.sites, COSTS, strict=True)]
CHOICES = len(TABLE.sites[0].points)


def parents(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(0, CHOICES, (count, len(TABLE.sites)))


def on_ladder(site: int, choice: int) -> bool:
    """Whether no other choice of the site is at most as large and loses at most as much."""
    bytes, cost = TABLE.sites[site].bytes, COSTS[site]
    no_worse = (bytes <= bytes[choice]) & (cost <= cost[choice])
    return not (no_worse & ((bytes < bytes[choice]) | (cost < cost[choice]))).any()


def test_a_switch_makes_one_site_larger_and_pays_with_another() -> None:
    draw, paid = np.random.default_rng(1), 0
    for parent in parents(60):
        before = parent.copy()
        children = switches(TABLE, LADDERS, parent, 4, draw)
        assert np.array_equal(parent, before)
        assert len(children) <= 4
        for child in children:
            moved = np.flatnonzero(child != parent)
            grown = [i for i in moved if TABLE.sites[i].bytes[child[i]] > TABLE.sites[i].bytes[parent[i]]]
            assert len(moved) <= 2
            assert len(grown) == 1
            assert all(on_ladder(int(i), int(child[i])) for i in moved)
            size = TABLE.bytes(np.stack([parent, child]))
            others = [i for i in moved if i not in grown]
            if size[1] <= size[0]:
                paid += 1
            else:  # the other one is as small as it gets
                for i in others:
                    assert TABLE.sites[i].bytes[child[i]] == TABLE.sites[i].bytes.min()
    assert paid > 50


def test_no_more_is_paid_than_is_owed() -> None:
    """But for the odd one, the next larger choice of the site that pays would be too large."""
    draw, least, all_paid = np.random.default_rng(2), 0, 0
    for parent in parents(100):
        for child in switches(TABLE, LADDERS, parent, 4, draw):
            size = TABLE.bytes(np.stack([parent, child]))
            shrunk = [i for i in range(6) if TABLE.sites[i].bytes[child[i]] < TABLE.sites[i].bytes[parent[i]]]
            if size[1] > size[0] or not shrunk:
                continue
            own = TABLE.sites[shrunk[0]].bytes
            larger = [b for choice, b in enumerate(own) if on_ladder(shrunk[0], choice) and b > own[child[shrunk[0]]]]
            all_paid += 1
            least += not larger or size[1] - own[child[shrunk[0]]] + min(larger) > size[0]
    assert 0.6 < least / all_paid < 0.95


def test_without_two_sites_that_can_move_nothing_is_switched() -> None:
    lone = Table((TABLE.sites[0], SiteTable("b", ({},), np.array([100]), np.array([[0.1]]))))
    ladders = [ladder(lone.sites[0].bytes, lone.sites[0].losses[:, 0]), np.array([0])]
    found = switches(lone, ladders, np.array([3, 0]), 8, np.random.default_rng(0))
    assert found.shape == (0, 2)


def test_crossover_takes_each_site_from_a_parent() -> None:
    first, second = parents(2)
    children = crossed(first, second, 400, np.random.default_rng(0))
    assert children.shape == (400, 6)
    assert ((children == first) | (children == second)).all()
    assert 0.4 < (children == first)[:, first != second].mean() < 0.6
    assert len(np.unique(children, axis=0)) > 20


def test_mutation_changes_one_to_three_sites() -> None:
    parent = parents(1)[0]
    children = mutated(TABLE, parent, 300, np.random.default_rng(0))
    changed = (children != parent).sum(axis=1)
    assert set(changed.tolist()) <= {0, 1, 2, 3}
    assert {1, 2, 3} <= set(changed.tolist())
    assert children.min() >= 0
    assert children.max() < CHOICES


@pytest.mark.parametrize("move", ["switch", "cross", "mutate"])
def test_the_same_numbers_give_the_same_children(move: str) -> None:
    first, second = parents(2)

    def made() -> list[list[int]]:
        draw = np.random.default_rng(3)
        match move:
            case "switch":
                return switches(TABLE, LADDERS, first, 5, draw).tolist()  # type: ignore[no-any-return]
            case "cross":
                return crossed(first, second, 5, draw).tolist()  # type: ignore[no-any-return]
            case _:
                return mutated(TABLE, first, 5, draw).tolist()  # type: ignore[no-any-return]

    assert made() == made()
