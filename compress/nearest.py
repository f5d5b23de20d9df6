"""A site's weights rounded to nearest: each for itself, whatever that does to the layer's output."""

from typing import assert_never

import torch

from compress.coding import CodedWeight
from compress.quantization import codebook, uniform
from compress.quantization.uniform import Grid
from compress.record import Kind
from spaces.choice import Codebook, Float16, Float32, Uniform, Weights


def nearest(
    rows: torch.Tensor, kept: torch.Tensor, weights: Weights, fisher: torch.Tensor | None = None
) -> CodedWeight:
    """Weights as they are stored at a choice, each rounded to nearest.

    Args:
        rows: weights, (channels, n).
        kept: boolean, (channels, n); what is not kept is stored as the number zero.
        weights: how they are quantized; its rounding plays no part.
        fisher: Fisher information for codebooks that are weighted by it, (channels, n).

    Raises:
        CandidateError: the group size does not divide n, or the Fisher information is negative or not finite.
    """
    match weights:
        case Uniform():
            return on_grid(rows, kept, fit_grid(rows, kept, weights), weights.bits)
        case Codebook(bits=bits):
            entries, exponent = codebook.fit(rows, kept, bits, fisher if weights.fisher else None)
            return of_entries(rows, kept, entries, exponent, bits)
        case Float16():
            return CodedWeight(Kind.FLOAT16, torch.where(kept, rows, 0.0).half(), 16)
        case Float32():
            return CodedWeight(Kind.FLOAT32, torch.where(kept, rows, 0.0), 32)
        case _:
            assert_never(weights)


def fit_grid(rows: torch.Tensor, kept: torch.Tensor, weights: Uniform) -> Grid:
    """The grid of a choice with the least squared error of the kept weights."""
    return uniform.fit(
        rows,
        kept,
        weights.bits,
        scale_per=weights.scale_per,
        group_size=weights.group_size,
        symmetric=weights.symmetric,
    )


def on_grid(rows: torch.Tensor, kept: torch.Tensor, grid: Grid, bits: int) -> CodedWeight:
    """Weights rounded to the nearest levels of a grid."""
    return CodedWeight(Kind.UNIFORM, torch.where(kept, uniform.encode(rows, grid, bits), 0), bits, grid=grid)


def of_entries(rows: torch.Tensor, kept: torch.Tensor, entries: torch.Tensor, exponent: int, bits: int) -> CodedWeight:
    """Weights rounded to the nearest entries of a codebook."""
    codes = codebook.encode(rows, kept, entries)
    return CodedWeight(Kind.CODEBOOK, codes, bits, entries=entries, exponent=exponent)
