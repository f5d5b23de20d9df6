"""SPDY, Frantar & Alistarh 2022 (arXiv:2201.13096): the coefficients of a dynamic programme, found by local search.

Each proposal solves the programme for a budget of bytes with layer errors that are weighted by one coefficient a site,
and is judged by its loss on calibration data. The paper has one budget; here eight take turns, spread over log bytes,
each with coefficients of its own, and every third proposal fills the widest gap between sizes with the coefficients of
the budgets beside it, as whoever wants a whole front would do. What is best for its budget so far is validated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.searching.recorded import Recorded
from benchmarks.searching.searcher import Offer, Told
from benchmarks.searching.setting import Setting, SiteLevels
from objectives.evaluation import seed_of
from spaces.policy import Policy

BUDGETS = 8
BUCKETS = 10_000  # of a budget, as in the paper
LOWEST = 0.01  # a coefficient; the highest is 1
DRAWS = 12  # solutions from random coefficients a budget, 96 in all: the paper has 100 for its one budget
RESAMPLED = 0.1  # share of the coefficients that a step of local search draws anew
PATIENCE = 100  # steps in vain before one coefficient fewer is drawn anew
REDRAWN = 20  # times, where coefficients give a solution that was looked at before
FILL = 3  # each so many proposals, one fills a gap

Floats = NDArray[np.float64]


@dataclass
class _Budget:
    """One budget's search: bytes of the sites, the best coefficients so far, and how far it is."""

    bytes: float
    resampled: int
    coefficients: Floats
    loss: float = np.inf
    drawn: int = 0
    vain: int = 0


class Spdy:
    """A coefficient search for several budgets in turn.

    Args:
        setting: what is searched.
        table: answers what a policy's loss on calibration data is.
        seed: of its random numbers.
    """

    def __init__(self, setting: Setting, table: Recorded, seed: int) -> None:
        self._setting, self._table = setting, table
        self._random = np.random.default_rng(seed_of(seed, "spdy"))
        ones, sites = np.ones(len(setting.levels)), len(setting.levels)
        self._budgets = [_Budget(one, max(1, int(RESAMPLED * sites)), ones) for one in budgets(setting, BUDGETS)]
        self._turn = 0
        self._known: set[tuple[int, ...]] = set()
        self._sizes: list[float] = []  # bytes of the sites of what was validated
        self._full: set[tuple[float, float]] = set()  # gaps in which there is no other solution

    def propose(self, number: int) -> Offer:
        """The next solution, its loss on calibration data known."""
        if number >= BUDGETS and number % FILL == 0 and (filling := self._fill()) is not None:
            return filling
        budget = self._budgets[turns(BUDGETS)[self._turn % BUDGETS]]
        self._turn += 1
        coefficients, chosen = self._draw(budget)
        offer, loss = self._look(chosen)
        better = loss < budget.loss
        budget.drawn += 1
        if better:
            budget.coefficients, budget.loss, budget.vain = coefficients, loss, 0
            self._sizes.append(self._bytes(chosen))
        elif budget.drawn > DRAWS:
            budget.vain += 1
            if budget.vain >= PATIENCE:
                budget.resampled, budget.vain = max(1, budget.resampled - 1), 0
        return replace(offer, validated=better)

    def again(self, number: int, policy: Policy, note: Mapping[str, Any]) -> Offer:
        """The same, found again."""
        return self.propose(number)

    def tell(self, number: int, told: Told) -> None:
        """Validation teaches it nothing: calibration data decide."""

    def _draw(self, budget: _Budget) -> tuple[Floats, tuple[int, ...]]:
        """Coefficients and their solution; one that was not looked at before, where some draws find one."""
        for _ in range(REDRAWN):
            coefficients = self._coefficients(budget)
            chosen = solve(self._setting.levels, coefficients, budget.bytes)
            if chosen not in self._known:
                break
        return coefficients, chosen

    def _coefficients(self, budget: _Budget) -> Floats:
        if budget.drawn == 0:
            return budget.coefficients  # all 1: the programme itself
        sites = len(self._setting.levels)
        if budget.drawn < DRAWS:
            return self._random.uniform(LOWEST, 1, sites)
        changed = budget.coefficients.copy()
        changed[self._random.integers(sites, size=budget.resampled)] = self._random.uniform(LOWEST, 1, budget.resampled)
        return changed

    def _fill(self) -> Offer | None:
        """A solution in the widest gap between sizes, by the coefficients of the budgets around it."""
        logs = np.log(np.unique([*self._sizes, *(file - self._setting.rest for file in self._setting.span)]))
        for at in np.argsort(-np.diff(logs), kind="stable"):
            gap = (float(logs[at]), float(logs[at + 1]))
            if gap in self._full:
                continue
            middle = sum(gap) / 2
            ends = np.log([one.bytes for one in self._budgets])
            columns = np.log(np.stack([one.coefficients for one in self._budgets]))  # (budgets, sites)
            coefficients = np.exp([np.interp(middle, ends, column) for column in columns.T])
            chosen = solve(self._setting.levels, coefficients, float(np.exp(middle)))
            if chosen in self._known or not gap[0] < np.log(self._bytes(chosen)) < gap[1]:
                self._full.add(gap)
                continue
            self._sizes.append(self._bytes(chosen))
            return self._look(chosen)[0]
        return None

    def _bytes(self, chosen: Sequence[int]) -> float:
        return float(sum(one.bytes[at] for one, at in zip(self._setting.levels, chosen, strict=True)))

    def _look(self, chosen: tuple[int, ...]) -> tuple[Offer, float]:
        """A solution and its loss on calibration data, which takes nothing the second time."""
        policy = self._setting.policy(chosen)
        record = self._table.evaluate(policy, [])
        first = chosen not in self._known
        self._known.add(chosen)
        return Offer(policy, spent=first * record.forwards, seconds=first * record.seconds), record.loss


def budgets(setting: Setting, count: int) -> list[float]:
    """Bytes of the sites, spread over log bytes of the file, each near the left of its part.

    What a budget gives counts for all larger sizes up to the next one, so there it counts most.
    """
    low, high = np.log(setting.span)
    files = np.exp(low + (high - low) * (np.arange(count) + 0.25) / count)
    return [float(one) - setting.rest for one in files]


def turns(count: int) -> list[int]:
    """0 to count - 1 in an order whose first few are spread over all: by the bits, read backwards."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda i: int(format(i, f"0{width}b")[::-1], 2))


def solve(levels: Sequence[SiteLevels], coefficients: Floats, budget: float) -> tuple[int, ...]:
    """The levels of least weighted loss whose bytes fit the budget; the smallest ones where none do (section 3).

    The budget is cut into buckets, and bytes are rounded up to whole ones, so that it always holds.
    """
    size = budget / BUCKETS
    least = np.zeros(BUCKETS + 1)  # by buckets that may be used
    chosen = np.zeros((len(levels), BUCKETS + 1), np.int16)
    buckets = [np.ceil(one.bytes / size).astype(np.int64) for one in levels]
    for site, (one, coefficient) in enumerate(zip(levels, coefficients, strict=True)):
        now = np.full(BUCKETS + 1, np.inf)
        for level, (width, error) in enumerate(zip(buckets[site], one.losses * coefficient, strict=True)):
            if width > BUCKETS:
                break
            candidate = least[: BUCKETS + 1 - width] + error  # eq. 3
            better = candidate < now[width:]
            now[width:][better] = candidate[better]
            chosen[site, width:][better] = level
        least = now
    if not np.isfinite(least[-1]):
        return (0,) * len(levels)
    at, found = BUCKETS, []
    for site in range(len(levels) - 1, -1, -1):
        level = int(chosen[site, at])
        found.append(level)
        at -= int(buckets[site][level])
    return tuple(reversed(found))
