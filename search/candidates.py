"""What is known before the first trial: the space, the float model's score, and the candidates that are tried first."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from compress.calibration import batchnorms
from compress.layer import Cost
from compress.places import checked_url
from objectives.evaluation import Evaluation, Teacher, needs_gradients, no_teacher, resolve_device, teach
from objectives.float_score import FloatScore
from objectives.score import Scorer
from objectives.sensitivities import setting_loss
from objectives.threads import set_threads
from objectives.workload import LoadedWorkload, load_workload
from search.config import Config
from search.first import predicted, uniform
from search.front import DEPLOYED_DROP
from search.pareto import Box, reference_box
from search.prices import Sensing
from search.progress import QUIET_SECONDS, say
from search.samplers.named import Knowledge
from search.samplers.table import Table
from search.settings import Priced, policy_of, settings_of
from search.space import channel_pruning_of, distillation_of, space_of
from search.study import Origin
from search.tables import sensitivity_document, tables_of
from search.tasks import LayerTask
from spaces.errors import ConfigError
from spaces.policy import Policy
from spaces.space import Space

Span = tuple[float, float]
Build = Callable[[Scorer, Sequence[LayerTask]], list[list[Cost]]]


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
    tables: tuple[Table, ...]
    sensitivities: Mapping[str, Any]

    @property
    def knowledge(self) -> Knowledge:
        """What a sampler may know before the first trial."""
        return Knowledge(self.tables, self.boxes, self.float_score.validation.value)

    @property
    def boxes(self) -> tuple[Box, Box]:
        """Where the hypervolume of fronts counts: all of it, and what loses at most five points of accuracy."""
        bytes, accuracy = self.float_score.bytes, self.float_score.validation.value
        whole = reference_box(self.smallest_bytes, bytes, self.loaded.workload.chance)
        return whole, Box(whole.smallest, whole.largest, accuracy - DEPLOYED_DROP, accuracy)


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
        coding=config.resolved_coding(),
        max_bytes=config.cache.max_bytes,
        distillation=distillation_of(config),
        smoothing=config.space.smoothing,
        gradients=_looks_at_gradients(config),
        shared=None if config.cache.shared is None else checked_url(config.cache.shared),
    )
    set_threads(config.threads)  # before anything is computed, as in a worker
    loaded = load_workload(config.workload_entry(), config.workload)
    _check_training(config, loaded)
    float_score = Scorer(loaded, evaluation, no_teacher()).float_score()
    space = space_of(config, loaded)
    return Checked(loaded, evaluation, space, float_score)


def _looks_at_gradients(config: Config) -> bool:
    space = config.space
    criteria = {space.criterion, *(rule.criterion for rule in space.rules)}
    channels = bool(space.channels) and needs_gradients((), channel_pruning_of(config))
    return "taylor" in criteria or space.fisher or channels


def _check_training(config: Config, loaded: LoadedWorkload) -> None:
    """Refuse training that would fail for every candidate."""
    distillation = config.distillation
    if distillation.rewind and loaded.workload.early is None:
        raise ConfigError(
            f"distillation.rewind: given true, but {loaded.entry} offers no early weights: give the Workload `early`, "
            "the model's parameters early in its training, or leave rewind out"
        )
    if distillation.rewind and config.space.smoothing is not None:
        raise ConfigError(
            f"distillation.rewind: given true, with space.smoothing {config.space.smoothing:g}: early weights are not "
            "those of a smoothed model; leave rewind or smoothing out"
        )
    if loaded.students and config.space.students and distillation.student_steps and not distillation.steps:
        raise ConfigError(
            f"distillation.student_steps: given {distillation.student_steps}, but without distillation.steps nothing "
            f"is trained, the students {', '.join(loaded.students)} of {loaded.entry} neither: give "
            "distillation.steps, or distillation.student_steps: 0 to take them as they come, or space.students: false"
        )
    penalty = distillation.penalty
    if penalty is not None and penalty.kind == "batchnorm_l1" and not batchnorms(loaded.model):
        raise ConfigError(
            "distillation.penalty: given batchnorm_l1, but the model has no BatchNorm; take l1 or group_lasso"
        )


def prepare(
    config: Config, checked: Checked | None = None, build: Build | None = None, focus: Span | None = None
) -> Prepared:
    """Compute the teacher's outputs, compress each site at each choice, and predict a front.

    Args:
        config: the search.
        checked: what `check` gave; it is called where that is None.
        build: has layers compressed and gives their costs; None does so here and now.
        focus: bytes, low to high, that the predicted policies should have; None is up to a quarter of the float's.

    Raises:
        WorkloadError: the model fails on its training or calibration data, or the loss on the training data.
    """
    checked = checked or check(config)
    space = checked.space
    teacher = teach(checked.loaded, checked.evaluation)
    scorer = Scorer(checked.loaded, checked.evaluation, teacher)
    if config.distillation.alpha[0] < 1:
        scorer.check_loss()
    sensing = Sensing(config.sampler.samples, config.sampler.measured)
    priced = _prices(scorer, space, build or build_here, sensing)
    losses = [setting_loss(scorer, policy_of(space, one.setting), sensing.samples) for one in priced]
    tables = tables_of(space, priced, losses)
    span = focus or (0.0, checked.float_score.bytes / 4)
    first = [*uniform(config, space, priced), *predicted(config, space, priced, tables, span)]
    return Prepared(
        **{field.name: getattr(checked, field.name) for field in fields(Checked)},
        teacher=teacher,
        scorer=scorer,
        first=first,
        smallest_bytes=min(one.smallest for one in priced),
        tables=tables,
        sensitivities=sensitivity_document(priced, tables, losses),
    )


def _prices(scorer: Scorer, space: Space, build: Build, sensing: Sensing) -> list[Priced]:
    """What each choice costs in each setting."""
    settings = settings_of(space)
    sites = [(setting, site) for setting in settings for site in setting.sites]
    tasks = [
        LayerTask(i, policy_of(space, one), site.name, site.choices(), sensing) for i, (one, site) in enumerate(sites)
    ]
    costs = iter(build(scorer, tasks))
    priced = []
    for setting in settings:
        variant = scorer.models.variant(policy_of(space, setting))
        priced.append(Priced(setting, variant, [next(costs) for _ in setting.sites]))
    return priced


def build_here(scorer: Scorer, tasks: Sequence[LayerTask]) -> list[list[Cost]]:
    """Have all layers compressed in this process; a large model takes minutes, and says how far it is."""
    costs: list[list[Cost]] = []
    progress = Compressing(len(tasks))
    for task in tasks:
        costs.append(task.insist(scorer))
        progress.show(len(costs))
    return costs


class Compressing:
    """Says now and then how many tasks of `total` are done."""

    def __init__(self, total: int) -> None:
        self._total, self._said = total, time.monotonic()

    def show(self, done: int) -> None:
        """Say it, unless that was a moment ago."""
        if time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            say(f"compressed {done} of {self._total} sites at each choice")
