"""Random coded weights of every kind."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from compress.coding import CodedWeight, Coding, Form, Kind
from compress.packing import GAP_BITS
from compress.quantization import codebook
from compress.quantization.activations import InputGrid
from compress.quantization.uniform import Grid, encode, fit
from tests.models import random_tensor

WAYS = [(Form.DENSE, 0), (Form.BITMAP, 0), *((Form.RELATIVE, bits) for bits in GAP_BITS)]
KINDS = [
    (Kind.FLOAT32, 32),
    (Kind.FLOAT16, 16),
    *((Kind.UNIFORM, bits) for bits in range(2, 9)),
    *((Kind.CODEBOOK, bits) for bits in range(1, 9)),
]
INTEGERS = KINDS[2:]
INPUTS = [None, InputGrid(4), InputGrid(8, -0.5, 1.25), InputGrid(5, -0.0, 2.0**127)]
ONE = Grid(torch.ones(1, 1), 0)
CODINGS: tuple[Coding, ...] = ("packed", "entropy")
SHARES = (0.0, 0.01, 0.05, 0.2, 0.4, 0.5, 0.6, 0.9, 1.0)


def kinds(which: list[tuple[Kind, int]]) -> pytest.MarkDecorator:
    names = [f"{kind.name.lower()}{bits}" for kind, bits in which]
    return pytest.mark.parametrize(("kind", "bits"), which, ids=names)


every_kind, every_integer = kinds(KINDS), kinds(INTEGERS)


def divisor(n: int) -> int | None:
    """The largest size of groups of which a channel of n weights has several."""
    return next((size for size in range(n // 2, 1, -1) if n % size == 0), None)


@cache
def coded(kind: Kind, bits: int, shape: tuple[int, int], share: float, seed: int = 0) -> CodedWeight:
    """Random weights, of which a share is kept, their grid and inputs of a kind that depends on the seed."""
    rows = random_tensor(*shape, seed=seed)
    draw = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1))
    kept, inputs = draw < share, INPUTS[seed % len(INPUTS)]
    if kind is Kind.UNIFORM:
        size = divisor(shape[1]) if seed % 3 == 2 else None
        per = "group" if size else "tensor" if seed % 3 == 1 else "channel"
        symmetric = seed % 2 == 0
        grid = fit(rows + (not symmetric), kept, bits, scale_per=per, group_size=size, symmetric=symmetric)  # type: ignore[arg-type]
        return CodedWeight(kind, encode(torch.where(kept, rows, 0.0), grid, bits), bits, grid, inputs=inputs)
    if kind is Kind.CODEBOOK:
        rows = rows * 10.0 ** (seed % 5 - 2)
        entries, exponent = codebook.fit(rows, kept, bits)
        values = codebook.encode(rows, kept, entries)
        return CodedWeight(kind, values, bits, entries=entries, exponent=exponent, inputs=inputs)
    awkward = torch.tensor([-0.0, 1e-45, -1e-40, 6e-8, float(torch.finfo(torch.float16).max), 1.0])
    rows = torch.where(draw < share / 4, awkward[torch.arange(rows.numel()).reshape(shape) % 6], rows)
    values = torch.where(kept, rows, 0.0)
    return CodedWeight(kind, values.half() if kind is Kind.FLOAT16 else values, bits, inputs=inputs)


def forced(one: CodedWeight, form: Form, gap_bits: int) -> CodedWeight:
    """The same weights, which will be written in this form."""
    new = replace(one)
    new.__dict__["_shortest"] = new.__dict__["_shortest_of_all"] = (-1, form, gap_bits)
    return new


def equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Equal to the bit, or both missing."""
    if one is None or other is None:
        return one is other
    same = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def same(one: CodedWeight, other: CodedWeight) -> bool:
    """Equal to the bit."""
    grids = (one.grid is None) == (other.grid is None)
    if one.grid is not None and other.grid is not None:
        grids = equal(one.grid.step, other.grid.step) and equal(one.grid.low, other.grid.low)
        grids = grids and one.grid.exponent == other.grid.exponent
    plain = (one.kind, one.bits, one.exponent, one.inputs) == (other.kind, other.bits, other.exponent, other.inputs)
    return plain and grids and equal(one.entries, other.entries) and equal(one.values, other.values)
