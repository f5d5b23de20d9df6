"""A site after channels were removed around it: its weights, and what calibration said about those that stay."""

import hashlib
from dataclasses import dataclass, replace

import torch

from compress.pruning.reconstruction import refit
from compress.sites import Site
from compress.statistics import SiteStatistics
from compress.structure import kept_rows


@dataclass(frozen=True)
class Excerpt:
    """The weights of a site that are left.

    Attributes:
        index: the flat index of each of them in the whole site's weight, in the smaller site's shape.
        refit: whether the weights are fitted to the inputs that are left.
        shifts: whether something behind the site takes up a constant: its bias, or BatchNorm.
    """

    index: torch.Tensor
    refit: bool = False
    shifts: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that shapes the site."""
        about = f"{tuple(self.index.shape)} {self.refit} {self.shifts} "
        return hashlib.sha256(about.encode() + self.index.numpy().tobytes()).hexdigest()


def excerpted(
    weight: torch.Tensor, statistics: SiteStatistics, whole: Site, left: Site, excerpt: Excerpt
) -> tuple[torch.Tensor, SiteStatistics, torch.Tensor | None]:
    """The weights of a smaller site, its statistics, and what its output lost on average already, (channels,)."""
    known = restricted(statistics, whole, left, excerpt.index)
    plain = weight.flatten()[excerpt.index.flatten()].reshape(left.shape)
    channels, columns = kept_rows(whole, excerpt.index)
    n = whole.size // whole.channels
    if not excerpt.refit or known.hessian is None or statistics.hessian is None or columns.shape[1] == n:
        return plain, known, None
    if len(statistics.hessian) != 1:
        return plain, known, None  # removed inputs of a grouped convolution go with whole blocks
    mean = statistics.mean if excerpt.shifts else None
    rows, shift = refit(whole.rows(weight.float())[channels], statistics.hessian, mean, columns[0])
    return left.weight(rows).to(weight.dtype), known, shift if excerpt.shifts else None


def restricted(statistics: SiteStatistics, whole: Site, left: Site, cut: torch.Tensor) -> SiteStatistics:
    """The statistics of a site with fewer channels.

    Its inputs are taken to be what they were in the whole model: those channels of them that are left.

    Args:
        statistics: of the whole site.
        whole: the site in the whole model.
        left: the site in the smaller model.
        cut: the flat index of each of its weights in the whole weight, (left.size,) or the weight's shape.
    """
    n = whole.size // whole.channels
    channels, columns = kept_rows(whole, cut.reshape(left.shape))
    rows_at = channels[:, None] * n + columns

    def matrix(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.flatten()[rows_at]

    zeros = None if statistics.zeros is None else statistics.zeros[channels]
    known = replace(statistics, gradient=matrix(statistics.gradient), fisher=matrix(statistics.fisher), zeros=zeros)
    blocks = _blocks(statistics, whole, channels, columns)
    if blocks is None:
        why = statistics.reason or "the channels that were removed are not the same in all blocks of its input"
        return replace(known, mean=None, hessian=None, reason=why)
    hessian, mean = statistics.hessian, statistics.mean
    if hessian is not None:
        hessian = torch.stack([hessian[block][own][:, own] for block, own in blocks])
    if mean is not None:
        mean = torch.stack([mean[block][own] for block, own in blocks])
    return replace(known, mean=mean, hessian=hessian)


def _blocks(
    statistics: SiteStatistics, whole: Site, channels: torch.Tensor, columns: torch.Tensor
) -> list[tuple[int, torch.Tensor]] | None:
    """For each block of rows that are left: its block in the whole site, and its columns; None where they differ."""
    known = statistics.hessian if statistics.hessian is not None else statistics.mean
    if known is None:
        return None
    count = known.shape[0]
    block_of = channels * count // whole.channels
    runs = torch.unique_consecutive(block_of, return_counts=True)
    if len(set(runs[1].tolist())) != 1:  # block b belongs to the b-th of as many equal parts of the rows
        return None
    found, start = [], 0
    for block, rows in zip(*(part.tolist() for part in runs), strict=True):
        own = columns[start : start + rows]
        if not bool((own == own[0]).all()):
            return None
        found.append((block, own[0]))
        start += rows
    return found
