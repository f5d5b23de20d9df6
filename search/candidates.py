"""What is known before the first trial: the space, the float model's score, and the candidates that are tried first."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from compress.artifact import Layout
from compress.database import Cost, LayerDatabase
from objectives.score import Evaluation, FloatScore, Scorer, Teacher, resolve_device, seed_of, teach
from objectives.workload import LoadedWorkload, load_workload
from search.config import Config
from search.progress import QUIET_SECONDS, say
from search.sensitivity import predicted_front, spread
from search.study import Origin
from spaces.policy import Choice, Policy
from spaces.space import Space, build_space
from spaces.target import TARGETS


@dataclass(frozen=True)
class Checked:
    """A search whose config and workload go together: the float model was scored, nothing was written."""

    loaded: LoadedWorkload
    evaluation: Evaluation
    space: Space
    float_score: FloatScore


@dataclass(frozen=True)
class Prepared(Checked):
    """A checked search with all that is computed before its first trial."""

    teacher: Teacher
    scorer: Scorer
    first: Sequence[tuple[Origin, Policy]]
    smallest_bytes: int


def space_of(config: Config, loaded: LoadedWorkload) -> Space:
    """The space that a config allows on a workload.

    Raises:
        ConfigError: a glob matches no site, or a site is left without a choice.
    """
    settings, distillation = config.space, config.distillation
    distils = bool(distillation.steps)
    return build_space(
        [site.name for site in loaded.sites],
        bits=settings.bits,
        ratios=settings.ratios,
        prune=settings.prune,
        weights=settings.weights,
        exclude=settings.exclude,
        rules=settings.rules,
        target=TARGETS[config.target],
        temperature=distillation.temperature if distils else None,
        alpha=distillation.alpha if distils else None,
        learning_rate=distillation.learning_rate,
        batch_size=distillation.batch_size,
    )


def check(config: Config) -> Checked:
    """Load the workload, make the space, and score the float model: all that can be wrong with the input shows here.

    Raises:
        ConfigError, WorkloadError: the config or what it names cannot be searched.
    """
    evaluation = Evaluation(
        seed=config.seed,
        chunk=config.chunk,
        threads=config.threads,
        device=resolve_device(config.device),
        steps=config.distillation.steps,
        cache=config.cache_folder(),
    )
    torch.set_num_threads(config.threads)  # before anything is computed, as in a worker
    loaded = load_workload(config.workload_entry(), config.workload)
    space = space_of(config, loaded)
    nothing = torch.empty(0)
    float_score = Scorer(loaded, evaluation, Teacher(nothing, nothing)).float_score()
    return Checked(loaded, evaluation, space, float_score)


def prepare(config: Config, checked: Checked | None = None) -> Prepared:
    """Compute the teacher's outputs, compress each site at each choice, and predict a front.

    Raises:
        WorkloadError: the model fails on its training or calibration data, or the loss on the training data.
    """
    checked = checked or check(config)
    space = checked.space
    teacher = teach(checked.loaded, checked.evaluation)
    scorer = Scorer(checked.loaded, checked.evaluation, teacher)
    if config.distillation.alpha[0] < 1:
        scorer.check_loss()
    choices = [site.choices() for site in space.sites]
    costs = _costs(scorer.database, space, choices)
    smallest = scorer.layout.file_bytes(sum(min(cost.bytes for cost in own) for own in costs))
    first = [
        *_uniform(config, space, scorer.database),
        *_predicted(config, space, choices, costs, scorer.layout, checked.float_score.bytes),
    ]
    return Prepared(
        **{field.name: getattr(checked, field.name) for field in fields(Checked)},
        teacher=teacher,
        scorer=scorer,
        first=first,
        smallest_bytes=smallest,
    )


def _costs(database: LayerDatabase, space: Space, choices: Sequence[Sequence[Choice]]) -> list[list[Cost]]:
    """Each site compressed at each choice; a large model takes minutes, and says how far it is."""
    costs: list[list[Cost]] = []
    said = time.monotonic()
    for site, own in zip(space.sites, choices, strict=True):
        costs.append([database.cost(site.name, choice) for choice in own])
        if time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            say(f"compressed {len(costs)} of {len(choices)} sites at each choice")
    return costs


def _uniform(config: Config, space: Space, database: LayerDatabase) -> list[tuple[Origin, Policy]]:
    """As many uniform policies as the config says: unpruned ones first, the others spread evenly over log bytes."""
    found = space.uniform()
    size = [np.log(sum(database.cost(name, choice).bytes for name, choice in sites.items())) for sites in found]
    plain = [i for i, sites in enumerate(found) if not any(choice.ratio for choice in sites.values())]
    taken = plain[: config.sampler.uniform]
    rest = [i for i in range(len(found)) if i not in taken]
    while rest and len(taken) < config.sampler.uniform:  # the one farthest in size from those taken
        farthest = max(rest, key=lambda i: (min((abs(size[i] - size[j]) for j in taken), default=0.0), -i))
        taken.append(farthest)
        rest.remove(farthest)
    distillation = config.distillation
    temperature = float(np.sqrt(distillation.temperature[0] * distillation.temperature[1]))
    alpha = sum(distillation.alpha) / 2
    return [("uniform", space.with_distillation(found[i], temperature, alpha)) for i in taken]


def _predicted(
    config: Config,
    space: Space,
    choices: Sequence[Sequence[Choice]],
    costs: Sequence[Sequence[Cost]],
    layout: Layout,
    float_bytes: int,
) -> list[tuple[Origin, Policy]]:
    """Policies of the predicted front at random temperatures, spread evenly along it.

    They go from the smallest to a quarter of the float model; to the largest where no file is that small.
    """
    total, errors, chosen = predicted_front(
        [[cost.bytes for cost in own] for own in costs], [[cost.error for cost in own] for own in costs]
    )
    files = np.array([layout.file_bytes(int(one)) for one in total])
    quarter = float_bytes / 4
    largest = quarter if quarter > files[0] else float(files[-1])
    found: list[tuple[Origin, Policy]] = []
    for state in spread(files, errors, config.sampler.predicted, largest):
        sites = {site.name: own[i] for site, own, i in zip(space.sites, choices, chosen[state], strict=True)}
        draw = random.Random(seed_of(config.seed, f"predicted {len(found)}"))  # noqa: S311 - not for secrets
        low, high = config.distillation.temperature
        temperature = float(min(high, max(low, low * (high / low) ** draw.random())))
        alpha = draw.uniform(*config.distillation.alpha)
        found.append(("predicted", space.with_distillation(sites, temperature, alpha)))
    return found
