"""The sampler that knows what layers cost: it predicts fronts, and corrects the prediction by what trials tell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.pareto import Box
from search.samplers.evolution import anywhere, bred
from search.samplers.features import Features
from search.samplers.history import History, Look, Seen
from search.samplers.one_thread import one_thread
from search.samplers.plan import Plan, make_plan
from search.samplers.recipe import recipe
from search.samplers.start import start_points
from search.samplers.table import Table

Focus = tuple[float, float]

OUTSIDE = 0.1  # share of asks that try a setting of which there is no table
GROWTH = 16  # a plan lasts until one part in so many of the trials, told and running, is told beside
ATTEMPTS = 32
RECENT = 512  # trials that a recipe is learned from


class FrontSampler(BaseSampler):
    """Searches the front of accuracy (maximized) and bytes (minimized) of policies whose layers are known.

    It starts with uniform policies and a predicted front, learns from each trial how much the sensitivity of a site
    counts, solves the dynamic programme again with what it learned, and proposes what is expected to add most
    hypervolume. A proposal depends on the seed, the trial's number and the trials visible alone. Axes that no table
    knows are searched by evolution, continuous ones (a temperature) by what training gained.

    A trial may tell the smooth losses that it measured, one a rung, as its user attribute "losses"; without it, the
    accuracy is learned from.

    Args:
        tables: bytes and sensitivities of each choice, one table for each setting; none searches by evolution alone.
        seed: None draws one.
        uniform: how many uniform policies are proposed first.
        predicted: how many policies of the predicted front are proposed next.
        boxes: where hypervolume counts, in log bytes x accuracy; by default, and where none has an area, from the
            smallest to the largest policy and over the accuracies seen.
        best: accuracy of the float model, if known.
        focus: gives the sizes (bytes, low to high) that a trial of a number should have; None or nothing is any.

    Example:
        >>> import optuna
        >>> import numpy as np
        >>> from search.samplers.front_sampler import FrontSampler
        >>> from search.samplers.table import SiteTable, Table
        >>> points = tuple({"fc/bits": bits} for bits in (2, 4, 8))
        >>> site = SiteTable("fc", points, np.array([100, 200, 400]), np.array([[0.3], [0.02], [0.001]]))
        >>> sampler = FrontSampler([Table((site,))], seed=0, uniform=1, predicted=2)
        >>> study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
        >>> trial = study.ask({"fc/bits": optuna.distributions.CategoricalDistribution((2, 4, 8))})
        >>> trial.params["fc/bits"] in (2, 4, 8)
        True
    """

    def __init__(
        self,
        tables: Sequence[Table] = (),
        *,
        seed: int | None = None,
        uniform: int = 10,
        predicted: int = 30,
        boxes: tuple[Box, ...] | None = None,
        best: float | None = None,
        focus: Callable[[int], Focus | None] | None = None,
    ) -> None:
        self._tables = tuple(tables)
        self._seed = int(np.random.SeedSequence().entropy) if seed is None else seed  # type: ignore[arg-type]
        self._boxes, self._best, self._focus = boxes, best, focus
        self._start = start_points(self._tables, uniform, predicted)
        self._features = Features(self._tables) if self._tables else None
        self._history = History(self._tables)
        self._space = IntersectionSearchSpace()
        self._plan: tuple[Any, Plan] | None = None

    def reseed_rng(self) -> None:
        """Nothing: its random numbers come from the seed and the trial's number."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The axes that all complete trials have."""
        return {name: axis for name, axis in self._space.calculate(study).items() if not axis.single()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of a policy that is tried first; drawn evenly where there is none."""
        start = self._start[trial.number] if trial.number < len(self._start) else {}
        if param_name in start and _holds(param_distribution, start[param_name]):
            return start[param_name]
        letters = int.from_bytes(param_name.encode(), "big")
        return anywhere(param_distribution, self._draw(trial.number, letters))

    @one_thread
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next policy's parameters."""
        if not search_space:
            return {}
        draw = self._draw(trial.number)
        trials = study._get_trials(deepcopy=False, use_cache=False)
        if self._features is None or not self._knows(study, search_space):
            complete = [one for one in trials if one.state is TrialState.COMPLETE]
            return bred(search_space, complete, study.directions, draw)
        seen = self._history.look(
            trials[:-1] if trials[-1].number == trial.number else [one for one in trials if one.number != trial.number]
        )
        point = self._point(trial.number, seen, search_space, draw)
        free = {
            name: axis
            for name, axis in search_space.items()
            if name not in point and isinstance(axis, FloatDistribution) and axis.step is None
        }
        values = recipe(free, seen.told[-RECENT:], draw)
        return {name: point.get(name, values.get(name, _first(axis))) for name, axis in search_space.items()}

    def _draw(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *numbers])

    def _knows(self, study: Study, axes: Mapping[str, BaseDistribution]) -> bool:
        """Whether a table's policies can be told in these axes."""
        two = list(study.directions) == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
        return two and all(
            name in axes or len({point[name] for point in site.points}) == 1
            for table in self._tables
            for site in table.sites
            for name in site.axes
        )

    def _point(
        self,
        number: int,
        seen: Look,
        axes: Mapping[str, BaseDistribution],
        draw: np.random.Generator,
    ) -> Mapping[str, Any]:
        """The sites' and the setting's axes of the next policy."""
        if number < len(self._start):
            return self._start[number]
        plan = self._planned(number, seen.told)
        settled = sorted({name for table in self._tables for name in table.fixed} & axes.keys())
        if settled and seen.front and draw.random() < OUTSIDE:
            return self._outside(seen.front, settled, axes, draw)
        found = plan.best(plan.front(seen), seen)
        if found is None:
            return self._anything(plan, seen, draw)
        return self._tables[found[0]].params(found[1])

    def _planned(self, number: int, told: Sequence[Seen]) -> Plan:
        """The plan that trials of this number are taken from: made again when enough more trials are told."""
        count = _rounded(len(told), number - len(told))
        boxes = self._aims(number, told[:count])
        gapless = count == 0 or told[count - 1].number == count - 1
        key = (count, () if gapless else tuple(one.number for one in told[:count]), boxes)
        plan = self._plan  # another thread of the study may replace it meanwhile
        if plan is None or plan[0] != key:
            if self._features is None:
                raise ValueError("there is no table to plan from")
            draw = self._draw(count, 1)
            plan = key, make_plan(self._features, told[:count], boxes, self._best, draw)
            self._plan = plan
        return plan[1]

    def _aims(self, number: int, told: Sequence[Seen]) -> tuple[Box, ...]:
        """Where hypervolume counts for a trial."""
        boxes = tuple(box for box in self._boxes or () if box.smallest < box.largest and box.worst < box.best)
        if not boxes:
            accuracies = [one.accuracy for one in told if one.complete] or [0.0, 1.0]
            smallest, largest = min(t.smallest for t in self._tables), max(t.largest for t in self._tables)
            boxes = (Box(smallest, largest, min(accuracies), self._best or max(accuracies)),)
        focus = self._focus(number) if self._focus else None
        if not focus:
            return boxes
        return tuple(replace(one, smallest=max(1.0, focus[0]), largest=focus[1]) for one in boxes)

    def _outside(
        self,
        front: Sequence[Seen],
        settled: Sequence[str],
        axes: Mapping[str, BaseDistribution],
        draw: np.random.Generator,
    ) -> Mapping[str, Any]:
        """A policy of the front in a setting next to its own."""
        parent = front[int(draw.integers(len(front)))].params
        name = settled[int(draw.integers(len(settled)))]
        names = [site for table in self._tables for part in table.sites for site in part.axes]
        kept = {key: parent[key] for key in (*names, *settled) if key in parent}
        return {**kept, name: anywhere(axes[name], draw)}

    def _anything(self, plan: Plan, asked: Look, draw: np.random.Generator) -> Mapping[str, Any]:
        """A policy of the pools, or any other one where all of them were asked."""
        for _ in range(ATTEMPTS):
            pool = plan.pools[int(draw.integers(len(plan.pools)))]
            choices = pool.choices[int(draw.integers(len(pool.choices)))].copy()
            table = self._tables[pool.table]
            site = int(draw.integers(len(choices)))
            choices[site] = draw.integers(len(table.sites[site].points))
            if (pool.table, choices.tobytes()) not in asked:
                break
        return table.params(choices)


def _rounded(told: int, running: int) -> int:
    """The last number of told trials at which a plan was made, while so many run beside."""
    count = 0
    while (after := count + max(3, count // GROWTH + running // GROWTH)) <= told:
        count = after
    return count


def _first(axis: BaseDistribution) -> Any:
    """The value of an axis that nothing depends on."""
    if isinstance(axis, CategoricalDistribution):
        return axis.choices[0]
    if isinstance(axis, IntDistribution | FloatDistribution):
        return axis.low
    raise TypeError(f"no axis: {axis!r}")


def _holds(axis: BaseDistribution, value: Any) -> bool:
    """Whether a value is one of an axis."""
    if isinstance(axis, CategoricalDistribution):
        return value in axis.choices
    return isinstance(value, int | float) and axis._contains(float(value))
