"""Searches without a model: small spaces, scores that are made up from the policy alone, and launches of the driver."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection

from objectives.racing import Outcomes
from objectives.score import RungScore, Score
from search.config import Config
from search.driver import SAMPLER_PREFIX, Driver
from search.pareto import Box
from search.samplers.named import Knowledge
from search.samplers.proposer import Proposer
from search.samplers.table import SiteTable, Table
from search.storage import Storage, no_guard, open_storage
from search.study import Trials, open_study
from search.tasks import Result, ScoreTask
from spaces.policy import Distillation, Policy, Uniform
from spaces.space import SiteSpace, Space
from tests.searches import STUDY, url_of

BITS, RATIOS = (2, 3, 4), (0.0, 0.5)
SIZES = (4_000, 9_000, 2_000)
REST = 500
SAMPLES = 40
BOX = Box(REST, REST + 4.0 * sum(SIZES), 0.1, 1.0)


def space_of(sites: int = 3, *, bits: Sequence[int] = BITS, distilled: bool = True) -> Space:
    """Undistilled, it has a finite number of policies."""
    own = tuple(SiteSpace(f"site{i}", ("uniform",), RATIOS, tuple(bits)) for i in range(sites))
    if not distilled:
        return Space(own)
    settings = Distillation(temperature=1, alpha=0.5, learning_rate=1e-3, batch_size=64)
    return Space(own, temperature=(1.0, 8.0), alpha=(0.5, 1.0), distillation=settings)


def costs(size: int, bits: int, ratio: float) -> tuple[int, float]:
    """Bytes and loss of one site's choice."""
    return int(size * bits * (1 - 0.8 * ratio) / 8), 4.0 ** (1 - bits) + 0.4 * ratio**3


def knowledge_of(space: Space) -> Knowledge:
    """What our sampler knows of such a space."""
    tables = []
    for site, size in zip(space.sites, SIZES, strict=False):
        pairs = [(ratio, bits) for ratio in site.ratios for bits in site.bits]
        found = [costs(size, bits, ratio) for ratio, bits in pairs]
        names = f"{site.name}/ratio", f"{site.name}/bits"
        points = tuple(dict(zip(names, pair, strict=True)) for pair in pairs)
        losses = np.array([[loss] for _, loss in found])
        tables.append(SiteTable(site.name, points, np.array([bytes for bytes, _ in found]), losses))
    return Knowledge((Table(tuple(tables), {}, REST),), (BOX,), 0.98)


def score(task: ScoreTask) -> Score | None:
    """Made up from the policy and its judge alone, with up to two rungs; every 16th policy fails."""
    draw = int(task.policy.digest[:8], 16)
    if draw % 16 == 5:
        return None
    bytes, loss = REST, 0.0
    for choice, size in zip(task.policy.sites.values(), SIZES, strict=False):
        assert isinstance(choice.weights, Uniform)
        more, worse = costs(size, choice.weights.bits, choice.ratio)
        bytes, loss = bytes + more, loss + worse
    rungs = list(task.start)
    outcomes: list[Outcomes | None] = [None] * len(rungs)
    stopped = False
    last = 1 if task.policy.distillation is not None else 0
    while not rungs or (
        rungs[-1].rung < last
        and not stopped
        and (len(rungs) == len(task.start) or task.judge.promote(rungs[-1].rung, rungs[-1].accuracy, bytes))
    ):
        rung = len(rungs)
        values = (np.random.default_rng(draw + rung).random(SAMPLES) < 0.5 + 0.4 / (1 + loss) + rung / 20).astype("f4")
        race = task.judge.race(rung, bytes)
        known = 0.0 if race is None else race.threshold + sum(float(one.values.sum()) for one in race.references)
        accuracy = float(values.mean())
        stopped = race is not None and accuracy < race.threshold - 0.2
        outcomes.append(None if stopped else Outcomes(values, np.full(SAMPLES, loss, np.float32)))
        rungs.append(RungScore(rung, accuracy, bytes, 1e6, loss, 0.5, loss + known, SAMPLES, SAMPLES, 9 * rung))
    accuracy = rungs[-1].accuracy
    kept = not stopped and task.judge.keep(accuracy, bytes)
    artifact = hashlib.sha256(task.policy.digest.encode()).hexdigest() if kept else None
    return Score(accuracy, None, bytes, 1e6, tuple(rungs), artifact, stopped, tuple(outcomes))


def answer(task: ScoreTask) -> Result:
    """What a worker would send."""
    found = score(task)
    return Result(task.number, found, error="out of luck" if found is None else None, seconds=0.5, host="here")


@dataclass
class Seen:
    """A watcher that remembers."""

    said: list[str] = field(default_factory=list)
    shown: list[tuple[float, float] | None] = field(default_factory=list)

    def say(self, words: str) -> None:
        self.said.append(words)

    def show(self, values: tuple[float, float] | None) -> None:
        self.shown.append(values)


@dataclass
class World:
    """A search in a folder, launched as often as one likes."""

    folder: Path
    space: Space = field(default_factory=space_of)
    sampler: str = "random"
    trials: int = 30
    window: int = 5
    patience: dict[str, Any] | None = None
    first: int = 0
    make: Callable[..., Proposer] = Proposer

    @property
    def config(self) -> Config:
        steps = () if self.space.distillation is None else (60,)
        given = {
            "study": STUDY,
            "workload": "any:any",
            "sampler": {"name": self.sampler, "uniform": self.first, "predicted": 0},
            "budget": {"trials": self.trials, "patience": self.patience},
            "distillation": {"steps": list(steps), "share": 0.4},
            "window": self.window,
            "storage": url_of(self.folder),
        }
        return Config.model_validate(given)

    def uniform(self) -> list[tuple[Any, Policy]]:
        """Its first candidates."""
        made = self.space.uniform()[: self.first]
        settings = (2.0, 0.75) if self.space.distillation else (1.0, 1.0)
        return [("uniform", self.space.make(sites, *settings)) for sites in made]

    @contextmanager
    def launched(
        self, guard: Callable[[Connection], None] = no_guard
    ) -> "Iterator[tuple[Driver, Storage, Trials, Proposer]]":
        """A driver, as a launch makes it of what is stored."""
        storage = open_storage(url_of(self.folder), create=True)
        try:
            study_id, made = open_study(storage, STUDY)
            if made:
                storage.set_study_attrs(study_id, {"fingerprint": "made up"})
            proposer = self.make(
                self.space, self.sampler, {}, self.config.seed, self.uniform(), knowledge_of(self.space)
            )
            attrs = storage.get_study_user_attrs(study_id)
            proposer.restore({k.removeprefix(SAMPLER_PREFIX): v for k, v in attrs.items() if SAMPLER_PREFIX in k})
            trials = Trials(storage, study_id)
            yield Driver(self.config, proposer, self.first, trials, BOX, guard), storage, trials, proposer
        finally:
            storage.close()

    def search(self, *, draw: random.Random | None = None, kill: float = 0.0) -> dict[int, Result]:
        """Search until the budget is used.

        Args:
            draw: which results arrive in which step, and in which order; None has one a step, the oldest first.
            kill: how likely the driver is killed after a step.

        Returns:
            What every trial that was scored was answered; a trial that is scored again has the same answer.
        """
        answers: dict[int, Result] = {}
        while self._one_launch(answers, draw, kill):
            pass
        return answers

    def _one_launch(self, answers: dict[int, Result], draw: random.Random | None, kill: float) -> bool:
        """Search until the budget is used or the driver is killed; whether it was killed."""
        watcher = Seen()
        with self.launched() as (driver, _, _, _):
            waiting: list[Result] = []
            results: list[Result] = []
            while not driver.finished:
                for task in driver.step(results, watcher):
                    result = answer(task)
                    assert answers.setdefault(task.number, result) == result
                    waiting.append(result)
                if draw is not None and draw.random() < kill:
                    return True
                results = waiting[:1] if draw is None else draw.sample(waiting, draw.randint(0, len(waiting)))
                waiting = [one for one in waiting if one not in results]
        return False
