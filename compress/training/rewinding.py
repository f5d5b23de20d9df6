"""Rewinding, Frankle & Carbin 2019 (arXiv:1803.03635), section 1: the weights that stay start from their early values.

Early rather than first ones, as in Frankle et al. 2020 (arXiv:1912.05671, section 3). Masks are those of the trained
weights; steps and codebooks are fitted to the early weights, which may be of another size.
"""

from dataclasses import replace
from typing import assert_never

import torch

from compress.coding import CodedWeight, Kind
from compress.quantization import codebook
from compress.quantization.uniform import encode
from compress.training.straight_through import grid_of, refit


def rewound(coded: CodedWeight, early: torch.Tensor, kept: torch.Tensor) -> CodedWeight:
    """Early weights in the coded form that the trained ones have.

    Args:
        coded: of the trained weights.
        early: (channels, n), float32, on the CPU.
        kept: boolean, (channels, n), on the CPU: what stays.
    """
    weights = torch.where(kept, early, 0.0)
    match coded.kind:
        case Kind.FLOAT32:
            return replace(coded, values=weights)
        case Kind.FLOAT16:
            return replace(coded, values=weights.half())
        case Kind.UNIFORM:
            grid = refit(weights, kept, grid_of(coded), coded.bits)
            return replace(coded, values=encode(weights, grid, coded.bits), grid=grid)
        case Kind.CODEBOOK:
            entries, exponent = codebook.fit(weights, kept, coded.bits)
            values = codebook.encode(weights, kept, entries)
            return replace(coded, values=values, entries=entries, exponent=exponent)
        case _:
            assert_never(coded.kind)
