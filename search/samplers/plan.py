"""What the sampler makes of all trials told so far: a pool of policies, and what each is predicted to be worth."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from search.pareto import Box
from search.samplers.curve import Curve, curve
from search.samplers.features import Features
from search.samplers.gain import NODES, WEIGHTS, Stairs, gains
from search.samplers.history import Look, Place, Scale, Seen
from search.samplers.loss_model import LossModel, learn, unlearned
from search.samplers.moves import crossed, mutated, switches
from search.samplers.table import Table
from search.sensitivity import ladder, predicted_front

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FEWEST = 4  # trials that the model learns from
MOST = 256
SAMPLES = 2  # of the model, beside the most probable one, whose predicted fronts are looked at
WORK = 2_000_000  # sums that a dynamic programme makes
STATES = 96  # policies that are taken from a predicted front
PARENTS = 24
CHILDREN = 4  # of each parent, by each kind of move


@dataclass(frozen=True, eq=False)
class Pool:
    """Policies of one table with what they are predicted to be worth.

    Attributes:
        choices: (policies, sites).
        bytes: (policies,).
        accuracies: at the nodes of the quadrature over the predicted log loss, (policies, nodes).
    """

    table: int
    choices: Ints
    bytes: Floats
    accuracies: Floats


@dataclass(frozen=True, eq=False)
class Plan:
    """What is proposed from until more trials are told.

    Attributes:
        model: predicts losses.
        scale: how log losses are taken from trials.
        worth: accuracy at a log loss.
        boxes: where hypervolume counts.
        pools: policies to choose from.
    """

    model: LossModel
    scale: Scale
    worth: Curve
    boxes: tuple[Box, ...]
    pools: tuple[Pool, ...]

    def front(self, seen: Look) -> Stairs:
        """What is dominated already: by what was told, as its measured loss says, and by what runs, as predicted."""
        points = np.concatenate([self._measured(seen.front), self._expected(seen.running)])
        known = np.isfinite(points[:, 1])
        return Stairs.of(points[known, 0], points[known, 1])

    def _measured(self, told: Sequence[Seen]) -> Floats:
        """Bytes of told trials and what their losses are worth, (trials, 2); each is worked out once."""
        new = [one for one in told if one.number not in self._told]
        worth = self.worth(self.scale.logs(new))
        self._told.update({one.number: (one.bytes, value) for one, value in zip(new, worth.tolist(), strict=True)})
        return np.array([self._told[one.number] for one in told]).reshape(-1, 2)

    def _expected(self, running: Sequence[Seen]) -> Floats:
        """Bytes and predicted accuracy of trials that run, (trials, 2); each is worked out once."""
        running = [one for one in running if one.table >= 0]
        new = [one for one in running if one.place not in self._running]
        for table in {one.table for one in new}:
            own = [one for one in new if one.table == table]
            numbers = np.stack([one.choices for one in own])
            worth = self.worth(self.model.mean(table, numbers))
            sizes = self.model.features.tables[table].bytes(numbers)
            found = zip(sizes.tolist(), worth.tolist(), strict=True)
            self._running.update(zip((one.place for one in own), found, strict=True))
        return np.array([self._running[one.place] for one in running]).reshape(-1, 2)

    @cached_property
    def _told(self) -> dict[int, tuple[float, float]]:
        return {}

    @cached_property
    def _running(self) -> dict[Place, tuple[float, float]]:
        return {}

    def best(self, front: Stairs, asked: Container[Place]) -> tuple[int, Ints] | None:
        """The policy that is expected to add most hypervolume to a front, and was not asked yet; its table first."""
        best, found = 0.0, None
        for pool in self.pools:
            expected = gains(front, pool.bytes, pool.accuracies, self.boxes) @ WEIGHTS
            for i in np.argsort(-expected, kind="stable"):
                if expected[i] <= best:
                    break
                if (pool.table, pool.choices[i].tobytes()) not in asked:
                    best, found = float(expected[i]), (pool.table, pool.choices[i])
                    break
        return found


def make_plan(
    features: Features, told: Sequence[Seen], boxes: tuple[Box, ...], best: float | None, draw: np.random.Generator
) -> Plan:
    """Learn from trials, and gather policies.

    Args:
        features: of the tables.
        told: trials, in the order of their numbers.
        boxes: where hypervolume counts.
        best: accuracy of the float model, if known.
        draw: of random numbers.
    """
    complete = [one for one in told if one.complete]
    scale = Scale.of(complete)
    logs = scale.logs(complete)
    known = [i for i, one in enumerate(complete) if one.table >= 0 and np.isfinite(logs[i])]
    kept = _nearest([complete[i] for i in known], logs[known])
    if len(kept) < FEWEST:
        model = unlearned(features)
    else:
        chosen = [known[i] for i in kept]
        model = learn(features, [(complete[i].table, complete[i].choices) for i in chosen], logs[chosen])
    full = [i for i, one in enumerate(complete) if not one.stopped and np.isfinite(logs[i])]
    last = max((len(complete[i].losses) for i in full), default=0)
    trained = [i for i in full if len(complete[i].losses) == last]
    base = trained if len(trained) >= 2 * FEWEST else full
    if base:
        worth = curve(logs[base], np.array([complete[i].accuracy for i in base]), best)
    else:
        worth = Curve(np.array([-10.0, 0.0]), np.array([boxes[0].best, boxes[0].worst]))
    parents = _parents(
        [complete[i] for i in full if complete[i].table >= 0], logs[[i for i in full if complete[i].table >= 0]]
    )
    pools = []
    for number, table in enumerate(features.tables):
        own = [one for one in parents if one.table == number]
        choices = _gather(table, number, model, own, boxes, len(features.tables), draw)
        mean, spread = model.predict(number, choices)
        nodes = worth(mean[:, None] + spread[:, None] * NODES)  # (policies, nodes)
        pools.append(Pool(number, choices, table.bytes(choices).astype(np.float64), nodes))
    top = float(worth.accuracies.max())  # what is above it is luck
    return Plan(model, scale, worth, tuple(replace(box, best=min(box.best, top)) for box in boxes), tuple(pools))


def _nearest(trials: Sequence[Seen], logs: Floats) -> list[int]:
    """The trials to learn from: those nearest to the front of bytes and log loss; in the order of their numbers."""
    if len(trials) <= MOST:
        return list(range(len(trials)))
    lacks = _lacks(np.array([one.bytes for one in trials]), logs)
    return sorted(np.argsort(lacks, kind="stable")[:MOST].tolist())


def _lacks(bytes: Floats, logs: Floats) -> Floats:
    """By how much each log loss is above the least one at no more bytes."""
    order = np.lexsort((logs, bytes))
    lacks = np.empty(len(bytes))
    lacks[order] = logs[order] - np.minimum.accumulate(logs[order])
    return lacks


def _parents(trials: Sequence[Seen], logs: Floats) -> list[Seen]:
    """Policies near the front of bytes and log loss, by bytes."""
    if not trials:
        return []
    bytes = np.array([one.bytes for one in trials])
    nearest = np.argsort(_lacks(bytes, logs), kind="stable")[:PARENTS]
    return [trials[i] for i in sorted(nearest.tolist(), key=lambda i: (bytes[i], trials[i].number))]


def _gather(
    table: Table,
    number: int,
    model: LossModel,
    parents: Sequence[Seen],
    boxes: tuple[Box, ...],
    tables: int,
    draw: np.random.Generator,
) -> Ints:
    """Policies of a table that may be worth a trial, (policies, sites)."""
    low, high = min(box.smallest for box in boxes), max(box.largest for box in boxes)
    costs = model.costs(number, model.weights())
    ladders = [ladder(site.bytes, cost) for site, cost in zip(table.sites, costs, strict=True)]
    found = [front_choices(table, costs, low, high, max(1, tables // 2))]
    for _ in range(SAMPLES if tables == 1 or draw.random() < 2 / tables else 0):
        found.append(front_choices(table, model.costs(number, model.weights(draw)), low, high, tables))
    for one, after in zip(parents, [*parents[1:], None], strict=False):
        found.append(switches(table, ladders, one.choices, CHILDREN, draw))
        found.append(mutated(table, one.choices, CHILDREN // 2, draw))
        if after is not None:
            found.append(crossed(one.choices, after.choices, CHILDREN // 2, draw))
    every = np.concatenate(found)
    _, first = np.unique(every, axis=0, return_index=True)
    return np.asarray(every[np.sort(first)])


def front_choices(table: Table, costs: Sequence[Floats], low: float, high: float, share: int = 1) -> Ints:
    """Policies of the predicted front of a table between two sizes, (<= STATES, sites), evenly over log bytes."""
    ladders = [ladder(site.bytes, cost) for site, cost in zip(table.sites, costs, strict=True)]
    widest = max(len(one) for one in ladders)
    states = max(64, min(1024, WORK // (widest * len(ladders) * share)))
    total, _, chosen = predicted_front(
        [site.bytes[one] for site, one in zip(table.sites, ladders, strict=True)],
        [cost[one] for cost, one in zip(costs, ladders, strict=True)],
        states,
    )
    files = total + table.rest
    inside = np.flatnonzero((files >= low * (1 - 1e-9)) & (files <= high))
    if inside.size == 0:
        inside = np.array([int(np.argmin(np.abs(np.log(files) - np.log(low))))])
    logs = np.log(files[inside])
    wished = np.linspace(logs[0], logs[-1], STATES)
    states_taken = np.unique(inside[np.clip(np.searchsorted(logs, wished), 0, len(inside) - 1)])
    return np.stack([one[chosen[states_taken, i]] for i, one in enumerate(ladders)], axis=1)
