"""Random policies over all kinds on all workloads that ship: bytes, files and outputs are what was predicted.

Evaluated on one batch, by a metric in which every bit of the outputs counts.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from compress.family import Variant
from compress.files import artifact_path
from compress.inputs import take
from compress.quantization.activations import takes_grid
from compress.sites import Site
from objectives.evaluation import Evaluation, needs_gradients, teach
from objectives.score import Scorer
from objectives.workload import LoadedWorkload, load_workload
from spaces.choice import Activations
from spaces.errors import CandidateError
from spaces.policy import (
    ChannelCriterion,
    ChannelPruning,
    Choice,
    Codebook,
    Criterion,
    Distillation,
    DynamicActivations,
    Float16,
    Float32,
    NoPruning,
    Policy,
    Prune,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Weights,
)
from spaces.target import CodingName
from tests.scoring import Until

SHIPPED = ("digits", "animals", "lenet")
ENTRIES = {name: f"objectives.workloads.{name}:workload" for name in SHIPPED} | {"taught": "tests.tiny:taught"}
BATCH = 32  # samples of each split that are left
COMPENSATED = 0.08  # share of choices that look at the Hessian column by column, which takes longest


@cache
def batch_of(name: str) -> LoadedWorkload:
    """A workload with one batch of each split, whose metric is a number that every bit of the outputs changes."""
    try:
        loaded = load_workload(ENTRIES[name])
    except Exception as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise
    splits = {
        split: replace(
            given,
            inputs=take(given.inputs, slice(0, BATCH)),
            targets=None if given.targets is None else given.targets[:BATCH],
        )
        for split, given in loaded.splits.items()
    }
    return replace(loaded, workload=replace(loaded.workload, metric=every_bit), splits=splits)


def every_bit(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.double() @ torch.linspace(1.0, 2.0, outputs.shape[-1], dtype=torch.float64)


def scorer_of(name: str, coding: CodingName, cache: Path) -> Scorer:
    distilled = Distillation(temperature=2, alpha=0.5, learning_rate=0.01, batch_size=16, student_steps=5)
    settings = Evaluation(
        seed=0,
        chunk=BATCH,
        threads=1,
        device="cpu",
        steps=(),
        cache=cache,
        coding=coding,
        distillation=distilled,
        gradients=True,
    )
    return Scorer(batch_of(name), settings, teach(batch_of(name), settings))


def prune_of(draw: random.Random, n: int) -> Prune:
    criteria: Sequence[Criterion] = [one for one in get_args(Criterion) if one != "hessian"]
    criterion: Criterion = "hessian" if draw.random() < COMPENSATED else draw.choice(criteria)
    m = draw.choice([m for m in (2, 3, 4, 8, 9) if n % m == 0] or [0])
    match draw.randrange(4):
        case 0:
            return NoPruning()
        case 1 if m:
            return SemiStructured(n=draw.randrange(1, m), m=m, criterion=criterion)
        case 2:
            return Threshold(value=draw.choice([1e-3, 0.02, 0.1]))
        case _:
            return Unstructured(ratio=draw.choice([0.1, 0.5, 0.9, 0.98]), criterion=criterion)


def weights_of(draw: random.Random, n: int) -> Weights:
    way = draw.random()
    rounding = "gptq" if way < COMPENSATED else "adaround" if way < 3 * COMPENSATED else "nearest"
    sizes = [size for size in (2, 3, 4, 8, 9, 16) if n % size == 0 and size < n]
    match draw.randrange(6):
        case 0:
            return Float32()
        case 1:
            return Float16()
        case 2 | 3:
            per = draw.choice(["tensor", "channel", "group"] if sizes else ["tensor", "channel"])
            return Uniform(
                bits=draw.randint(2, 8),
                scale_per=per,  # type: ignore[arg-type]
                group_size=draw.choice(sizes) if per == "group" else None,
                symmetric=draw.random() < 0.5,
                rounding=rounding,  # type: ignore[arg-type]
            )
        case _:
            by = "gptq" if rounding == "gptq" else "nearest"
            return Codebook(bits=draw.randint(1, 8), fisher=draw.random() < 0.3, rounding=by)  # type: ignore[arg-type]


def activations_of(draw: random.Random) -> Activations | None:
    match draw.randrange(4):
        case 0:
            return StaticActivations(bits=draw.randint(4, 8), range=draw.choice(["minmax", "percentile", "mse"]))
        case 1:
            return DynamicActivations(bits=draw.randint(4, 8))
        case _:
            return None


def structure_of(draw: random.Random, scorer: Scorer, model: str | None) -> Policy:
    """Some channels and blocks of a model cut out."""
    member = scorer.models.member(model)
    if model is not None or draw.random() < 0.4:
        return Policy(sites={}, model=model)
    dropped = tuple(block for block in member.blocks if draw.random() < 0.25)
    outside = [one for one in member.groups if not any(one.members[0].startswith(f"{block}.") for block in dropped)]
    channels = {one.name: draw.choice([0.25, 0.5, 0.8]) for one in outside if draw.random() < 0.4}
    how = ChannelPruning(
        criterion=draw.choice([one for one in get_args(ChannelCriterion) if one != "batchnorm"]),
        multiple=draw.choice([1, 1, 8]),
        refit=draw.random() < 0.6,
    )
    return Policy(sites={}, channels=channels, channel_pruning=how if channels else None, dropped=dropped)


def choice_of(draw: random.Random, scorer: Scorer, variant: Variant, site: Site) -> Choice:
    n = site.size // site.channels
    wished = Choice(prune=prune_of(draw, n), weights=weights_of(draw, n), activations=activations_of(draw))
    if not takes_grid(variant.model, site.module):
        wished = wished.model_copy(update={"activations": None})
    try:
        scorer.models.database(variant.member.name).layer(site, wished, variant.cuts.get(site.name))
    except CandidateError as error:
        assert f"site {site.name}" in str(error), error  # noqa: PT017 - what is refused is refused by name
        return Choice(weights=Uniform(bits=4))
    return wished


def drawn(number: int, name: str, scorer: Scorer) -> Policy:
    """A random policy of a workload."""
    draw = random.Random(f"{name} {number}")
    policy = structure_of(draw, scorer, draw.choice(scorer.models.names))
    variant = scorer.models.variant(policy)
    sites = {site.name: choice_of(draw, scorer, variant, site) for site in variant.sites}
    return policy.model_copy(update={"sites": sites})


def check(numbers: range, name: str, coding: CodingName, folder: Path, fresh: bool) -> None:
    """What holds for every policy; a second scorer has the first one's layers, or, if `fresh`, makes its own."""
    first = scorer_of(name, coding, folder / "first")
    second = scorer_of(name, coding, folder / ("second" if fresh else "first"))
    before = first.loaded.model_sha256, [parameter.sum().item() for parameter in first.loaded.model.parameters()]
    for number in numbers:
        policy = drawn(number, name, first)
        assert Policy.model_validate_json(policy.model_dump_json()) == policy
        assert needs_gradients([]) is False
        variant, database = first.models.variant(policy), first.models.database(policy.model)
        costs = [database.cost(site, policy.sites[site.name], variant.cuts.get(site.name)) for site in variant.sites]
        predicted = variant.layout.file_bytes(sum(cost.bytes for cost in costs))
        score = first.score(policy, Until(0))
        assert score.artifact is not None
        path = artifact_path(first.evaluation.cache, score.artifact)
        where = f"{name} {number} {coding}"
        assert path.stat().st_size == predicted == score.bytes, where
        assert first.score_file(path, "validation").value == score.accuracy, where
        again = second.score(policy, Until(0))
        assert (again.artifact, again.accuracy) == (score.artifact, score.accuracy), where
        if not fresh:
            assert second.score(policy, Until(0, kept=False)).artifact is None
    assert before == (first.loaded.model_sha256, [p.sum().item() for p in first.loaded.model.parameters()])


QUICK = [("digits", "packed", 7), ("digits", "entropy", 1), ("animals", "packed", 5), ("animals", "entropy", 1)]
QUICK += [("lenet", "packed", 4), ("taught", "packed", 20), ("taught", "entropy", 12)]
SLOW = [("digits", "packed", 90), ("digits", "entropy", 60), ("animals", "packed", 80), ("animals", "entropy", 40)]
SLOW += [("lenet", "packed", 30), ("lenet", "entropy", 20), ("taught", "packed", 100), ("taught", "entropy", 80)]


@pytest.mark.parametrize(("name", "coding", "count"), QUICK)
def test_50_random_policies(name: str, coding: CodingName, count: int, tmp_path: Path) -> None:
    check(range(count), name, coding, tmp_path, fresh=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "coding", "count"), SLOW)
def test_500_random_policies(name: str, coding: CodingName, count: int, tmp_path: Path) -> None:
    check(range(1000, 1000 + count), name, coding, tmp_path, fresh=True)


def test_they_are_of_all_kinds(tmp_path: Path) -> None:
    scorer = scorer_of("taught", "packed", tmp_path)
    policies = [drawn(number, "taught", scorer) for number in range(60)]
    choices = [choice for policy in policies for choice in policy.sites.values()]
    assert {choice.prune.kind for choice in choices} == {"none", "unstructured", "nm", "threshold"}
    assert {choice.weights.kind for choice in choices} == {"float32", "float16", "uniform", "codebook"}
    assert {choice.activations and choice.activations.kind for choice in choices} == {None, "static", "dynamic"}
    assert {getattr(choice.weights, "rounding", "nearest") for choice in choices} == {"nearest", "gptq", "adaround"}
    assert {getattr(choice.prune, "criterion", None) for choice in choices} >= set(get_args(Criterion))
    assert {policy.model for policy in policies} == {None, "narrow", "flat", "leaky"}
    assert any(policy.channels for policy in policies)
    assert sum(count for *_, count in QUICK) == 50
    assert sum(count for *_, count in SLOW) == 500
