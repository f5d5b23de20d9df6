"""The policies that are allowed for a workload and a target, as plain axes that any sampler can use."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spaces.axes import Axis, Grid, Options, Range, first_value, on_axis
from spaces.policy import ChannelPruning, Choice, Distillation, Policy
from spaces.site_space import SiteSpace, Style

__all__ = ["Axis", "Block", "Grid", "GroupSpace", "Options", "Range", "SiteSpace", "Space", "StudentSpace", "Style"]

TRAINED = "trained"  # the value of the axis `model` that stands for the model that was brought


@dataclass(frozen=True)
class GroupSpace:
    """Shares of a group's channels that may be removed."""

    name: str
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class Block:
    """A residual block that may be left out, with the sites and groups of channels in it; no other block has them."""

    name: str
    sites: tuple[str, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudentSpace:
    """The sites of a smaller model that the workload offers."""

    name: str
    sites: tuple[SiteSpace, ...]

    @property
    def prefix(self) -> str:
        """What its axes start with."""
        return f"{self.name}:"


@dataclass(frozen=True)
class Space:
    """All policies that may be chosen.

    Attributes:
        sites: of the model that was brought.
        groups: of channels that may be removed.
        blocks: that may be left out.
        students: smaller models that may be taken instead.
        temperature: range (low, high); None when nothing is distilled, as for alpha.
        distillation: all other settings of the training, which are the same for all policies.
        smoothing: alpha of SmoothQuant, applied before all else; None is not at all.
        channel_pruning: which channels of a group go first, and how many stay.
    """

    sites: tuple[SiteSpace, ...]
    temperature: tuple[float, float] | None = None
    alpha: tuple[float, float] | None = None
    distillation: Distillation | None = None
    groups: tuple[GroupSpace, ...] = ()
    blocks: tuple[Block, ...] = ()
    students: tuple[StudentSpace, ...] = ()
    smoothing: float | None = None
    channel_pruning: ChannelPruning = field(default_factory=ChannelPruning)

    def __post_init__(self) -> None:
        if len({part is None for part in (self.temperature, self.alpha, self.distillation)}) > 1:
            raise ValueError("a space has temperature, alpha and distillation, or none of them")

    def axes(self) -> tuple[Axis, ...]:
        """Every axis along which policies differ, sites first, in model order."""
        axes = [axis for site in self.sites for axis in site.axes()]
        axes += [Grid(f"{group.name}/channels", group.ratios) for group in self.groups if len(group.ratios) > 1]
        axes += [Options(f"{block.name}/dropped", ("no", "yes")) for block in self.blocks]
        if self.students:
            axes.append(Options("model", (TRAINED, *(student.name for student in self.students))))
            axes += [axis for one in self.students for site in one.sites for axis in site.axes(one.prefix)]
        for name, limits, log in (("temperature", self.temperature, True), ("alpha", self.alpha, False)):
            if limits is not None and limits[0] < limits[1]:
                axes.append(Range(name, *limits, log=log))
        return tuple(axes)

    def document(self) -> dict[str, Any]:
        """The space as JSON-able values, for `Space.read`."""
        return {
            "sites": [site.document() for site in self.sites],
            "temperature": self.temperature,
            "alpha": self.alpha,
            "distillation": self.distillation.model_dump(mode="json") if self.distillation else None,
            "groups": [[group.name, group.ratios] for group in self.groups],
            "blocks": [[block.name, block.sites, block.groups] for block in self.blocks],
            "students": [[one.name, [site.document() for site in one.sites]] for one in self.students],
            "smoothing": self.smoothing,
            "channel_pruning": self.channel_pruning.model_dump(mode="json"),
        }

    @staticmethod
    def read(document: Mapping[str, Any]) -> "Space":
        """The inverse of `document`.

        Raises:
            KeyError, TypeError, ValueError: it is not such a document.
        """
        low_high = {key: tuple(document[key]) if document[key] else None for key in ("temperature", "alpha")}
        settings = document["distillation"]
        return Space(
            tuple(SiteSpace.read(site) for site in document["sites"]),
            **low_high,
            distillation=Distillation(**settings) if settings else None,
            groups=tuple(GroupSpace(name, tuple(ratios)) for name, ratios in document["groups"]),
            blocks=tuple(Block(name, tuple(sites), tuple(groups)) for name, sites, groups in document["blocks"]),
            students=tuple(
                StudentSpace(name, tuple(SiteSpace.read(site) for site in sites))
                for name, sites in document["students"]
            ),
            smoothing=document["smoothing"],
            channel_pruning=ChannelPruning(**document["channel_pruning"]),
        )

    @cached_property
    def _by_name(self) -> dict[str, Axis]:
        return {axis.name: axis for axis in self.axes()}

    def size(self) -> int:
        """How many different policies there are (the continuous axes are not counted)."""
        ways = {site.name: len(site.choices()) for site in self.sites}
        channels = {group.name: len(group.ratios) for group in self.groups}
        own = 1
        for block in self.blocks:  # left out it is one way, whatever would be chosen in it
            inside = [ways.pop(name) for name in block.sites] + [channels.pop(name) for name in block.groups]
            own *= 1 + math.prod(inside)
        own *= math.prod(ways.values()) * math.prod(channels.values())
        return own + sum(math.prod(len(site.choices()) for site in one.sites) for one in self.students)

    def policy(self, params: Mapping[str, Any]) -> Policy:
        """The policy at a point of the axes.

        Raises:
            ValueError: an axis is missing, unknown, or off its values.
        """
        axes = self._by_name
        if params.keys() != axes.keys():
            missing, unknown = sorted(axes.keys() - params.keys()), sorted(params.keys() - axes.keys())
            raise ValueError(f"missing axes {missing}, unknown axes {unknown}")
        at = {name: on_axis(axes[name], value) for name, value in params.items()}
        distilled = self._distillation(at.get("temperature"), at.get("alpha"))
        for student in self.students:
            if student.name == at["model"]:
                sites = {site.name: site.at(at, student.prefix) for site in student.sites}
                return Policy(sites=sites, model=student.name, smoothing=self.smoothing, distillation=distilled)
        sites = {site.name: site.at(at) for site in self.sites}
        channels = {group.name: at.get(f"{group.name}/channels", group.ratios[0]) for group in self.groups}
        dropped = tuple(block.name for block in self.blocks if at[f"{block.name}/dropped"] == "yes")
        return self._whole(sites, channels, dropped, distilled)

    def make(
        self,
        sites: Mapping[str, Choice],
        temperature: float | None = None,
        alpha: float | None = None,
        *,
        channels: Mapping[str, float] | None = None,
        dropped: tuple[str, ...] = (),
        model: str | None = None,
    ) -> Policy:
        """A policy of these choices, distilled (where this space distils) at a temperature and alpha."""
        distilled = self._distillation(temperature, alpha)
        if model is not None:
            return Policy(sites=dict(sites), model=model, smoothing=self.smoothing, distillation=distilled)
        none = {group.name: group.ratios[0] for group in self.groups}
        return self._whole(sites, {**none, **(channels or {})}, dropped, distilled)

    def _whole(
        self,
        sites: Mapping[str, Choice],
        channels: Mapping[str, float],
        dropped: tuple[str, ...],
        distilled: Distillation | None,
    ) -> Policy:
        """A policy of the brought model; equal outcomes have equal policies: what is gone has no choice."""
        left_out = [block for block in self.blocks if block.name in dropped]
        gone = {name for block in left_out for name in block.sites}
        without = {name for block in left_out for name in block.groups}
        removed = {name: ratio for name, ratio in channels.items() if ratio > 0 and name not in without}
        return Policy(
            sites={name: choice for name, choice in sites.items() if name not in gone},
            channels=removed,
            channel_pruning=self.channel_pruning if removed else None,
            dropped=dropped,
            smoothing=self.smoothing,
            distillation=distilled,
        )

    def _distillation(self, temperature: float | None, alpha: float | None) -> Distillation | None:
        if self.distillation is None or self.temperature is None or self.alpha is None:  # all three, or none
            return None
        update = {
            "temperature": self.temperature[0] if temperature is None else temperature,
            "alpha": (self.alpha[0] if alpha is None else alpha) + 0.0,
        }
        return self.distillation.model_copy(update=update)

    def params(self, policy: Policy) -> dict[str, Any]:
        """The point of the axes that gives this policy.

        Raises:
            ValueError: the policy is not in this space.
        """
        at: dict[str, Any] = {axis.name: first_value(axis) for axis in self.axes()}
        at["model"] = policy.model or TRAINED
        for sites, prefix in self._sites_of(policy):
            if others := sorted(policy.sites.keys() - {site.name for site in sites}):
                raise ValueError(f"sites {others} are not in this space")
            for site in sites:
                if (choice := policy.sites.get(site.name)) is not None:
                    at |= site.point(choice, prefix)
        at |= {f"{name}/channels": ratio for name, ratio in policy.channels.items()}
        at |= {f"{name}/dropped": "yes" for name in policy.dropped}
        if policy.distillation is not None:
            at |= {"temperature": policy.distillation.temperature, "alpha": policy.distillation.alpha}
        point = {axis.name: at[axis.name] for axis in self.axes()}
        if (found := self.policy(point)) != policy:
            raise ValueError(f"given {policy!r}, the nearest in this space is {found!r}")
        return point

    def _sites_of(self, policy: Policy) -> Iterator[tuple[tuple[SiteSpace, ...], str]]:
        if policy.model is None:
            yield self.sites, ""
            return
        found = [student for student in self.students if student.name == policy.model]
        if not found:
            raise ValueError(f"model {policy.model!r} is not in this space")
        yield found[0].sites, found[0].prefix

    def uniform(self) -> list[dict[str, Choice]]:
        """The same wish at every site of the brought model: unpruned ones first, wide to narrow, then by ratio.

        A site whose rules do not allow the wish takes the nearest choice that they do.
        """
        wishes = sorted(
            {wish for site in self.sites for wish in site.wishes()},
            key=lambda wish: (wish[0], -wish[2]),
        )
        found: dict[tuple[Choice, ...], dict[str, Choice]] = {}
        for ratio, kind, bits in wishes:
            sites = {site.name: site.nearest(kind, ratio, bits) for site in self.sites}
            found.setdefault(tuple(sites.values()), sites)
        return list(found.values())
