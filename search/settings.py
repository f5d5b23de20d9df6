"""What is settled before choices are made, and what the choices that are left cost: models, channels, blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compress.family import Variant
from compress.layer import Cost
from spaces.policy import Policy
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


def policy_of(space: Space, setting: Setting) -> Policy:
    """A policy of a setting, without choices: what is left of the model does not depend on them."""
    return space.make({}, model=setting.model, channels=setting.channels, dropped=setting.dropped)
