"""Uniform quantization with scales for a tensor, its channels or groups, clipped where the squared error is least.

The scale search is the one of Banner et al. 2019 (arXiv:1810.05723, "ACIQ") by enumeration instead of by a
distribution: among shares of the range, the one with the least squared error is taken. Asymmetric grids are those of
Jacob et al. 2018 (arXiv:1712.05877), section 2.1, their codes counted from the zero point.
"""

from dataclasses import dataclass

import torch

from spaces.choice import ScalePer
from spaces.errors import CandidateError

CLIPS = tuple(i / 32 for i in range(32, 3, -1))  # shares of the range that are tried as the clip
TRIES = 4  # clips that are tried together
BLOCK = 1 << 14  # weights that are tried together: they stay in cache, and few are summed in one order
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Grid:
    """The levels of a site's weights: weight = code * step, so code 0 is the number zero.

    Attributes:
        step: float32, exact in float16 times 2**exponent: (1, 1) for the tensor, (channels, 1) for its channels,
            (channels, groups) for groups of n / groups consecutive columns.
        exponent: the power of two of the steps.
        low: int16 of the step's shape, the smallest code, -2**bits + 1 to 0: codes lie in low to low + 2**bits - 1.
            None: symmetric, codes lie in -top(bits) to top(bits).
    """

    step: torch.Tensor
    exponent: int
    low: torch.Tensor | None = None


def top(bits: int) -> int:
    """The largest code of a symmetric grid: codes run from -top to top (2 bits: -1, 0, 1)."""
    return (1 << (bits - 1)) - 1


def exponent_of(scale: torch.Tensor) -> int:
    """The power of two that brings the largest scale of a site to [1, 2), so that float16 never overflows.

    At least -126, since 2**126 is the largest power that float32 holds together with its inverse.
    """
    largest = float(scale.max())
    return max(-126, int(torch.frexp(torch.tensor(largest)).exponent) - 1) if largest > 0 else 0


def fit(
    rows: torch.Tensor,
    kept: torch.Tensor,
    bits: int,
    *,
    scale_per: ScalePer = "channel",
    group_size: int | None = None,
    symmetric: bool = True,
) -> Grid:
    """The grid with the least squared error of the kept weights, among clips of each scale's range.

    Args:
        rows: weights, (channels, n).
        kept: boolean, (channels, n); what is not kept is zero, which is always a level.
        bits: 2 to 8.
        scale_per: what shares a scale.
        group_size: columns of a channel that share a scale; None unless that is a group.
        symmetric: as many levels below zero as above.

    Raises:
        CandidateError: the group size does not divide n.

    Example:
        >>> rows = torch.tensor([[-1.0, 0.0, 2.0, 3.0]])
        >>> grid = fit(rows, rows == rows, 3)
        >>> encode(rows, grid, 3), grid.step
        (tensor([[-1,  0,  2,  3]], dtype=torch.int8), tensor([[1.]]))
    """
    channels, n = rows.shape
    shape = (1, 1) if scale_per == "tensor" else (channels, 1)
    if scale_per == "group":
        if group_size is None or n % group_size:
            raise CandidateError(f"group_size {group_size} does not divide {n} weights a channel")
        shape = (channels, n // group_size)
    cells = torch.where(kept, rows, 0.0).reshape(shape[0] * shape[1], -1)  # (scales, weights of a scale)
    low, high = torch.aminmax(cells, dim=1, keepdim=True)
    exponent = exponent_of(torch.maximum(-low, high) / top(bits))
    # in units of 2**exponent, which changes no digit: the square of 1e-30 or 1e30 is none that float32 holds
    units = cells * 2.0**-exponent
    blocks = torch.split(units, max(1, 64 * BLOCK // units.shape[1]))  # each stops where a narrower clip cannot help
    found = [(_symmetric if symmetric else _asymmetric)(block, bits) for block in blocks]
    step = torch.cat([one.step for one in found]).reshape(shape) * 2.0**exponent
    step = torch.where(step < TINY, 0.0, step)  # its inverse would be infinite
    if symmetric:
        return Grid(step, exponent)
    return Grid(step, exponent, torch.cat([one.code for one in found]).reshape(shape).to(torch.int16))


def encode(rows: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """Nearest codes, int8 (int16 if asymmetric); where the step is zero they are zero."""
    scaled = rows * spread(_inverse(grid.step), rows.shape[1])
    if grid.low is None:
        return scaled.round_().clamp_(-top(bits), top(bits)).to(torch.int8)
    low = spread(grid.low.to(scaled.dtype), rows.shape[1])
    return scaled.round_().clamp_(low, low + (1 << bits) - 1).to(torch.int16)


def dequantize(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes times steps, float32."""
    return codes.float() * spread(grid.step, codes.shape[1])


def spread(numbers: torch.Tensor, n: int) -> torch.Tensor:
    """What a grid has for the tensor, a channel or a group, in a shape that broadcasts against (channels, n)."""
    groups = numbers.shape[1]
    return numbers if groups == 1 else numbers.repeat_interleave(n // groups, dim=1)


def _inverse(step: torch.Tensor) -> torch.Tensor:
    return torch.where(step > 0, 1 / step, 0.0)


def _symmetric(cells: torch.Tensor, bits: int) -> "_Search":
    """Try clips of the largest magnitude."""
    search = _Search(cells.abs())
    for clips in search.clips():
        if not search.offer(search.high * clips / top(bits), None, top(bits)):
            break
    return search


def _asymmetric(cells: torch.Tensor, bits: int) -> "_Search":
    """Try what is best with as many levels on both sides, then clips of the range: both ends, then each alone."""
    search, levels = _Search(cells), (1 << bits) - 1
    step = _symmetric(cells, bits).step
    for code in (-top(bits) - 1, -top(bits)):
        search.offer(step[None], torch.full_like(step, code)[None], levels)
    for ends in ("both", "high", "low"):
        found = search.code * search.step, (search.code + levels) * search.step
        search.outside.zero_()
        for clips in search.clips():
            low = found[0] if ends == "high" else search.low * clips
            high = found[1] if ends == "low" else search.high * clips
            steps = ((high - low) / levels).half().float()
            if not search.offer(steps, (low * _inverse(steps)).round_().clamp_(-levels, 0), levels):  # Jacob, eq. 1
                break
    return search


class _Search:
    """The best steps so far of some scales, and their smallest codes; it starts with steps of zero.

    Args:
        cells: weights in units of a power of two, (scales, weights of a scale).

    Attributes:
        low, high: ends of the range, which includes zero, (scales, 1).
        step, code: the best, (scales, 1).
        outside: what weights outside the codes add to the error at least, at any of the steps, (scales, 1).
    """

    def __init__(self, cells: torch.Tensor) -> None:
        self._height = max(1, BLOCK // cells.shape[1])
        self._parts = [torch.split(rows, BLOCK, dim=1) for rows in torch.split(cells, self._height)]
        low, high = torch.aminmax(cells, dim=1, keepdim=True)
        self.low, self.high = low.clamp(max=0), high.clamp(min=0)
        self.step, self.code, self.outside = torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low)
        self._error = cells.square().sum(dim=1, keepdim=True)
        self._inside = torch.count_nonzero(cells, dim=1)[:, None] / 4  # half a step for each weight is the most

    def clips(self) -> tuple[torch.Tensor, ...]:
        """Some clips at a time, wide ones first, (tries, 1, 1)."""
        return torch.split(self.high.new_tensor(CLIPS)[:, None, None], TRIES)

    def offer(self, steps: torch.Tensor, codes: torch.Tensor | None, levels: int) -> bool:
        """Keep of some steps, which are rounded to float16, the one with the least error if it is the best yet.

        Args:
            steps: (tries, scales, 1).
            codes: the smallest codes, of the same shape; None: 0.
            levels: the largest code less the smallest.

        Returns:
            Whether narrower clips can have less error than the best.
        """
        steps = steps.half().float()
        squares = self._squares(_inverse(steps), codes, levels)
        errors = torch.where(steps > 0, squares * steps.square(), torch.inf)
        which = errors.argmin(dim=0, keepdim=True)
        error = errors.gather(0, which)[0]
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self.step = torch.where(better, steps.gather(0, which)[0], self.step)
        if codes is not None:
            self.code = torch.where(better, codes.gather(0, which)[0], self.code)
        self.outside = torch.maximum(self.outside, ((squares - self._inside) * steps.square()).amax(dim=0))
        return bool((self.outside < self._error).any())

    def _squares(self, inverse: torch.Tensor, codes: torch.Tensor | None, levels: int) -> torch.Tensor:
        """Squared errors in units of the step, (tries, scales, 1)."""
        found = torch.zeros_like(inverse)
        for i, parts in zip(range(0, inverse.shape[1], self._height), self._parts, strict=True):
            rows = slice(i, i + self._height)
            for part in parts:
                scaled = part * inverse[:, rows]
                if codes is not None:
                    scaled.sub_(codes[:, rows])
                nearest = scaled.round().clamp_(0, levels)
                found[:, rows] += scaled.sub_(nearest).square_().sum(dim=2, keepdim=True)
        return found
