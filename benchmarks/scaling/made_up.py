"""A made-up search of 100 parameters: its space, its sensitivities, and workers that sleep instead of scoring."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from objectives.racing import Outcomes
from objectives.score import RungScore, Score
from search.config import Config
from search.pareto import Box
from search.samplers.named import Knowledge
from search.samplers.table import SiteTable, Table
from search.tasks import Result, ScoreTask
from spaces.policy import Distillation, Policy
from spaces.space import SiteSpace, Space

BITS = (2, 3, 4, 5, 6, 7, 8)
RATIOS = (0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.96)
SITES = 49  # two axes each, and the temperature and alpha
SAMPLES = 400
REST = 5_000
FLOAT_ACCURACY = 0.98


@dataclass(frozen=True, eq=False)
class MadeUp:
    """A search without a model.

    Attributes:
        space: 49 sites of 49 choices.
        knowledge: what our sampler knows of it.
        box: where the hypervolume of the front is taken.
    """

    space: Space
    knowledge: Knowledge
    box: Box


def made_up(seed: int = 0) -> MadeUp:
    """Sites of 200 to 40,000 weights, of which each loses more the fewer bits and weights it has."""
    draw = np.random.default_rng(seed)
    sizes = np.exp(draw.uniform(np.log(200), np.log(40_000), SITES)).astype(int)
    spaces = tuple(SiteSpace(f"site{i}", ("uniform",), RATIOS, BITS) for i in range(SITES))
    tables = []
    for space, size in zip(spaces, sizes, strict=True):
        points = tuple({f"{space.name}/ratio": r, f"{space.name}/bits": b} for r in RATIOS for b in BITS)
        bytes = np.array([int(size * (b * (1 - r) / 8 + (0.1 if r else 0))) + 40 for r in RATIOS for b in BITS])
        losses = np.array([0.6 * 4.0 ** (1 - b) + 0.5 * r**3 for r in RATIOS for b in BITS]) * draw.lognormal()
        tables.append(SiteTable(space.name, points, bytes, losses[:, None]))
    table = Table(tuple(tables), {}, REST)
    box = Box(table.smallest, REST + float(sizes.sum()), 0.1, 1.0)
    settings = Distillation(temperature=1, alpha=0.5, learning_rate=1e-3, batch_size=64)
    space_of_all = Space(spaces, temperature=(1.0, 8.0), alpha=(0.5, 1.0), distillation=settings)
    return MadeUp(space_of_all, Knowledge((table,), (box,), FLOAT_ACCURACY), box)


def config_of(study: str, *, trials: int, window: int, workers: int, sampler: str, url: str) -> Config:
    """The config of such a search; its workload is never loaded."""
    return Config.model_validate(
        {
            "study": study,
            "workload": "objectives.workloads.digits:workload",
            "sampler": {"name": sampler, "uniform": 0, "predicted": 0},
            "budget": {"trials": trials},
            "workers": workers,
            "window": window,
            "storage": url,
        }
    )


def seconds_of(policy: Policy, low: float, high: float) -> float:
    """How long scoring a policy takes, from low to high, by its digest."""
    return low + (high - low) * (int(policy.digest[:8], 16) / 0xFFFFFFFF)


def score_of(policy: Policy, table: Table) -> Score:
    """What a policy is worth: one rung, with outcomes for each sample, as a worker would send them."""
    choices: list[Any] = [policy.sites[site.name] for site in table.sites]
    ratios = [getattr(one.prune, "ratio", 0.0) for one in choices]
    numbers = [
        RATIOS.index(ratio) * len(BITS) + BITS.index(one.weights.bits)
        for one, ratio in zip(choices, ratios, strict=True)
    ]
    loss = sum(float(site.losses[i, 0]) for site, i in zip(table.sites, numbers, strict=True)) / SITES
    accuracy = 0.1 + (FLOAT_ACCURACY - 0.1) / (1 + (loss / 0.1) ** 1.3)
    bytes = int(table.bytes(np.array(numbers)[None])[0])
    luck = np.random.default_rng(int(policy.digest[:8], 16))
    values = (luck.random(SAMPLES) < accuracy).astype(np.float32)
    found = float(values.mean())
    rung = RungScore(0, found, bytes, 1e6, loss, 1.0, loss, SAMPLES, SAMPLES, 0)
    artifact = hashlib.sha256(policy.digest.encode()).hexdigest()
    losses = np.full(SAMPLES, loss, np.float32)
    interval = (max(0.0, found - 0.02), min(1.0, found + 0.02))
    return Score(found, interval, bytes, 1e6, (rung,), artifact, outcomes=(Outcomes(values, losses),))


class Sleeper:
    """A simulated worker, or many of them at once: each takes its time and gives made-up scores."""

    def __init__(self, workers: int, low: float, high: float) -> None:
        self._workers, self._low, self._high = asyncio.Semaphore(workers), low, high
        self._table = made_up().knowledge.tables[0]

    async def ready(self) -> str:
        """Answers at once."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def run(self, task: ScoreTask) -> Result:
        """Wait for a worker that is free; sleep, and make a score up."""
        async with self._workers:
            seconds = seconds_of(task.policy, self._low, self._high)
            score = score_of(task.policy, self._table)
            await asyncio.sleep(seconds)
        return Result(task.number, score=score, seconds=seconds, host="here")


def sleepers(concurrency: int, low: float, high: float) -> Callable[[], Any]:
    """What starts an actor of so many simulated workers."""
    import ray

    calls = 2 * concurrency + 8  # as many as the pool hands out, and more than one for `ready`
    kind: Any = ray.remote(num_cpus=0, max_concurrency=calls)(Sleeper)
    return lambda: kind.remote(concurrency, low, high)
