"""Carrying a policy out: a new model whose sites hold decoded weights; the model that came in is untouched."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from compress.coding import CodedWeight
from compress.sites import Site


@torch.no_grad()
def stitch(model: nn.Module, sites: Sequence[Site], coded: Mapping[str, CodedWeight]) -> nn.Module:
    """A copy of a model, in evaluation mode, with the decoded weights of `coded` at its sites.

    Raises:
        KeyError: a site has no coded weight; none is ever skipped.
    """
    new = copy.deepcopy(model)
    parameters = dict(new.named_parameters(remove_duplicate=False))
    for site in sites:
        parameters[site.parameter].copy_(site.weight(coded[site.name].decode()))
    return new.eval()
