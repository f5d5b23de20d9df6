"""EvoPress, Sieberling et al. 2024 (arXiv:2410.14649, algorithm 1): a (1 + lambda) evolution by level switches.

Offspring trade levels between sites within a budget of bytes and are selected in stages on growing calibration data by
their KL to the float model's outputs; the last stage includes the parent. The paper has one budget; here eight take
turns, spread over log bytes. Each generation's survivor is one proposal; what the stages look at is counted by samples:
all that is done for a candidate on a share of the calibration data costs that share of what it costs in full.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.searching.recorded import Record, Recorded
from benchmarks.searching.searcher import Offer, Told
from benchmarks.searching.setting import Setting
from benchmarks.searching.spdy import budgets, turns
from objectives.evaluation import seed_of
from spaces.policy import Policy

BUDGETS = 8
OFFSPRING = 16  # lambda; the paper has 128 at 150 generations for its one budget
STAGES = ((1 / 16, 4), (1 / 4, 1))  # share of the calibration data, survivors; then all of the data, with the parent
INITIAL = 16  # random candidates of which a budget's first parent is the best, on the last of these shares
SWITCHES = 3  # at most so many levels up at once
CHANGES = 10  # and at most so many changes in all
LEAST_GAIN = 0.8  # of the bytes that go must come back elsewhere
ATTEMPTS = 100  # to make an offspring

Levels = tuple[int, ...]


@dataclass
class _Parent:
    """A budget's best so far."""

    budget: float
    levels: Levels | None = None
    loss: float = np.inf


class EvoPress:
    """An evolution for several budgets in turn.

    Args:
        setting: what is searched.
        table: answers what a policy's losses on calibration samples are.
        seed: of its random numbers.
        start: policies evaluated already, the best of which are the first parents where they fit.
    """

    def __init__(self, setting: Setting, table: Recorded, seed: int, start: Sequence[Policy] = ()) -> None:
        self._setting, self._table, self._start = setting, table, start
        self._random = random.Random(seed_of(seed, "evopress"))  # noqa: S311 - not for secrets
        self._sizes = [[int(size) for size in one.bytes] for one in setting.levels]
        self._samples = setting.prepared.loaded.splits["calibration"].samples
        self._parents = [_Parent(one) for one in budgets(setting, BUDGETS)]
        self._known: set[Levels] = set()  # whose loss on all calibration data is known
        self._spent = self._seconds = 0.0
        self._barren = 0  # generations without offspring, one after the other

    def propose(self, number: int) -> Offer | None:
        """The survivor of the next generation of the next budget; None when no budget has offspring any more."""
        parent = self._parents[turns(BUDGETS)[number % BUDGETS]]
        self._spent = self._seconds = 0.0
        if parent.levels is None:
            self._begin(parent)
        else:
            self._generation(parent, parent.levels)
        self._barren = 0 if self._spent or number < BUDGETS else self._barren + 1
        if parent.levels is None or self._barren == BUDGETS:
            return None
        return Offer(self._setting.policy(parent.levels), spent=self._spent, seconds=self._seconds, counted=True)

    def again(self, number: int, policy: Policy, note: Mapping[str, Any]) -> Offer | None:
        """The same, found again."""
        return self.propose(number)

    def tell(self, number: int, told: Told) -> None:
        """Validation teaches it nothing: calibration data decide."""

    def _begin(self, parent: _Parent) -> None:
        """The first parent: the best of the start that fits, else of random ones that just fit."""
        fitting = [
            levels for one in self._start if (levels := self._levels(one)) and self._bytes(levels) <= parent.budget
        ]
        if fitting:
            records = [self._record(one) for one in fitting]
            best = min(range(len(fitting)), key=lambda i: records[i].loss)
            parent.levels, parent.loss = fitting[best], records[best].loss
            self._known.add(fitting[best])
            return
        share, _ = STAGES[-1]
        candidates = list(dict.fromkeys(self._random_levels(parent.budget) for _ in range(INITIAL)))
        parent.levels = self._survivors(candidates, share, 1)[0]
        parent.loss = self._full(parent.levels)

    def _generation(self, parent: _Parent, levels: Levels) -> None:
        """One generation: lambda offspring, selected in stages, the last one with the parent (elitist)."""
        offspring = list(
            dict.fromkeys(one for _ in range(OFFSPRING) if (one := self._offspring(levels, parent.budget)))
        )
        for share, survivors in STAGES:
            offspring = self._survivors(offspring, share, survivors)
        for one in offspring:
            loss = self._full(one)
            if loss < parent.loss:
                parent.levels, parent.loss = one, loss

    def _offspring(self, parent: Levels, budget: float) -> Levels | None:
        """Some levels up, then others down until the budget holds, neither too many nor for too little."""
        before = sum(own[at] for own, at in zip(self._sizes, parent, strict=True))
        for _ in range(ATTEMPTS):
            levels, changes = list(parent), min(self._random.randint(1, SWITCHES), self._random.randint(1, SWITCHES))
            for _ in range(changes):
                self._step(levels, 1)
            raised = sum(own[at] for own, at in zip(self._sizes, levels, strict=True))
            now = raised
            while now > budget and self._step(levels, -1):
                now, changes = sum(own[at] for own, at in zip(self._sizes, levels, strict=True)), changes + 1
            gained = (raised - before) / max(1, raised - now)
            if now <= budget and changes <= CHANGES and gained >= LEAST_GAIN and tuple(levels) != parent:
                return tuple(levels)
        return None

    def _step(self, levels: list[int], step: int) -> bool:
        """One level up or down at a random site that has it."""
        able = [i for i, (own, at) in enumerate(zip(self._sizes, levels, strict=True)) if 0 <= at + step < len(own)]
        if able:
            levels[self._random.choice(able)] += step
        return bool(able)

    def _random_levels(self, budget: float) -> Levels:
        """All sites equally far up their levels, as high as the budget just does not allow, then down at random."""
        top = max(len(own) for own in self._sizes) - 1
        levels = [0] * len(self._sizes)
        for height in range(top + 1):
            levels = [round(height / max(1, top) * (len(own) - 1)) for own in self._sizes]
            if self._bytes(levels) >= budget:
                break
        while self._bytes(levels) > budget and self._step(levels, -1):
            pass
        return tuple(levels)

    def _survivors(self, candidates: Sequence[Levels], share: float, count: int) -> list[Levels]:
        """The best candidates on a random part of the calibration data, the same part for all."""
        part = self._random.sample(range(self._samples), max(1, round(share * self._samples)))
        records = [self._record(one) for one in candidates]
        self._spent += sum(one.forwards for one in records) * len(part) / self._samples
        self._seconds += sum(one.seconds for one in records) * len(part) / self._samples
        losses = [float(one.outcomes["calibration"].losses[part].mean(dtype=np.float64)) for one in records]
        order = sorted(range(len(candidates)), key=lambda i: losses[i])
        return [candidates[i] for i in order[:count]]

    def _full(self, levels: Levels) -> float:
        """The loss on all calibration data, which is known the second time."""
        record = self._record(levels)
        if levels not in self._known:
            self._known.add(levels)
            self._spent += record.forwards
            self._seconds += record.seconds
        return record.loss

    def _record(self, levels: Levels) -> Record:
        return self._table.evaluate(self._setting.policy(levels), ["calibration"])

    def _bytes(self, levels: Sequence[int]) -> int:
        return sum(own[at] for own, at in zip(self._sizes, levels, strict=True))

    def _levels(self, policy: Policy) -> Levels | None:
        """A policy's levels; None where one of its choices is beaten by another one."""
        found = []
        for one in self._setting.levels:
            choice = policy.sites[one.name]
            if choice not in one.choices:
                return None
            found.append(one.choices.index(choice))
        return tuple(found)
