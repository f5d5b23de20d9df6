"""What weights may be while they are rounded; and levels that move to lower the output error.

That scales are variables of the layer's error, too, is COMQ's idea (Zhang et al. 2024, arXiv:2403.07134, section 3.2).
All tensors are laid out by `Curvature.laid_out`: (jobs, blocks, n, rows).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch

from compress.hessian import Curvature, times

TINY = torch.finfo(torch.float32).tiny


class Levels(Protocol):
    """The levels of the rows of some jobs."""

    def nearest(self, weights: torch.Tensor, place: int) -> torch.Tensor:
        """The nearest levels for the weights at one place of the sweep, (jobs, blocks, rows)."""
        ...

    def units(self, numbers: torch.Tensor) -> torch.Tensor:
        """A number of each row, (jobs, blocks, rows), summed over the rows that share levels, for each of them."""
        ...

    def refitted(self, values: torch.Tensor, gradient: torch.Tensor, curvature: Curvature) -> tuple[Self, torch.Tensor]:
        """Levels moved downhill, each value staying at its level, and the values there.

        Args:
            values: at the levels, (jobs, blocks, n, rows).
            gradient: half the gradient of the output error there.
            curvature: of that error.
        """
        ...

    def where(self, chosen: torch.Tensor, other: Self) -> Self:
        """The own levels in chosen rows, (jobs, blocks, rows), and those of another in the rest."""
        ...


@dataclass(frozen=True)
class Unrounded:
    """Any float is a level, or any half-precision one."""

    half: bool = False

    def nearest(self, weights: torch.Tensor, place: int) -> torch.Tensor:
        """The weights themselves, or rounded to half precision."""
        return weights.half().float() if self.half else weights

    def units(self, numbers: torch.Tensor) -> torch.Tensor:
        """Rows share nothing."""
        return numbers

    def refitted(self, values: torch.Tensor, gradient: torch.Tensor, curvature: Curvature) -> tuple[Self, torch.Tensor]:
        """There is nothing to move."""
        return self, values

    def where(self, chosen: torch.Tensor, other: Self) -> Self:
        """They are the same."""
        return self


@dataclass(frozen=True)
class Steps:
    """Integers between bounds, times a step.

    Attributes:
        step: (jobs, blocks, groups, rows).
        unit: (jobs,), the power of two in which steps are half-precision numbers.
        low, high: smallest and largest integer, (jobs, blocks, groups, rows).
        member: (blocks, groups, n), 1 where the column at a place belongs to a group, else 0.
        shared: whether all rows of a job have one step.
    """

    step: torch.Tensor
    unit: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    member: torch.Tensor
    shared: bool

    @cached_property
    def _spread(self) -> tuple[torch.Tensor, ...]:
        """Step, its inverse, and bounds, at each place: (jobs, blocks, 1 or n, rows)."""
        inverse = torch.where(self.step > 0, 1 / self.step, 0.0)
        return tuple(self._at_places(one) for one in (self.step, inverse, self.low, self.high))

    def _at_places(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers if numbers.shape[2] == 1 else times(self.member.mT, numbers)

    def nearest(self, weights: torch.Tensor, place: int) -> torch.Tensor:
        """The nearest integer within bounds, times the step."""
        at = place if self.step.shape[2] > 1 else 0
        step, inverse, low, high = (one[:, :, at] for one in self._spread)
        scaled = (weights * inverse).round_()
        return torch.minimum(torch.maximum(scaled, low, out=scaled), high, out=scaled).mul_(step)

    def units(self, numbers: torch.Tensor) -> torch.Tensor:
        """Rows share nothing, unless they share their step."""
        return _of_job(numbers) if self.shared else numbers

    def refitted(self, values: torch.Tensor, gradient: torch.Tensor, curvature: Curvature) -> tuple[Self, torch.Tensor]:
        """Steps moved along the gradient, scaled by the diagonal, as far as is best: for one step a row exactly so."""
        codes = (values * self._spread[1]).round_()
        downhill = -times(self.member, codes * gradient)  # (jobs, blocks, groups, rows)
        curved = times(self.member, codes.square() * curvature.diagonal)
        if self.shared:
            downhill, curved = _of_job(downhill), _of_job(curved)
        change = _ratio(downhill, curved)
        length = _length(codes * self._at_places(change), gradient, curvature, self)
        step = self._held(self.step + change * length[:, :, None])
        moved = replace(self, step=torch.where((step >= TINY) & step.isfinite(), step, self.step))
        return moved, codes * moved._spread[0]

    def where(self, chosen: torch.Tensor, other: Self) -> Self:
        """The own steps in chosen rows, and those of another in the rest."""
        return replace(self, step=torch.where(chosen[:, :, None], self.step, other.step))

    def scaled(self, factor: float) -> Self:
        """All steps times a factor."""
        return replace(self, step=self._held(self.step * factor))

    def _held(self, step: torch.Tensor) -> torch.Tensor:
        """Steps as a file holds them."""
        unit = self.unit[:, None, None, None]
        return (step / unit).half().float() * unit


@dataclass(frozen=True)
class Entries:
    """The entries of one codebook for all rows of a job.

    Attributes:
        entries: (jobs, most entries), increasing; infinity behind the last of shorter ones.
        unit: (jobs, 1), the power of two in which entries are half-precision numbers.
    """

    entries: torch.Tensor
    unit: torch.Tensor

    @cached_property
    def _between(self) -> torch.Tensor:
        """The middles between entries, (jobs, most entries - 1)."""
        wide = self.entries.double()
        return ((wide[:, 1:] + wide[:, :-1]) / 2).float()

    def _codes(self, weights: torch.Tensor) -> torch.Tensor:
        """Positions of the nearest entries, (jobs, numbers), for weights (jobs, ...)."""
        return torch.searchsorted(self._between, weights.flatten(1).contiguous())

    def nearest(self, weights: torch.Tensor, place: int) -> torch.Tensor:
        """The nearest entries of the job's codebook."""
        return self.entries.gather(1, self._codes(weights)).reshape(weights.shape)

    def units(self, numbers: torch.Tensor) -> torch.Tensor:
        """The rows of a job share its codebook."""
        return _of_job(numbers)

    def refitted(self, values: torch.Tensor, gradient: torch.Tensor, curvature: Curvature) -> tuple[Self, torch.Tensor]:
        """Entries moved along the gradient, scaled by the diagonal, as far as is best."""
        codes, kept = self._codes(values), (values != 0).flatten(1)  # an entry that is zero stays where it is
        none = torch.zeros_like(self.entries)
        downhill, curved = (
            none.scatter_add(1, codes, torch.where(kept, numbers.expand_as(values).flatten(1), 0.0))
            for numbers in (-gradient, curvature.diagonal)
        )
        change = _ratio(downhill, curved)
        along = torch.where(kept, change.gather(1, codes), 0.0).reshape(values.shape)
        length = _length(along, gradient, curvature, self)[:, 0, :1]  # (jobs, 1)
        entries = ((self.entries + change * length) / self.unit).half().float() * self.unit
        inside = self.entries < torch.inf
        sound = ~inside | entries.isfinite()
        sound[:, 1:] &= ~inside[:, 1:] | (entries.diff(dim=1) > 0)
        moved = replace(self, entries=torch.where(sound.all(dim=1, keepdim=True), entries, self.entries))
        return moved, torch.where(kept, moved.entries.gather(1, codes), 0.0).reshape(values.shape)

    def where(self, chosen: torch.Tensor, other: Self) -> Self:
        """The own codebooks of chosen rows, and those of another of the rest."""
        return replace(self, entries=torch.where(chosen[:, 0, :1], self.entries, other.entries))


def _of_job(numbers: torch.Tensor) -> torch.Tensor:
    """Sums over blocks and rows of each job, for each of them; (jobs, blocks, ..., rows)."""
    return numbers.sum(dim=(1, -1), keepdim=True).expand_as(numbers)


def _ratio(over: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    return torch.where(under > 0, over / under.clamp(min=TINY), 0.0)


def _length(along: torch.Tensor, gradient: torch.Tensor, curvature: Curvature, levels: Levels) -> torch.Tensor:
    """How often to go along a direction for the least output error, (jobs, blocks, rows)."""
    slope = levels.units((along * gradient).sum(dim=2))
    return -_ratio(slope, levels.units((along * curvature.times(along)).sum(dim=2)))
