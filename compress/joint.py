"""Compressing one site in several ways of one kind at once: the sweep, then passes in which levels and codes move."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from compress.coding import CodedWeight
from compress.hessian import Curvature
from compress.nearest import of_entries, on_grid
from compress.quantization.descent import descend, slope
from compress.quantization.gptq import sweep
from compress.quantization.levels import Entries, Levels, Steps, Unrounded
from compress.quantization.uniform import Grid, top
from compress.record import Kind

FACTORS = (1.0, 0.7, 0.85, 1.15, 1.3)  # of the steps, that are tried: a channel takes what suits it best
PASSES = 1  # of moving steps and of coordinate descent; a second one takes another 1 % off the error
CODEBOOK_PASSES = 4  # entries move more slowly; 8 take off another 1 % at 3 bits, 5 % at 2

AnyLevels = TypeVar("AnyLevels", bound=Levels)


def solve(
    rows: torch.Tensor, kept: torch.Tensor, starts: Sequence[CodedWeight], curvature: Curvature
) -> list[CodedWeight]:
    """Weights at levels of one kind, with a small output error.

    Args:
        rows: what they stand for, (jobs, channels, n): of a pruned job the best weights with its mask, from which the
            output error differs by a constant from that of the float layer's weights.
        kept: which of them stay, boolean (jobs, channels, n).
        starts: whose levels to start with, one for each job: of one kind, with as many steps each.
        curvature: of the layer's output error.
    """
    levels = _levels(starts, curvature, rows.shape[1:])
    options = [levels.scaled(factor) for factor in FACTORS] if isinstance(levels, Steps) else [levels]
    values, found = _best(rows, kept, options, curvature)
    back = curvature.rows(values)
    return [_coded(back[i], kept[i], start, found, i) for i, start in enumerate(starts)]


def _best(
    rows: torch.Tensor, kept: torch.Tensor, options: Sequence[AnyLevels], curvature: Curvature
) -> tuple[torch.Tensor, AnyLevels]:
    """Weights rounded to levels that start as one of the options, laid out, and these levels."""
    weights = curvature.laid_out(rows)
    mask = None if bool(kept.all()) else curvature.laid_out(kept)
    levels = options[0]
    if isinstance(levels, Unrounded) and not levels.half:
        return weights, levels
    values, error = sweep(weights, mask, curvature, levels)
    error = levels.units(error)
    for option in options[1:]:
        others, theirs = sweep(weights, mask, curvature, option)
        theirs = option.units(theirs)
        better = error <= theirs
        values = torch.where(better[:, :, None], values, others)
        levels = levels.where(better, option)
        error = torch.minimum(error, theirs)
    for _ in range(CODEBOOK_PASSES if isinstance(levels, Entries) else PASSES):
        levels, values = levels.refitted(values, slope(values, weights, curvature), curvature)
        descend(values, slope(values, weights, curvature), mask, curvature, levels)
    return values, levels


def _levels(starts: Sequence[CodedWeight], curvature: Curvature, shape: torch.Size) -> Levels:
    """The levels of coded weights of one kind, for all jobs together; their weights are (channels, n)."""
    grids = [start.grid for start in starts if start.grid is not None]
    if grids:
        return _steps(grids, [start.bits for start in starts], curvature, shape)
    entries = [start.entries for start in starts if start.entries is not None]
    if entries:
        most = max(len(one) for one in entries)
        padded = [torch.cat([one, one.new_full((most - len(one),), torch.inf)]) for one in entries]
        return Entries(torch.stack(padded), torch.tensor([[2.0**start.exponent] for start in starts]))
    return Unrounded(half=starts[0].kind is Kind.FLOAT16)


def _steps(grids: Sequence[Grid], bits: Sequence[int], curvature: Curvature, shape: torch.Size) -> Steps:
    """The steps of grids with as many groups each."""
    (blocks, n), channels = curvature.order.shape, shape[0]
    groups = grids[0].step.shape[1]

    def lay_out(numbers: Sequence[torch.Tensor]) -> torch.Tensor:
        whole = torch.stack([one.float().expand(channels, groups) for one in numbers])
        return whole.reshape(len(numbers), blocks, -1, groups).transpose(2, 3).contiguous()

    low = [torch.tensor(-top(b)) if g.low is None else g.low for g, b in zip(grids, bits, strict=True)]
    high = [torch.tensor(top(b)) if g.low is None else g.low + (1 << b) - 1 for g, b in zip(grids, bits, strict=True)]
    group = torch.div(curvature.order, n // groups, rounding_mode="floor")  # (blocks, n)
    member = (group[:, None] == torch.arange(groups)[:, None]).float()  # (blocks, groups, n)
    unit = torch.tensor([2.0**grid.exponent for grid in grids])
    step, shared = lay_out([grid.step for grid in grids]), len(grids[0].step) < channels
    return Steps(step, unit, lay_out(low), lay_out(high), member, shared)


def _coded(values: torch.Tensor, kept: torch.Tensor, start: CodedWeight, levels: Levels, job: int) -> CodedWeight:
    """One job's weights, (channels, n), as they are stored."""
    match levels:
        case Steps() if start.grid is not None:
            step = levels.step[job].transpose(1, 2).flatten(0, 1)  # (channels, groups)
            grid = replace(start.grid, step=step[: len(start.grid.step)].contiguous())
            return on_grid(values, kept, grid, start.bits)
        case Entries() if start.entries is not None:
            entries = levels.entries[job, : len(start.entries)].clone()
            return of_entries(values, kept, entries, start.exponent, start.bits)
        case _:
            values = torch.where(kept, values, 0.0)
            return replace(start, values=values.half() if start.kind is Kind.FLOAT16 else values)
