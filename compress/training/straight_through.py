"""Weights that are trained as they will be stored, Bengio et al. 2013 (arXiv:1308.3432), section 4: straight-through.

The forward pass uses the masked and rounded weights, gradients go to float ("latent") ones as if nothing was rounded.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from compress.coding import CodedWeight, Kind
from compress.quantization.uniform import Grid, dequantize, encode, fit, spread, top
from compress.training.optimizers import Learned
from spaces.choice import ScalePer


class TrainedWeight(ABC):
    """One site's weight in training.

    Args:
        coded: the coded weight that was found without training: its kind, bits and grid stay.
        latent: the float weight, (channels, n), on the device where it is trained.
        kept: boolean, (channels, n): which weights stay.
        free: pruned weights get the gradient, too, so that they can come back when the mask is chosen anew.
    """

    def __init__(self, coded: CodedWeight, latent: torch.Tensor, kept: torch.Tensor, *, free: bool) -> None:
        self._like, self._free = coded, free
        self.kept = kept
        start = latent.detach().clone() if free else torch.where(kept, latent.detach(), 0.0)
        self.latent = start.requires_grad_()

    @property
    def masked(self) -> torch.Tensor:
        """The latent weight with zeros where it is pruned, (channels, n)."""
        return torch.where(self.kept, self.latent, 0.0)  # times 0 would be -0.0, which is coded as a value of its own

    def learned(self) -> Sequence[Learned]:
        """What is trained besides the latent weight."""
        return ()

    def choose(self, kept: torch.Tensor) -> None:
        """Take another mask, (channels, n)."""
        self.kept = kept

    def state(self) -> dict[str, torch.Tensor]:
        """All that training has changed, on its device."""
        return {"latent": self.latent.detach(), "kept": self.kept}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Become what `state` was taken of, another one of the same coded weight."""
        self.latent.copy_(state["latent"])
        self.kept = state["kept"].to(self.latent.device)

    @abstractmethod
    def stored(self) -> torch.Tensor:
        """The weights as they will be stored, (channels, n), float32, with gradients to what is trained."""

    @abstractmethod
    def coded(self) -> CodedWeight:
        """The weights as they are now, on the CPU."""


class TrainedFloat(TrainedWeight):
    """Float32 or float16 weights."""

    def stored(self) -> torch.Tensor:
        """The masked weights in their precision, (channels, n), float32, with gradients to the latent ones."""
        return through(self.latent, self._values().float(), None if self._free else self.kept)

    @torch.no_grad()
    def _values(self) -> torch.Tensor:
        return self.masked.half() if self._like.kind is Kind.FLOAT16 else self.masked

    def coded(self) -> CodedWeight:
        """The weights as they are now, on the CPU."""
        return replace(self._like, values=self._values().cpu().clone())


class TrainedCodes(TrainedWeight):
    """Codes on a uniform grid that stays, but for new masks; weights beyond its ends have no gradient."""

    def __init__(self, coded: CodedWeight, latent: torch.Tensor, kept: torch.Tensor, *, free: bool) -> None:
        self._grid = on_device(grid_of(coded), latent.device)
        self._alive = spread(self._grid.step > 0, latent.shape[1])
        super().__init__(coded, latent, kept & self._alive, free=free)  # where there is no step there are zeros
        self._set_ends()

    def _set_ends(self) -> None:
        low, high = ends(self._grid, self._like.bits)
        n = self.latent.shape[1]
        self._low, self._high = (spread(end * self._grid.step, n) for end in (low, high))

    def stored(self) -> torch.Tensor:
        """The decoded codes, (channels, n), float32, with gradients to the latent weights."""
        with torch.no_grad():
            if self._grid.low is None:
                inside = self.latent.abs() <= self._high
            else:
                inside = (self.latent >= self._low) & (self.latent <= self._high)
            values = dequantize(encode(self.masked, self._grid, self._like.bits), self._grid)
        return through(self.latent, values, inside if self._free else inside & self.kept)

    @torch.no_grad()
    def choose(self, kept: torch.Tensor) -> None:
        """Take another mask, (channels, n), and the grid that is best for it where that lowers the squared error."""
        weights = torch.where(kept, self.latent, 0.0)
        new = refit(weights, kept, self._grid, self._like.bits)
        if _error(weights, new, self._like.bits) < _error(weights, self._grid, self._like.bits):
            self._grid = new
            self._alive = spread(new.step > 0, weights.shape[1])
            self._set_ends()
        super().choose(kept & self._alive)

    def state(self) -> dict[str, torch.Tensor]:
        """All that training has changed: also the grid, which new masks change."""
        low = {} if self._grid.low is None else {"low": self._grid.low}
        return super().state() | low | {"step": self._grid.step, "exponent": torch.tensor(self._grid.exponent)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Become what `state` was taken of."""
        super().restore(state)
        grid = Grid(state["step"], int(state["exponent"]), state.get("low"))
        self._grid = on_device(grid, self.latent.device)
        self._alive = spread(self._grid.step > 0, self.latent.shape[1])
        self._set_ends()

    @torch.no_grad()
    def coded(self) -> CodedWeight:
        """The weights as they are now, on the CPU."""
        values = encode(self.masked, self._grid, self._like.bits).cpu().clone()
        return replace(self._like, values=values, grid=on_device(self._grid, "cpu"))


def through(latent: torch.Tensor, values: torch.Tensor, passes: torch.Tensor | None) -> torch.Tensor:
    """`values`, whose gradient is that of the latent weights where it passes (None: everywhere)."""
    found: torch.Tensor = _Through.apply(latent, values, passes)  # type: ignore[no-untyped-call]
    return found


class _Through(torch.autograd.Function):
    """Forward the rounded values; backward the gradient as if nothing was rounded, where it passes."""

    @staticmethod
    def forward(ctx: Any, latent: torch.Tensor, values: torch.Tensor, passes: torch.Tensor | None) -> torch.Tensor:
        """`values`."""
        ctx.save_for_backward(passes)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The gradient of the latent weights."""
        (passes,) = ctx.saved_tensors
        return grads[0] if passes is None else grads[0] * passes, None, None


def grid_of(coded: CodedWeight) -> Grid:
    """The grid of uniform codes.

    Raises:
        ValueError: the weight has none.
    """
    if coded.grid is None:
        raise ValueError(f"a {coded.kind.name} weight has no grid")
    return coded.grid


def on_device(grid: Grid, device: torch.device | str) -> Grid:
    """The same grid on a device."""
    low = None if grid.low is None else grid.low.to(device)
    return Grid(grid.step.to(device), grid.exponent, low)


def ends(grid: Grid, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest code of each step, float32 in the step's shape."""
    if grid.low is None:
        high = torch.full_like(grid.step, float(top(bits)))
        return -high, high
    low = grid.low.float()
    return low, low + float((1 << bits) - 1)


def refit(weights: torch.Tensor, kept: torch.Tensor, like: Grid, bits: int) -> Grid:
    """The grid of the same form that fits weights (channels, n) best, on their device."""
    (channels, n), (rows, groups) = weights.shape, like.step.shape
    scale_per: ScalePer = "tensor" if rows < channels else "channel" if groups == 1 else "group"
    found = fit(
        weights.cpu(),
        kept.cpu(),
        bits,
        scale_per=scale_per,
        group_size=n // groups if scale_per == "group" else None,
        symmetric=like.low is None,
    )
    return on_device(found, weights.device)


def _error(weights: torch.Tensor, grid: Grid, bits: int) -> float:
    return float((dequantize(encode(weights, grid, bits), grid) - weights).double().square().sum())
