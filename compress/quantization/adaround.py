"""AdaRound, Nagel et al. 2020 (arXiv:2004.10568): whether each weight is rounded up or down is learned.

The loss is the layer's squared output error. Its expectation is the trace of dW H dW^T with H the mean of x x^T, so it
needs no inputs and its gradient is exact: a hundred steps do where the paper takes ten thousand on samples.
"""

from dataclasses import dataclass

import torch

from compress.quantization.uniform import Grid, encode, spread, top

STEPS = 100  # of Adam; 500 lower the error by another 5 to 10 %
RATE = 0.3  # of Adam
DECAY = (0.9, 0.999)  # of Adam's means
ZETA, GAMMA = 1.1, -0.1  # the ends to which the sigmoid is stretched
STRENGTH = 1.0  # lambda of eq. 21, in units in which moving one weight by a step costs about 1
WARM = 0.2  # share of the steps before the regulariser begins
BETAS = (20.0, 2.0)  # its exponent falls from, to
PASSES = 2  # over the columns after the last step
_COLUMNS = 128  # whose changes reach the later columns together


@dataclass(frozen=True)
class _Problem:
    """Which weights may go up: (blocks, rows of a block, n), each row in units in which a step is about 1.

    Attributes:
        down: error of the weights with all rounded down.
        step: what rounding up adds; 0 where there is no choice.
        share: where the weight lies between its two codes, 0 to 1.
        hessian: (blocks, n, n), with a mean diagonal of 1.
    """

    down: torch.Tensor
    step: torch.Tensor
    share: torch.Tensor
    hessian: torch.Tensor

    def pull(self, up: torch.Tensor) -> torch.Tensor:
        """Half the gradient of the loss by the weights, dW H; `up` is a share of each step, or boolean."""
        return (self.down + up * self.step) @ self.hessian


@torch.no_grad()
def adaround(
    rows: torch.Tensor, kept: torch.Tensor, grid: Grid, bits: int, hessian: torch.Tensor, *, steps: int = STEPS
) -> torch.Tensor:
    """Codes of the weights, each the next below or the next above, chosen for a small error of the layer's output.

    A row's error is never more than that of the nearest codes: of the codes learned, and of the nearest ones improved
    by turning one at a time, it gets the better. A step costs a product of `rows` and `hessian`.

    Args:
        rows: float weights, (channels, n); those not kept count too: the others make up for their absence.
        kept: boolean, (channels, n); what is not kept gets code 0.
        grid: the levels.
        bits: 2 to 8.
        hessian: mean over positions of x x^T, (blocks, n, n); block b belongs to the b-th of as many parts of the rows.
        steps: of the optimizer.

    Returns:
        int8 (channels, n), or int16 if the grid is asymmetric; equal arguments give equal codes.
    """
    best = torch.where(kept, encode(rows, grid, bits), 0)
    lower, upper = _neighbours(rows, kept, grid, bits)
    problem = _problem(rows, lower, upper, grid, hessian)
    least = _errors(rows, best, grid, hessian)  # (channels, 1)
    for start in (problem.share > 0.5, _learn(problem, steps)):
        up = _descend(problem, start).reshape(rows.shape)
        codes = torch.where(up, upper, lower).to(best.dtype)
        error = _errors(rows, codes, grid, hessian)
        best, least = torch.where(error < least, codes, best), torch.minimum(error, least)
    return best


def _neighbours(rows: torch.Tensor, kept: torch.Tensor, grid: Grid, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes below and above each weight, within the grid, as floats; both 0 where it is not kept."""
    n = rows.shape[1]
    inverse = torch.where(grid.step > 0, 1 / grid.step, 0.0)
    below = (rows * spread(inverse, n)).floor()
    low = torch.full_like(grid.step, -top(bits)) if grid.low is None else grid.low.float()
    high = -low if grid.low is None else low + (1 << bits) - 1
    ends = spread(low, n), spread(high, n)
    lower, upper = (torch.where(kept, code.clamp(*ends), 0.0) for code in (below, below + 1))
    return lower, upper


def _problem(
    rows: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, grid: Grid, hessian: torch.Tensor
) -> _Problem:
    step = (spread(grid.step, rows.shape[1]) * 2.0**-grid.exponent).expand(rows.shape)  # at most 2: squares are numbers
    unit = step.square().mean(dim=1, keepdim=True).sqrt()  # (channels, 1)
    unit = torch.where(unit > 0, unit, 1.0)
    step, weights = step / unit, rows * 2.0**-grid.exponent / unit
    down, gap = lower * step - weights, (upper - lower) * step
    share = torch.where(gap > 0, -down / gap, 0.0).clamp(0, 1)
    size = hessian.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    down, gap, share = (part.reshape(len(hessian), -1, rows.shape[1]) for part in (down, gap, share))
    return _Problem(down, gap, share, hessian / torch.where(size > 0, size, 1.0))


def _learn(problem: _Problem, steps: int) -> torch.Tensor:
    """Which weights go up by the soft relaxation of section 3.2, boolean."""
    v = -((ZETA - GAMMA) / (problem.share - GAMMA) - 1).log()  # h(v) is the share: it starts at the float weights
    mean, square = torch.zeros_like(v), torch.zeros_like(v)
    for done in range(steps):
        sigmoid = v.sigmoid()
        stretched = sigmoid * (ZETA - GAMMA) + GAMMA
        h = stretched.clamp(0, 1)  # eq. 23
        slope = 2 * problem.pull(h) * problem.step  # of the first term of eq. 21, by h
        if (late := (done / steps - WARM) / (1 - WARM)) >= 0:
            beta = BETAS[0] + (BETAS[1] - BETAS[0]) * late
            side = 2 * h - 1
            steep = side.abs().clamp(min=0.125).pow(beta - 1)  # smaller powers are next to nothing, and slow
            slope -= STRENGTH * 2 * beta * steep * side.sign()  # of eq. 24: 1 - |2 h - 1|^beta
        slope *= (ZETA - GAMMA) * sigmoid * (1 - sigmoid) * (h == stretched)  # by v
        mean.lerp_(slope, 1 - DECAY[0])  # Adam, Kingma & Ba 2015 (arXiv:1412.6980, algorithm 1)
        square.lerp_(slope.square(), 1 - DECAY[1])
        scale = (square / (1 - DECAY[1] ** (done + 1))).sqrt_().add_(1e-8)
        v -= RATE / (1 - DECAY[0] ** (done + 1)) * mean / scale
    return v > 0  # h(v) > 1/2


def _descend(problem: _Problem, up: torch.Tensor) -> torch.Tensor:
    """Turn, column by column, what lowers the error: it decides what the relaxation left open (not in the paper)."""
    up, n = up.clone(), up.shape[2]
    for _ in range(PASSES):
        pull = problem.pull(up)
        for start in range(0, n, _COLUMNS):
            here = slice(start, min(start + _COLUMNS, n))
            moves = torch.where(up[..., here], -problem.step[..., here], problem.step[..., here])
            local, corner = pull[..., here].clone(), problem.hessian[:, here, here]
            for j in range(moves.shape[2]):
                move = moves[..., j]  # (blocks, rows)
                turned = move * (2 * local[..., j] + move * corner[:, j, j, None]) < 0  # what turning adds to the error
                move *= turned  # in place: `moves` ends as what was really moved
                local += move[..., None] * corner[:, j, None, :]
            up[..., here] ^= moves != 0
            pull[..., here.stop :] += moves @ problem.hessian[:, here, here.stop :]
    return up


def _errors(rows: torch.Tensor, codes: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> torch.Tensor:
    """The loss dW H dW^T of each row, float64 (channels, 1)."""
    n = rows.shape[1]
    lost = (codes.double() * spread(grid.step, n).double() - rows.double()).reshape(len(hessian), -1, n)
    return torch.sum((lost @ hessian.double()) * lost, dim=2).reshape(-1, 1)
