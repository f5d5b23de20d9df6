"""How much each channel of a group matters, and how many of them stay."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal, assert_never

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.pruning.random_scores import random_scores
from compress.pruning.taylor import taylor
from compress.sites import Site, find_sites
from compress.statistics import SiteStatistics
from compress.structure import FREE, ChannelGroup, Cut
from spaces.choice import ChannelCriterion
from spaces.errors import CandidateError


@torch.no_grad()
def scores(
    model: nn.Module,
    group: ChannelGroup,
    criterion: ChannelCriterion,
    statistics: Mapping[str, SiteStatistics] | None = None,
) -> torch.Tensor:
    """How much each unit of a group matters, float64 (channels,); those with the least go first.

    - `l1`, `l2`: norm of all coupled weights and scales (Fang et al. 2023, arXiv:2301.12900, section 3.3).
    - `random`: from the group's name alone.
    - `taylor`: squared first-order change of the loss, summed over the weights of the members (Molchanov et al. 2019,
      arXiv:1906.10771).
    - `apoz`: share of non-zero outputs, mean over the members (Hu et al. 2016, arXiv:1607.03250).
    - `batchnorm`: sum of the BatchNorm scales |gamma| (Liu et al. 2017, arXiv:1708.06519).
    - `wanda`: |w| ||x||, summed over the weights by which the layers behind read the unit (Sun et al. 2023,
      arXiv:2306.11695).
    - `hessian`: mean squared change of what the layers behind put out when they are not given the unit, the sum of
      w H w over these weights w (Luo et al. 2017, arXiv:1707.06342, eq. 6).

    Args:
        model: the model that the group was found in.
        group: the group.
        criterion: what counts.
        statistics: of the sites by name; for `taylor`, `apoz`, `wanda` and `hessian`.

    Raises:
        CandidateError: what the criterion needs is not there; it names the group and the site.
    """
    if criterion == "random":
        return random_scores(torch.empty(group.channels, 1), group.name)[:, 0].double()
    if criterion == "apoz":
        found = list(_apoz(group, statistics or {}))
        return sum(found, start=torch.zeros(group.channels, dtype=torch.float64)) / max(1, len(found))
    parts = list(_parts(model, group, criterion, statistics or {}))
    if not parts:
        raise CandidateError(f"{group.name} has nothing that {criterion} looks at; take l2 for it")
    total = sum(parts, start=torch.zeros(group.channels, dtype=torch.float64))
    return total.sqrt() if criterion == "l2" else total


def kept_channels(scores: torch.Tensor, ratio: float, multiple: int = 1) -> tuple[int, ...]:
    """The units that stay, increasing: those with the highest scores, of equal ones the first.

    Of two ratios the smaller one keeps all that the larger one keeps.

    Args:
        scores: (channels,).
        ratio: share of the units that go, 0 to below 1; 0 keeps all.
        multiple: the number that stays is rounded to a multiple of it (at least one, at most all of them); for
            multiples of channels rather than units it is `group.step(multiple)`.

    Raises:
        ValueError: a score is not a number, or the ratio or the multiple is out of range.
    """
    if not 0 <= ratio < 1 or multiple < 1:
        raise ValueError(f"ratio is {ratio} and multiple is {multiple}; they must be in 0..1 (below 1) and at least 1")
    if torch.isnan(scores).any():
        raise ValueError("a channel's score is not a number")
    channels = len(scores)
    stay = multiple * max(1, math.floor(channels * (1 - ratio) / multiple + 0.5)) if ratio else channels
    order = torch.sort(scores, descending=True, stable=True).indices
    return tuple(sorted(order[: min(stay, channels)].tolist()))


def _per_unit(group: ChannelGroup, cut: Cut, values: torch.Tensor) -> torch.Tensor:
    """Sums over what lies at each unit's positions; values have the cut tensor's shape."""
    along = values.movedim(cut.axis, 0)
    sums = along.reshape(len(along), -1).sum(dim=1)
    units = torch.tensor(cut.units)
    return sums.new_zeros(group.channels).index_add(0, units[units != FREE], sums[units != FREE])


def _parts(
    model: nn.Module,
    group: ChannelGroup,
    criterion: Literal["l1", "l2", "taylor", "batchnorm", "wanda", "hessian"],
    statistics: Mapping[str, SiteStatistics],
) -> Iterator[torch.Tensor]:
    """What each tensor of a group says about its units, (channels,) each."""
    parameters = dict(model.named_parameters())
    site_of = {site.parameter: site for site in find_sites(model)}
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for cut in group.cuts:
        if cut.tensor not in parameters or cut.tensor.rpartition(".")[2].startswith("bias"):
            continue
        weight = parameters[cut.tensor].detach().double().cpu()
        site = site_of.get(cut.tensor)
        match criterion:
            case "l1":
                yield _per_unit(group, cut, weight.abs())
            case "l2":
                yield _per_unit(group, cut, weight.square())
            case "batchnorm":
                if cut.tensor in norms:
                    yield _per_unit(group, cut, weight.abs())
            case "taylor":
                if site is not None and cut.role == "output":
                    known = statistics.get(site.name)
                    if known is None or (known.fisher is None and known.gradient is None):
                        raise CandidateError(f"{group.name}: taylor needs gradients, and {site.name} has none")
                    change = taylor(site.rows(weight), known.gradient, known.fisher)
                    yield _per_unit(group, cut, site.weight(change))
            case "wanda" | "hessian":
                if site is not None and cut.role == "input":
                    known = statistics.get(site.name)
                    if known is None or known.hessian is None:
                        why = "it has no statistics" if known is None else known.reason
                        raise CandidateError(f"{group.name}: {criterion} needs the inputs of {site.name}: {why}")
                    score = _wanda if criterion == "wanda" else _hessian
                    yield score(group, cut, site, site.rows(weight), known.hessian.double())
            case _:
                assert_never(criterion)


def _wanda(group: ChannelGroup, cut: Cut, site: Site, rows: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Sums of |w| ||x|| (eq. 1) over the weights, (channels, n), that read each unit; hessian is (blocks, n, n)."""
    size = hessian.diagonal(dim1=1, dim2=2).sqrt()  # (blocks, n), root mean square of each input
    return _per_unit(group, cut, site.weight(rows.abs() * size.repeat_interleave(len(rows) // len(size), dim=0)))


def _hessian(group: ChannelGroup, cut: Cut, site: Site, rows: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Sums of w H w over the rows, where w are the weights of a row, (channels, n), that read the unit."""
    shape = [-1 if axis == cut.axis else 1 for axis in range(len(site.shape))]
    unit_of = site.rows(torch.tensor(cut.units).reshape(shape).expand(site.shape))[0]  # (n,)
    errors = torch.zeros(group.channels, dtype=torch.float64)
    for unit in torch.unique(unit_of[unit_of != FREE]).tolist():
        at = (unit_of == unit).nonzero()[:, 0]
        for block, moments in zip(rows.chunk(len(hessian)), hessian, strict=True):
            errors[unit] += (block[:, at] @ moments[at][:, at] * block[:, at]).sum()
    return errors


def _apoz(group: ChannelGroup, statistics: Mapping[str, SiteStatistics]) -> Iterator[torch.Tensor]:
    """The share of non-zero outputs of each unit, (channels,), by each member that has one."""
    outputs = {cut.tensor: cut for cut in group.cuts if cut.role == "output"}
    known = False
    for member in group.members:
        found = statistics.get(member)
        cut = outputs.get(f"{member}.weight")
        if found is None or found.zeros is None or cut is None or len(cut.units) != len(found.zeros):
            continue
        known = True
        here = Cut(cut.tensor, 0, cut.units, cut.role)
        yield _per_unit(group, here, 1 - found.zeros.double()) / group.unit
    if not known:
        raise CandidateError(
            f"{group.name}: apoz needs the outputs of {', '.join(group.members)}, and has none of them"
        )
