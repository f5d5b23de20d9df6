"""The models that a workload offers, whole or with channels and blocks cut out, and the packed files of each."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from compress.artifact import Layout, Opened, fingerprint_of, open_packed
from compress.calibration import batchnorms
from compress.inputs import Inputs
from compress.pruning.blocks import find_blocks
from compress.pruning.channels import find_groups
from compress.restriction import Excerpt
from compress.sites import Site, find_sites
from compress.structure import ChannelGroup, Structure, restructure
from spaces.errors import ArtifactError, CandidateError
from spaces.target import CodingName

KEPT_VARIANTS = 8


@dataclass(frozen=True, eq=False)
class Variant:
    """A float model with some channels and blocks cut out, or none.

    Attributes:
        member: whose it is.
        model: in evaluation mode; to be copied, not changed.
        sites: those that are left.
        cuts: by site which of its weights are left; empty where nothing is cut out.
        layout: of its packed files.
    """

    member: "Member"
    model: nn.Module
    sites: tuple[Site, ...]
    cuts: Mapping[str, Excerpt]
    layout: Layout

    @property
    def is_brought(self) -> bool:
        """Whether it is the brought model with nothing cut out."""
        return self.member.name is None and not self.cuts


class Member:
    """One of the models that a workload offers.

    Args:
        name: of a smaller model that the workload offers; None is the one that was brought.
        model: the float model, in evaluation mode; it is read, never changed.
        example: one batch of inputs.
        entry: of the workload.
        coding: how packed files are coded.
    """

    def __init__(
        self, name: str | None, model: nn.Module, example: Inputs | None, entry: str, coding: CodingName = "packed"
    ) -> None:
        self.name, self.model, self.entry, self.coding = name, model, entry, coding
        self._example = example
        self.sites = find_sites(model)
        self.fingerprint = fingerprint_of(model, self.sites, name)
        self._variants: OrderedDict[tuple[Structure, bool], Variant] = OrderedDict()

    @cached_property
    def whole(self) -> Variant:
        """All of it."""
        layout = Layout(self.model, self.sites, self.entry, self.fingerprint, coding=self.coding)
        return Variant(self, self.model, self.sites, {}, layout)

    @cached_property
    def _groups(self) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
        return find_groups(self.model, self._sample())

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Its groups of channels."""
        return self._groups[0]

    @property
    def skipped(self) -> Mapping[str, str]:
        """Why what has no group has none."""
        return self._groups[1]

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Its residual blocks that can be left out."""
        return find_blocks(self.model, self._sample())

    def _sample(self) -> Inputs:
        if self._example is None:
            raise ArtifactError(
                f"a model of {self.entry} with channels or blocks cut out is rebuilt from an example input: give one"
            )
        return self._example

    def variant(self, structure: Structure, *, refit: bool = False) -> Variant:
        """The model with what a structure leaves out cut out.

        Args:
            structure: what is left.
            refit: whether compressed weights are fitted to the inputs that are left.

        Raises:
            CandidateError: the structure does not fit the model.
        """
        bits = self._bits(structure)
        if not bits:
            return self.whole
        key = (structure, refit)
        if key in self._variants:
            self._variants.move_to_end(key)
            return self._variants[key]
        cut = restructure(self.model, self.groups, structure)
        sites = find_sites(cut.model)
        modules = dict(cut.model.named_modules())
        normed = bool(batchnorms(cut.model))
        cuts = {
            site.name: Excerpt(
                cut.index[site.parameter], refit, normed or getattr(modules.get(site.module), "bias", None) is not None
            )
            for site in sites
        }
        layout = Layout(cut.model, sites, self.entry, self.fingerprint, bits, self.coding)
        self._variants[key] = Variant(self, cut.model, sites, cuts, layout)
        if len(self._variants) > KEPT_VARIANTS:
            self._variants.popitem(last=False)
        return self._variants[key]

    def _bits(self, structure: Structure) -> bytes:
        """What a structure leaves in, as bits: each group's units, then the blocks; empty where all is left in.

        Raises:
            CandidateError: it names what the model does not have.
        """
        if not structure.dropped and not structure.kept:
            return b""
        units = {one.name: one.channels for one in self.groups}
        odd = [name for name, kept in structure.kept.items() if not set(kept) <= set(range(units.get(name, 0)))]
        if odd := sorted([*odd, *(set(structure.dropped) - set(self.blocks))]):
            raise CandidateError(f"the model has no channels or blocks {', '.join(odd)} such as the structure names")
        rows = [
            np.isin(np.arange(one.channels), structure.kept.get(one.name, range(one.channels))) for one in self.groups
        ]
        rows.append(np.array([block not in structure.dropped for block in self.blocks], bool))
        return b"" if all(row.all() for row in rows) else b"".join(np.packbits(row).tobytes() for row in rows)

    def structure_of(self, opened: Opened) -> Structure:
        """What a packed file of this model says was cut out.

        Raises:
            ArtifactError: its bits do not fit this model.
        """
        if not opened.structure:
            return Structure()
        counts = [*(group.channels for group in self.groups), len(self.blocks)]
        widths = [(count + 7) // 8 for count in counts]
        if len(opened.structure) != sum(widths):
            raise ArtifactError(
                f"{opened.path}: {len(opened.structure)} bytes of structure, expected {sum(widths)}: the file is "
                "damaged, or channel groups were found otherwise by the version that packed it"
            )
        rows, start = [], 0
        for count, width in zip(counts, widths, strict=True):
            part = np.frombuffer(opened.structure[start : start + width], np.uint8)
            rows.append(np.flatnonzero(np.unpackbits(part, count=count)).tolist())
            start += width
        kept = {group.name: tuple(row) for group, row in zip(self.groups, rows[:-1], strict=True)}
        if empty := [name for name, row in kept.items() if not row]:
            raise ArtifactError(f"{opened.path}: no channel of {empty[0]} is left: the file is damaged")
        whole = {group.name for group in self.groups if len(kept[group.name]) == group.channels}
        dropped = tuple(block for i, block in enumerate(self.blocks) if i not in rows[-1])
        return Structure({name: row for name, row in kept.items() if name not in whole}, dropped)


class Family:
    """All models that a workload offers.

    Args:
        members: the brought model first.
    """

    def __init__(self, members: Mapping[str | None, Member]) -> None:
        self.members = dict(members)

    def __getitem__(self, name: str | None) -> Member:
        return self.members[name]

    def of_file(self, opened: Opened) -> Variant:
        """The variant that a packed file holds.

        Raises:
            ArtifactError: it was packed from another model, or is damaged.
        """
        first = next(iter(self.members.values()))
        member = next((one for one in self.members.values() if one.fingerprint == opened.fingerprint), first)
        if member.fingerprint != opened.fingerprint:
            return first.whole
        try:
            return member.variant(member.structure_of(opened))
        except CandidateError as error:
            raise ArtifactError(f"{opened.path}: {error}: the file is damaged") from error

    def load(self, path: Path) -> nn.Module:
        """The model of a packed file, in evaluation mode.

        Raises:
            ArtifactError: the file is damaged, from another version, or of another model.
        """
        return self.model_of(open_packed(path))

    def model_of(self, opened: Opened) -> nn.Module:
        """The model of a packed file that was read, in evaluation mode.

        Raises:
            ArtifactError: the file is damaged, or of another model.
        """
        return self.of_file(opened).layout.unpack(opened)
