"""The candidates that are tried first: uniform policies, and those of the predicted front."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compress.family import Variant
from compress.layer import Cost
from objectives.evaluation import seed_of
from search.config import Config
from search.sensitivity import predicted_front, spread
from search.study import Origin
from spaces.policy import Choice, Policy
from spaces.site_space import SiteSpace
from spaces.space import Space

MOST_DROPPED = 8  # residual blocks of which each alone is left out in a setting of its own


@dataclass(frozen=True)
class Setting:
    """What is settled before choices are made: a model, its channels, its blocks.

    Attributes:
        model: a student's name; None is the model that was brought.
        channels: share of channels removed, by group.
        dropped: blocks left out.
        sites: what may be chosen at the sites that are left.
    """

    sites: tuple[SiteSpace, ...]
    model: str | None = None
    channels: Mapping[str, float] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Priced:
    """A setting with what its choices cost: for each site, in the order of its choices.

    Attributes:
        variant: the float model of the setting.
    """

    setting: Setting
    variant: Variant
    costs: Sequence[Sequence[Cost]]

    @property
    def smallest(self) -> int:
        """Bytes of its smallest packed file."""
        return self.variant.layout.file_bytes(sum(min(cost.bytes for cost in own) for own in self.costs))


def settings_of(space: Space) -> list[Setting]:
    """The settings that first candidates are taken from; where they are too many, the last ones go without."""
    found = [Setting(space.sites), *(Setting(student.sites, student.name) for student in space.students)]
    ratios = sorted({ratio for group in space.groups for ratio in group.ratios if ratio > 0})
    for ratio in ratios:
        channels = {one.name: min(one.ratios, key=lambda r: (abs(r - ratio), r)) for one in space.groups}
        found.append(Setting(space.sites, channels={name: r for name, r in channels.items() if r > 0}))
    if space.groups or space.blocks:
        channels = {group.name: max(group.ratios) for group in space.groups}
        gone = tuple(name for block in space.blocks for name in block.sites)
        found.append(Setting(_without(space.sites, gone), None, channels, tuple(block.name for block in space.blocks)))
    for block in space.blocks[:MOST_DROPPED]:
        found.append(Setting(_without(space.sites, block.sites), dropped=(block.name,)))
    return list({(one.model, tuple(one.channels.items()), one.dropped): one for one in found}.values())


def _without(sites: Sequence[SiteSpace], gone: Sequence[str]) -> tuple[SiteSpace, ...]:
    return tuple(site for site in sites if site.name not in gone)


def uniform(config: Config, space: Space, priced: Sequence[Priced]) -> list[tuple[Origin, Policy]]:
    """As many uniform policies as the config says: unpruned ones first, the others spread evenly over log bytes.

    Half of them, at most, are those of the widest weights in the other settings: fewer channels, smaller models.
    """
    found = space.uniform()
    whole = priced[0]
    by_site = {
        site.name: dict(zip(site.choices(), own, strict=True))
        for site, own in zip(space.sites, whole.costs, strict=True)
    }
    size = [np.log(sum(by_site[name][choice].bytes for name, choice in sites.items())) for sites in found]
    others = [_widest(one.setting) for one in priced[1:]][: config.sampler.uniform // 2]
    count = config.sampler.uniform - len(others)
    plain = [i for i, sites in enumerate(found) if not any(choice.ratio for choice in sites.values())]
    taken = plain[:count]
    rest = [i for i in range(len(found)) if i not in taken]
    while rest and len(taken) < count:  # the one farthest in size from those taken
        farthest = max(rest, key=lambda i: (min((abs(size[i] - size[j]) for j in taken), default=0.0), -i))
        taken.append(farthest)
        rest.remove(farthest)
    distillation = config.distillation
    temperature = float(np.sqrt(distillation.temperature[0] * distillation.temperature[1]))
    alpha = sum(distillation.alpha) / 2
    policies = [space.make(found[i], temperature, alpha) for i in taken]
    policies += [
        space.make(sites, temperature, alpha, model=setting.model, channels=setting.channels, dropped=setting.dropped)
        for setting, sites in others
    ]
    return [("uniform", policy) for policy in policies]


def _widest(setting: Setting) -> tuple[Setting, dict[str, Choice]]:
    return setting, {site.name: site.nearest(site.kinds[0], 0.0, 32) for site in setting.sites}


def predicted(config: Config, space: Space, priced: Sequence[Priced], float_bytes: int) -> list[tuple[Origin, Policy]]:
    """Policies of the predicted front at random temperatures, spread evenly along it.

    They go from the smallest to a quarter of the float model; to the largest where no file is that small. Half of them
    are of the whole model, the others of the other settings in turn.
    """
    count = config.sampler.predicted
    share = [count] if len(priced) == 1 else [count - count // 2]
    share += [count // 2 // (len(priced) - 1) + (i < count // 2 % (len(priced) - 1)) for i in range(len(priced) - 1)]
    found: list[tuple[Origin, Policy]] = []
    for one, wished in zip(priced, share, strict=True):
        for sites in _front(one, wished, float_bytes):
            draw = random.Random(seed_of(config.seed, f"predicted {len(found)}"))  # noqa: S311 - not for secrets
            low, high = config.distillation.temperature
            temperature = float(min(high, max(low, low * (high / low) ** draw.random())))
            alpha = draw.uniform(*config.distillation.alpha)
            setting = one.setting
            policy = space.make(
                sites, temperature, alpha, model=setting.model, channels=setting.channels, dropped=setting.dropped
            )
            found.append(("predicted", policy))
    return found


def _front(priced: Priced, count: int, float_bytes: int) -> list[dict[str, Choice]]:
    """Choices of up to `count` policies along the predicted front of a setting."""
    total, errors, chosen = predicted_front(
        [[cost.bytes for cost in own] for own in priced.costs], [[cost.error for cost in own] for own in priced.costs]
    )
    files = np.array([priced.variant.layout.file_bytes(int(one)) for one in total])
    quarter = float_bytes / 4
    largest = quarter if quarter > files[0] else float(files[-1])
    sites = priced.setting.sites
    return [
        {site.name: site.choices()[i] for site, i in zip(sites, chosen[state], strict=True)}
        for state in spread(files, errors, count, largest)
    ]
