"""One site pruned and rounded in many ways at once, its weights making up for each other's errors.

Masks are chosen (`pruning/sparsegpt.py`) and the weights that stay fitted to them (`pruning/refilling.py`); then the
rows of all ways go together through GPTQ's sweep (`quantization/gptq.py`) and passes of coordinate descent
(`quantization/descent.py`), before each of which the levels move (`quantization/levels.py`). What comes out for one way
does not depend on which others there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from compress.coding import CodedWeight
from compress.hessian import Curvature, UnusableHessianError, curvature, output_error
from compress.joint import solve
from compress.nearest import nearest
from compress.pruning import semistructured, sparsegpt, unstructured
from compress.pruning.magnitude import magnitude
from compress.pruning.refilling import refill
from spaces.choice import SemiStructured, Unstructured, Weights

WEIGHTS = 2**22  # that go through the columns together: 16 MiB
STEPS = 30  # of fitting the weights that stay to the mask


@dataclass(frozen=True)
class Job:
    """One way to compress a site.

    Attributes:
        weights: how they are quantized; its rounding plays no part, as all are compensated.
        kept: which of them stay, boolean (channels, n); None: all, or those that `prune` chooses.
        prune: the mask is chosen here, by the output error; None: it is not.
    """

    weights: Weights
    kept: torch.Tensor | None = None
    prune: Unstructured | SemiStructured | None = None


@dataclass(frozen=True)
class Swept:
    """A site compressed in one way.

    Attributes:
        coded: the weights as they are stored.
        kept: which of them were not pruned, boolean (channels, n).
        note: why nothing was compensated: the weights are rounded to nearest, pruned by magnitude; None: they are.
    """

    coded: CodedWeight
    kept: torch.Tensor
    note: str | None = None


@torch.no_grad()
def compensate(
    rows: torch.Tensor,
    hessian: torch.Tensor | None,
    jobs: Sequence[Job],
    *,
    fisher: torch.Tensor | None = None,
    name: str = "(unnamed)",
) -> list[Swept]:
    """Compress one site in many ways with a small error of its output on calibration data.

    The output error of a channel (of all channels, where they share a step or a codebook) is never more than with the
    same mask and rounding to nearest.

    Args:
        rows: weights, float32 (channels, n).
        hessian: mean over positions of x x^T, (blocks, n, n); block b belongs to the b-th of as many parts of the rows.
            None, or one that cannot be inverted: all is rounded to nearest, with a note.
        jobs: the ways.
        fisher: Fisher information for codebooks that are weighted by it, (channels, n).
        name: of the site, for errors.

    Raises:
        CandidateError: a group size or an m does not divide n.
    """
    rows = rows.detach().float()
    try:
        found = curvature(hessian)
    except UnusableHessianError as problem:
        masks = [_magnitude_mask(rows, job, name) for job in jobs]
        plain = [nearest(rows, kept, job.weights, fisher) for job, kept in zip(jobs, masks, strict=True)]
        return [Swept(coded, kept, str(problem)) for coded, kept in zip(plain, masks, strict=True)]
    masks = _masks(rows, jobs, found, name)
    plain = [nearest(rows, kept, job.weights, fisher) for job, kept in zip(jobs, masks, strict=True)]
    fitted = _fitted(rows, masks, found)
    starts = [
        one if fit is rows else _in_units_of(nearest(fit, kept, job.weights, fisher), one)
        for job, kept, fit, one in zip(jobs, masks, fitted, plain, strict=True)
    ]
    done: dict[int, CodedWeight] = {}
    for batch in _batches(starts, rows.numel()):
        targets, kept = (torch.stack([one[i] for i in batch]) for one in (fitted, masks))
        done.update(zip(batch, solve(targets, kept, [starts[i] for i in batch], found), strict=True))
    return [Swept(_better(rows, done[i], plain[i], found.raw), masks[i]) for i in range(len(jobs))]


def _masks(rows: torch.Tensor, jobs: Sequence[Job], found: Curvature, name: str) -> list[torch.Tensor]:
    """Which weights stay, for each job; jobs of one pruning share one tensor."""
    everything = torch.ones_like(rows, dtype=torch.bool)
    prunes = list(dict.fromkeys(job.prune for job in jobs if job.kept is None and job.prune is not None))
    chosen = dict(zip(prunes, sparsegpt.masks(rows, found, prunes, name), strict=True)) if prunes else {}
    return [
        job.kept if job.kept is not None else everything if job.prune is None else chosen[job.prune] for job in jobs
    ]


def _magnitude_mask(rows: torch.Tensor, job: Job, name: str) -> torch.Tensor:
    match job:
        case Job(kept=torch.Tensor() as kept):
            return kept
        case Job(prune=Unstructured(ratio=ratio)):
            return unstructured.mask(magnitude(rows), ratio)
        case Job(prune=SemiStructured(n=n, m=m)):
            return semistructured.mask(magnitude(rows), n, m, name=name)
        case _:
            return torch.ones_like(rows, dtype=torch.bool)


def _fitted(rows: torch.Tensor, masks: Sequence[torch.Tensor], found: Curvature) -> list[torch.Tensor]:
    """The best weights with each mask, (channels, n); `rows` itself where all stay."""
    pruned = {id(mask): mask for mask in masks if not bool(mask.all())}
    fitted: dict[int, torch.Tensor] = {}
    most = max(1, WEIGHTS // rows.numel())
    for start in range(0, len(pruned), most):
        part = list(pruned.values())[start : start + most]
        weights, kept = found.laid_out(rows.expand(len(part), *rows.shape)), found.laid_out(torch.stack(part))
        values = found.rows(refill(weights, weights, kept, found, STEPS))
        fitted.update((id(mask), one) for mask, one in zip(part, values, strict=True))
    return [fitted.get(id(mask), rows) for mask in masks]


def _in_units_of(start: CodedWeight, plain: CodedWeight) -> CodedWeight:
    """A start whose steps are half-precision numbers times the other's power of two: channels may take either's."""
    if start.grid is None or plain.grid is None:
        return start
    step = (start.grid.step * 2.0**-plain.grid.exponent).half().float() * 2.0**plain.grid.exponent
    return replace(start, grid=replace(start.grid, step=step, exponent=plain.grid.exponent))


def _batches(starts: Sequence[CodedWeight], size: int) -> list[list[int]]:
    """Positions of jobs whose levels are of one kind, as many together as memory allows."""
    families: dict[object, list[int]] = {}
    for i, start in enumerate(starts):
        families.setdefault((start.kind, None if start.grid is None else start.grid.step.shape), []).append(i)
    most = max(1, WEIGHTS // size)
    return [family[i : i + most] for family in families.values() for i in range(0, len(family), most)]


def _better(rows: torch.Tensor, found: CodedWeight, plain: CodedWeight, hessian: torch.Tensor) -> CodedWeight:
    """The compensated weights, but those rounded to nearest in channels where they have less output error."""
    ours, theirs = (output_error(coded.decode() - rows, hessian) for coded in (found, plain))  # (channels,)
    if found.entries is not None or (found.grid is not None and len(found.grid.step) < len(rows)):
        return found if bool(ours.sum() <= theirs.sum()) else plain  # the channels have their levels in common
    worse = ~(ours <= theirs)[:, None]
    values = torch.where(worse, plain.values, found.values)
    if found.grid is None or plain.grid is None:
        return replace(found, values=values)
    step, low = torch.where(worse, plain.grid.step, found.grid.step), None
    if found.grid.low is not None and plain.grid.low is not None:
        low = torch.where(worse, plain.grid.low, found.grid.low)
    return replace(found, values=values, grid=replace(found.grid, step=step, low=low))
