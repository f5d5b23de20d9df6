"""What a config would search: the sites, channels and blocks of its model, its sizes, and how many policies."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from compress.family import Member
from search.candidates import Prepared, check, prepare
from search.config import Config
from search.goals import SHARES
from search.samplers.features import Features
from search.samplers.loss_model import unlearned
from search.sensitivity import predicted_front, within
from spaces.target import CodingName


@dataclass(frozen=True)
class SiteView:
    """A site: its shape, its weights and their share of the model's, its choices, and what is tied to it."""

    name: str
    shape: tuple[int, ...]
    weights: int
    share: float
    choices: int
    tied: tuple[str, ...]


@dataclass(frozen=True)
class GroupView:
    """A group of channels: how many, the modules that put them out, and the shares that may be removed, if any."""

    name: str
    channels: int
    members: tuple[str, ...]
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class StudentView:
    """A smaller model: its weights, and whether it may be taken."""

    name: str
    weights: int
    searched: bool


@dataclass(frozen=True)
class Forecast:
    """The least loss predicted, one-shot, for at most `limit` bytes: the float model's, divided by `share`.

    Attributes:
        bytes: of the policy that is predicted to lose least.
        loss: KL (mean squared error for values) to the float model's outputs.
    """

    share: int
    limit: int
    bytes: int
    loss: float


@dataclass(frozen=True)
class Overview:
    """What a config would search.

    Attributes:
        groups: of channels that can be removed, whether the config has them searched or not.
        skipped: why other channels cannot be removed, by the name their group would have; "" is the whole model.
        blocks: residual blocks that can be left out.
        blocks_searched: whether they may be.
        students: smaller models that the workload offers.
        coding: how packed files are coded.
        float_bytes: of the uncompressed model's packed file; its accuracies are on validation and test.
        smallest_bytes: of the smallest file in the space, one-shot: exact, nothing is trained.
        forecast: what is predicted for the whole model at some sizes.
        axes: along which policies differ.
        log10_policies: how many ways there are to choose for all sites; continuous axes are not counted.
        device: where candidates would be scored.
    """

    study: str
    workload: str
    sites: tuple[SiteView, ...]
    groups: tuple[GroupView, ...]
    skipped: dict[str, str]
    blocks: tuple[str, ...]
    blocks_searched: bool
    students: tuple[StudentView, ...]
    coding: CodingName
    float_bytes: int
    float_accuracy: float
    float_test_accuracy: float
    macs: float
    smallest_bytes: int
    forecast: tuple[Forecast, ...]
    axes: int
    log10_policies: float
    device: str

    def document(self) -> dict[str, Any]:
        """The overview as JSON values: what `slimfront inspect --json` prints."""
        return asdict(self)


def overview(config: Config) -> Overview:
    """Load a config's workload, score its float model and size its space; nothing is written.

    Raises:
        ConfigError, WorkloadError: it cannot be searched.
    """
    checked = check(config)
    loaded, space = checked.loaded, checked.space
    member = Member(None, loaded.model, loaded.workload.example_input, loaded.entry)
    whole = _weights(loaded.model)
    ratios = {group.name: group.ratios for group in space.groups}
    students = {student.name for student in space.students}
    choices = {site.name: len(site.choices()) for site in space.sites}
    score = checked.float_score
    # nothing is written and no student is trained for it
    scratch = replace(checked, evaluation=replace(checked.evaluation, max_bytes=0, distillation=None))
    prepared = prepare(config, scratch)
    return Overview(
        study=config.study,
        workload=config.workload,
        sites=tuple(
            SiteView(site.name, site.shape, site.size, site.size / whole, choices[site.name], site.tied)
            for site in loaded.sites
        ),
        groups=tuple(GroupView(one.name, one.channels, one.members, ratios.get(one.name, ())) for one in member.groups),
        skipped=dict(member.skipped),
        blocks=member.blocks,
        blocks_searched=bool(space.blocks),
        students=tuple(StudentView(name, _weights(model), name in students) for name, model in loaded.students.items()),
        coding=checked.evaluation.coding,
        float_bytes=score.bytes,
        float_accuracy=score.validation.value,
        float_test_accuracy=score.test.value,
        macs=score.macs,
        smallest_bytes=prepared.smallest_bytes,
        forecast=_forecast(prepared),
        axes=len(space.axes()),
        log10_policies=math.log10(space.size()),
        device=checked.evaluation.device,
    )


def _forecast(prepared: Prepared) -> tuple[Forecast, ...]:
    """What is predicted for the whole model at some sizes, as far as there are policies that small."""
    table, model = prepared.tables[0], unlearned(Features(prepared.tables))
    total, losses, _ = predicted_front([site.bytes for site in table.sites], model.costs(0, model.weights()))
    found = []
    for share in SHARES:
        limit = prepared.float_score.bytes // share
        if total[0] + table.rest <= limit:
            at = within(total, limit - table.rest)
            found.append(Forecast(share, limit, int(total[at]) + table.rest, float(losses[at])))
    return tuple(found)


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
