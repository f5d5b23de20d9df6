"""Carrying a policy out: a new model whose sites hold decoded weights; the model that came in is untouched."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compress.coding import CodedWeight
from compress.database import LayerDatabase
from compress.layer import CompressedLayer
from compress.quantization.activations import quantize_inputs
from compress.restriction import Excerpt
from compress.sites import Site
from spaces.errors import CandidateError
from spaces.policy import Choice


@dataclass(frozen=True)
class SiteReport:
    """What was done at one site.

    Attributes:
        site: its name.
        choice: what was asked for.
        sparsity: share of its weights that are zero, 0..1.
        bytes: of its scales and codes in the packed file.
        error: squared error of its output on calibration data, relative to the output's square (of its weights, where
            the input is not known).
        note: what was done otherwise than asked for, and why; None if nothing was.
    """

    site: str
    choice: Choice
    sparsity: float
    bytes: int
    error: float
    note: str | None = None


@dataclass(frozen=True)
class Applied:
    """A compressed model, in evaluation mode, its layers by site, and what was done at each site."""

    model: nn.Module
    layers: Mapping[str, CompressedLayer]
    report: tuple[SiteReport, ...]

    @property
    def coded(self) -> dict[str, CodedWeight]:
        """The coded weights by site."""
        return {name: layer.coded for name, layer in self.layers.items()}


@torch.no_grad()
def stitch(model: nn.Module, sites: Sequence[Site], coded: Mapping[str, CodedWeight]) -> nn.Module:
    """A copy of a model, in evaluation mode, with the decoded weights of `coded` and their quantized inputs.

    Raises:
        KeyError: a site has no coded weight; none is ever skipped.
        CandidateError: the input of a site cannot be quantized.
    """
    new = copy.deepcopy(model)
    parameters = dict(new.named_parameters(remove_duplicate=False))
    for site in sites:
        parameters[site.parameter].copy_(site.weight(coded[site.name].decode()))
    grids = {}
    for site in sites:
        if (grid := coded[site.name].inputs) is not None:
            grids.update({name.rpartition(".")[0]: grid for name in (site.parameter, *site.tied)})
    quantize_inputs(new, grids)
    return new.eval()


def apply(
    model: nn.Module,
    sites: Sequence[Site],
    choices: Mapping[str, Choice],
    database: LayerDatabase,
    cuts: Mapping[str, Excerpt] | None = None,
) -> Applied:
    """Compress a model: each site as its choice says, taken from the layer database.

    Args:
        model: the float model, whole or with channels removed; it is not changed.
        sites: its sites.
        choices: one for each site.
        database: of the whole model.
        cuts: where channels were removed, which weights of each site are left.

    Raises:
        CandidateError: a choice does not fit its site, or there is one too many or too few; none is ever skipped.
    """
    if odd := sorted(choices.keys() ^ {site.name for site in sites}):
        raise CandidateError(f"the policy's sites are not those of the model: {', '.join(odd)}")
    layers = {site.name: database.layer(site, choices[site.name], (cuts or {}).get(site.name)) for site in sites}
    report = tuple(
        SiteReport(
            name,
            choices[name],
            1 - layer.coded.nonzero / layer.coded.values.numel(),
            layer.cost.bytes,
            layer.cost.error,
            layer.cost.note,
        )
        for name, layer in layers.items()
    )
    coded = {name: layer.coded for name, layer in layers.items()}
    return Applied(stitch(model, sites, coded), layers, report)
