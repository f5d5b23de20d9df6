"""The inputs of layers rounded to unsigned integers, Jacob et al. 2018 (arXiv:1712.05877), section 2.1.

A range always includes zero, and zero is always a level, so padding and ReLU's zeros stay exact. Gradients pass
straight through the rounding inside the range and stop outside it (Bengio et al. 2013, arXiv:1308.3432).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import nn

from spaces.errors import CandidateError

BITS = range(4, 9)
OUTSIDE = 1000  # percentile ranges leave one value of so many outside at each end: 99.9 %
SHARES = tuple(2.0 ** (-i / 6) for i in range(48))  # of a range's end that are tried as the clip, down to 1/228
_TINY = float(torch.finfo(torch.float32).tiny)
_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class InputGrid:
    """The levels of a site's input: `step * (code - zero)`, codes 0 to 2**bits - 1.

    Attributes:
        bits: 4 to 8.
        low: least value of the range, at most 0 and exact in float32; None: the range of each sample's tensor.
        high: largest value, at least 0 and exact in float32; None where low is.

    Raises:
        ValueError: a number is out of these bounds.

    Example:
        >>> grid = InputGrid(bits=4, low=-0.5, high=1.0)
        >>> grid.zero, fake_quantize(torch.tensor([[-2.0, 0.0, 0.26]]), grid)
        (5, tensor([[-0.5000,  0.0000,  0.3000]]))
    """

    bits: int
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"{self.bits} bits for activations; {BITS[0]} to {BITS[-1]} are possible")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"the range is {self.low} to {self.high}: give both ends, or none for a dynamic range")
        if self.low is None or self.high is None:
            return
        if not -float("inf") < self.low <= 0 <= self.high < float("inf"):
            raise ValueError(f"the range {self.low} to {self.high} is not finite or does not include zero")
        if _float32(self.low) != self.low or _float32(self.high) != self.high:
            raise ValueError(f"the range {self.low!r} to {self.high!r} is not exact in float32")

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def step(self) -> float:
        """Distance of two levels of a static range, exact in float32, never 0."""
        if self.low is None or self.high is None:
            raise ValueError("a dynamic range has a step for each sample")
        return max(_TINY, _float32((self.high - self.low) / self.top))

    @property
    def zero(self) -> int:
        """The code of the number zero in a static range."""
        if self.low is None:
            raise ValueError("a dynamic range has a zero point for each sample")
        return min(self.top, round(-self.low / self.step))


def fake_quantize(values: torch.Tensor, grid: InputGrid) -> torch.Tensor:
    """Values rounded to a grid and back, in their own type; the arithmetic is float32, division and half-to-even.

    Args:
        values: floating point, (samples, ...); a dynamic range is taken over all axes but the first, so what one
            sample gets does not depend on the others.
        grid: the levels.
    """
    x = values.float()
    if grid.low is None:
        axes = tuple(range(1, x.dim())) or (0,)
        fixed = x.detach()
        low, high = fixed.amin(axes, keepdim=True).clamp(max=0.0), fixed.amax(axes, keepdim=True).clamp(min=0.0)
        step = (high / grid.top - low / grid.top).clamp(min=_TINY)  # not (high - low) / top, which may overflow
        zero = (-low / step).round().clamp(max=grid.top)
    else:
        # tensors: a division by a Python number is a multiplication by its inverse on some devices
        step = torch.full((), grid.step, dtype=torch.float32, device=x.device)
        zero = torch.full((), float(grid.zero), dtype=torch.float32, device=x.device)
    codes = ((x / step).round() + zero).clamp(0, grid.top)  # eq. 1
    levels = (codes - zero) * step
    if torch.is_grad_enabled() and x.requires_grad:
        inside = torch.minimum(torch.maximum(x, -zero * step), (grid.top - zero) * step)
        levels = levels.detach() + (inside - inside.detach())  # the sum is exactly the levels
    return levels.to(values.dtype)


@torch.no_grad()
def fit_range(sample: torch.Tensor, bits: int, how: Literal["minmax", "percentile", "mse"]) -> tuple[float, float]:
    """The static range of a site's input.

    `minmax` takes the least and the largest value, `percentile` leaves 0.1 % of the values outside at each end, `mse`
    takes, among shrunken ranges, the one with the least squared error after rounding (Banner et al. 2019,
    arXiv:1810.05723, by enumeration): both ends together, then each alone, until nothing gets better.

    Args:
        sample: input values seen in calibration, any shape, not empty.
        bits: 4 to 8.
        how: the way.

    Returns:
        (low, high), low <= 0 <= high, exact in float32.

    Raises:
        CandidateError: a value is not finite, or there is none.
    """
    values = sample.detach().float().flatten().cpu()
    if values.numel() == 0 or not bool(torch.isfinite(values).all()):
        raise CandidateError(
            f"an activation range needs finite values, but of {values.numel()} calibration inputs "
            f"{int((~torch.isfinite(values)).sum())} are not: look at the layers before"
        )
    match how:
        case "minmax":
            return min(0.0, float(values.min())), max(0.0, float(values.max()))
        case "percentile":
            outside = values.numel() // OUTSIDE
            low, high = (float(values.kthvalue(k).values) for k in (1 + outside, values.numel() - outside))
            return min(0.0, low), max(0.0, high)
        case "mse":
            return _least_error(values, bits)
        case _:
            assert_never(how)


def _least_error(values: torch.Tensor, bits: int) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))

    def error(shares: tuple[float, float]) -> float:
        grid = InputGrid(bits, _float32(low * shares[0]), _float32(high * shares[1]))
        return float((fake_quantize(values, grid).double() - values.double()).square().sum())

    best = min(((share, share) for share in SHARES), key=error)
    while low < 0 < high:
        better = min(((share, best[1]) for share in SHARES), key=error)
        better = min(((better[0], share) for share in SHARES), key=error)
        if error(better) >= error(best):
            break
        best = better
    return _float32(low * best[0]), _float32(high * best[1])


@dataclass(frozen=True)
class QuantizeInput:
    """A forward pre-hook that rounds the first argument of a layer to a grid.

    Attributes:
        name: dotted name of the layer, for errors.
        grid: the levels.
    """

    name: str
    grid: InputGrid

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, the first one rounded.

        Raises:
            CandidateError: it is no tensor of floating point numbers.
        """
        first = arguments[0] if arguments else keywords.get("input")
        if not isinstance(first, torch.Tensor) or not first.is_floating_point():
            got = first.dtype if isinstance(first, torch.Tensor) else type(first).__name__
            raise CandidateError(f"site {self.name}: its input is {got}, which is not floating point: {_FIX}")
        rounded = self.quantize(first)
        if arguments:
            return (rounded, *arguments[1:]), keywords
        return arguments, {**keywords, "input": rounded}

    def quantize(self, values: torch.Tensor) -> torch.Tensor:
        """The values rounded to the grid."""
        return fake_quantize(values, self.grid)


_FIX = "leave its activations float"


def quantize_inputs(model: nn.Module, grids: Mapping[str, InputGrid]) -> None:
    """Round the inputs of the named layers from now on, in place on a model of ours; an earlier grid is replaced.

    Args:
        model: gets forward pre-hooks, which deep copies, `functional_call` and export keep.
        grids: by dotted name of a Linear, Conv or ConvTranspose.

    Raises:
        CandidateError: a name is no such layer of the model, or its weights are used without calling it.
    """
    layers = {name: _layer(model, name) for name in grids}
    for name, layer in layers.items():
        _leave_float(layer)
        layer.register_forward_pre_hook(QuantizeInput(name, grids[name]), with_kwargs=True)


def leave_inputs_float(model: nn.Module) -> None:
    """Take back, in place, what `quantize_inputs` did to a model."""
    for layer in model.modules():
        _leave_float(layer)


def takes_grid(model: nn.Module, name: str) -> bool:
    """Whether `quantize_inputs` can round the input of the layer of this dotted name."""
    try:
        _layer(model, name)
    except CandidateError:
        return False
    return True


def input_grids(model: nn.Module) -> dict[str, InputGrid]:
    """The grids that `quantize_inputs` gave a model, by the layers' dotted names."""
    return {
        name: hook.grid
        for name, layer in model.named_modules()
        for hook in layer._forward_pre_hooks.values()
        if isinstance(hook, QuantizeInput)
    }


def _leave_float(layer: nn.Module) -> None:
    for key in [key for key, hook in layer._forward_pre_hooks.items() if isinstance(hook, QuantizeInput)]:
        del layer._forward_pre_hooks[key]
        layer._forward_pre_hooks_with_kwargs.pop(key, None)


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        layer = model.get_submodule(name)
        parent = model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        raise CandidateError(f"site {name}: it has no layer of its own whose input could be rounded: {_FIX}") from None
    if not isinstance(layer, _LAYERS):
        raise CandidateError(
            f"site {name}: the input of a {type(layer).__name__} cannot be rounded, "
            f"only that of Linear, Conv and ConvTranspose: {_FIX}"
        )
    if isinstance(parent, nn.MultiheadAttention):
        raise CandidateError(f"site {name}: nn.MultiheadAttention uses its weights without calling it: {_FIX}")
    return layer


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
