"""Scorers of the tiny workloads, and policies for them."""

import random
from pathlib import Path

from objectives.evaluation import Evaluation, teach
from objectives.racing import Race
from objectives.score import Scorer
from objectives.workload import LoadedWorkload
from spaces.errors import RetryableError
from spaces.policy import (
    Choice,
    Distillation,
    Float16,
    Float32,
    NoPruning,
    Policy,
    Prune,
    Uniform,
    Unstructured,
    Weights,
)

CHUNK = 32


def evaluation(cache: Path, seed: int = 0, steps: tuple[int, ...] = (6, 18)) -> Evaluation:
    return Evaluation(seed=seed, chunk=CHUNK, threads=1, device="cpu", steps=steps, cache=cache)


def scorer_of(loaded: LoadedWorkload, settings: Evaluation) -> Scorer:
    return Scorer(loaded, settings, teach(loaded, settings))


def policy(number: int, distilled: bool = True) -> Policy:
    """A random one."""
    draw = random.Random(number)
    prunes: list[Prune] = [NoPruning(), Unstructured(ratio=0.3), Unstructured(ratio=0.8)]
    weights: list[Weights] = [Uniform(bits=2), Uniform(bits=3), Uniform(bits=5), Float16(), Float32()]
    sites = {
        name: Choice(
            prune=draw.choice(prunes),
            weights=draw.choice(weights),
        )
        for name in ("first", "second", "head")
    }
    settings = Distillation(temperature=draw.uniform(1, 8), alpha=draw.random(), learning_rate=0.01, batch_size=16)
    return Policy(sites=sites, distillation=settings if distilled else None)


def coarse() -> Policy:
    """One that training makes better."""
    sites = dict.fromkeys(("first", "second", "head"), Choice(prune=Unstructured(ratio=0.8), weights=Uniform(bits=2)))
    return Policy(sites=sites, distillation=Distillation(temperature=2, alpha=0.9, learning_rate=0.02, batch_size=32))


class Until:
    """A judge that promotes up to a rung, keeps all files or none, and remembers what it was asked to promote."""

    def __init__(self, last: int, *, kept: bool = True) -> None:
        self.last, self.kept = last, kept
        self.asked: list[tuple[int, float, int]] = []

    def promote(self, rung: int, accuracy: float, bytes: int) -> bool:
        self.asked.append((rung, accuracy, bytes))
        return rung < self.last

    def keep(self, accuracy: float, bytes: int) -> bool:
        return self.kept

    def race(self, rung: int, bytes: int) -> Race | None:
        return None


class Hungry(Until):
    """A judge that finds no memory."""

    def __init__(self) -> None:
        super().__init__(0)

    def promote(self, rung: int, accuracy: float, bytes: int) -> bool:
        raise RetryableError("out of memory: so much")
