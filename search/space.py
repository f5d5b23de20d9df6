"""The space that a config allows on a workload."""

import math
from collections.abc import Collection, Sequence

from compress.family import Member
from compress.quantization.activations import takes_grid
from objectives.workload import LoadedWorkload
from search.config import Config
from spaces.build import Place, Wishes, check_globs, group_ratios, site_spaces
from spaces.errors import ConfigError
from spaces.policy import ChannelPruning, Distillation, Penalty
from spaces.site_space import SiteSpace
from spaces.space import Block, GroupSpace, Space, StudentSpace
from spaces.target import TARGETS


def space_of(config: Config, loaded: LoadedWorkload) -> Space:
    """The space that a config allows on a workload; it depends on what its models are made of, not on their weights.

    Raises:
        ConfigError: a glob matches no site, a choice does not fit one, or one is left without any.
    """
    settings, entry, example = config.space, loaded.entry, loaded.workload.example_input
    member = Member(None, loaded.model, example, entry)
    students = loaded.students if settings.students else {}
    check_globs([site.name for site in member.sites], exclude=settings.exclude, rules=settings.rules)
    distilled = distillation_of(config)
    groups = _groups(config, member)
    return Space(
        _sites(config, member),
        temperature=config.distillation.temperature if distilled else None,
        alpha=config.distillation.alpha if distilled else None,
        distillation=distilled,
        groups=groups,
        blocks=_blocks(config, member, {group.name for group in groups}),
        students=tuple(
            StudentSpace(name, _sites(config, Member(name, model, example, entry))) for name, model in students.items()
        ),
        smoothing=settings.smoothing,
        channel_pruning=channel_pruning_of(config),
    )


def channel_pruning_of(config: Config) -> ChannelPruning:
    """Which channels go first, and of what the number of those that stay is a multiple.

    It is one of the lengths of patterns and groups, too, so that these fit what is left of the channels.
    """
    settings = config.space
    multiple = math.lcm(settings.channel_multiple or TARGETS[config.target].multiple, *_lengths(config))
    return ChannelPruning(criterion=settings.channel_criterion, multiple=multiple, refit=settings.channel_refit)


def _lengths(config: Config) -> list[int]:
    """How many consecutive weights of a channel belong together: to a pattern, or to a scale."""
    settings = config.space
    patterned = "nm" in settings.prune and "nm" in TARGETS[config.target].prune
    patterns = [*settings.patterns, *(one for rule in settings.rules for one in rule.patterns or ())]
    scales = [settings.scale_per, *(rule.scale_per for rule in settings.rules)]
    lengths = [int(pattern.partition(":")[2]) for pattern in patterns] if patterned else []
    return lengths + [size for size in scales if isinstance(size, int)]


def distillation_of(config: Config) -> Distillation | None:
    """The settings of training that all policies share; None where nothing is distilled."""
    given = config.distillation
    if not given.steps:
        return None
    penalty = Penalty(kind=given.penalty.kind, strength=given.penalty.strength) if given.penalty else None
    return Distillation(
        temperature=given.temperature[0],
        alpha=given.alpha[0],
        learning_rate=given.learning_rate,
        batch_size=given.batch_size,
        optimizer=given.optimizer,
        schedule=given.schedule,
        masks=given.masks,
        rewind=given.rewind,
        grids=given.grids,
        features=given.features,
        labels=given.labels,
        penalty=penalty,
        cache_bytes=given.cache_bytes,
        student_steps=given.student_steps,
    )


def _sites(config: Config, member: Member) -> tuple[SiteSpace, ...]:
    settings = config.space
    wishes = Wishes(
        bits=settings.bits,
        ratios=settings.ratios,
        prune=settings.prune,
        weights=settings.weights,
        patterns=settings.patterns,
        thresholds=settings.thresholds,
        activations=settings.activations,
        activation_bits=settings.activation_bits,
        activation_range=settings.activation_range,
        criterion=settings.criterion,
        scale_per=settings.scale_per,
        symmetric=settings.symmetric,
        rounding=settings.rounding,
        fisher=settings.fisher,
    )
    places = [
        Place(site.name, site.size // site.channels, takes_grid(member.model, site.module)) for site in member.sites
    ]
    return site_spaces(places, wishes, exclude=settings.exclude, rules=settings.rules, target=TARGETS[config.target])


def _groups(config: Config, member: Member) -> tuple[GroupSpace, ...]:
    ratios: Sequence[float] = config.space.channels
    if not any(ratios):
        return ()
    if not member.groups:
        why = "; ".join(f"{name}: {reason}" if name else reason for name, reason in member.skipped.items())
        raise ConfigError(f"space.channels: given {list(ratios)}, but no channel of the model can be removed: {why}")
    multiple = channel_pruning_of(config).multiple
    found = [
        GroupSpace(one.name, group_ratios(one.channels, (0.0, *ratios), one.step(multiple))) for one in member.groups
    ]
    return tuple(one for one in found if any(one.ratios))


def _blocks(config: Config, member: Member, groups: Collection[str]) -> tuple[Block, ...]:
    """The blocks that may be dropped, each with its sites, and with those groups that are all of them in it."""
    if not config.space.blocks:
        return ()
    if not member.blocks:
        raise ConfigError("space.blocks: given true, but the model has no residual block that can be left out")
    names = [site.name for site in member.sites]
    members = {one.name: one.members for one in member.groups if one.name in groups} if groups else {}

    def inside(block: str) -> Block:
        sites = tuple(name for name in names if name.startswith(f"{block}."))
        own = [name for name, those in members.items() if all(f"{one}.".startswith(f"{block}.") for one in those)]
        return Block(block, sites, tuple(own))

    return tuple(inside(name) for name in member.blocks)
