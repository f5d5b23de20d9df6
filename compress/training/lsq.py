"""Learned step size quantization (LSQ), Esser et al. 2020 (arXiv:1902.08153): the steps of a grid are trained, too."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from compress.coding import CodedWeight
from compress.quantization.uniform import Grid, dequantize, encode, spread
from compress.training.optimizers import Learned
from compress.training.straight_through import TrainedWeight, ends, grid_of, on_device, refit

TINY = torch.finfo(torch.float32).tiny


class TrainedSteps(TrainedWeight):
    """Codes on a uniform grid whose steps are trained; where codes begin (asymmetric grids) stays.

    The step in use is the trained one rounded to what a file holds, so that what is trained is what is stored. A step
    of zero stays zero, unless a new mask keeps weights there.
    """

    def __init__(self, coded: CodedWeight, latent: torch.Tensor, kept: torch.Tensor, *, free: bool) -> None:
        grid = on_device(grid_of(coded), latent.device)
        super().__init__(coded, latent, kept & spread(grid.step > 0, latent.shape[1]), free=free)
        self._low, self._exponent = grid.low, grid.exponent
        self._alive = grid.step > 0  # the step's shape
        self.step = grid.step.clone().requires_grad_()
        self._set_scale()

    def _set_scale(self) -> None:
        _, high = ends(self._grid(), self._like.bits)
        counts = _sum_like(self.kept.float(), self.step).clamp_min(1)
        self._scale = (counts * high.clamp_min(1)).rsqrt()  # g = 1 / sqrt(N QP), section 2.2, in the step's shape

    @torch.no_grad()
    def _grid(self) -> Grid:
        """The grid in use."""
        least = max(2.0**-14, TINY * 2.0**-self._exponent)  # float16's least normal number; its inverse is finite
        half = (self.step * 2.0**-self._exponent).clamp(least, 65504.0).half().float()
        return Grid(torch.where(self._alive, half * 2.0**self._exponent, 0.0), self._exponent, self._low)

    def stored(self) -> torch.Tensor:
        """The weights as they will be stored, (channels, n), with gradients to latent weights and steps."""
        grid = self._grid()
        low, high = ends(grid, self._like.bits)
        with torch.no_grad():
            self.step.copy_(torch.where(self.step > 0, self.step, grid.step))  # it stays positive
            masked = self.masked
            codes = encode(masked, grid, self._like.bits)
            values = dequantize(codes, grid)
        passes = None if self._free else self.kept
        found: torch.Tensor = _LearnedStep.apply(
            self.latent, self.step, masked, codes, values, grid.step, low, high, passes, self._scale
        )  # type: ignore[no-untyped-call]
        return found

    def learned(self) -> Sequence[Learned]:
        """The steps: under Adam they change by the same share of their size as the weights do (section 2.2, eq. 4)."""
        size = float(self.masked.detach().square().sum() / self.kept.sum().clamp_min(1)) ** 0.5
        step = float(self.step.detach().sum() / self._alive.sum().clamp_min(1))
        return (Learned([self.step], pace=step / size if size > 0 else 1.0),)

    @torch.no_grad()
    def choose(self, kept: torch.Tensor) -> None:
        """Take another mask, (channels, n); where it keeps weights of a step that was zero, that is fitted anew."""
        bare = ~self._alive & (_sum_like(kept.float(), self.step) > 0)
        if bool(bare.any()):
            new = refit(torch.where(kept, self.latent, 0.0), kept, self._grid(), self._like.bits)
            self.step.copy_(torch.where(bare, new.step, self.step))
            if self._low is not None and new.low is not None:
                self._low = torch.where(bare, new.low, self._low)
            self._alive = self._alive | (bare & (new.step > 0))
        super().choose(kept & spread(self._alive, kept.shape[1]))
        self._set_scale()

    def state(self) -> dict[str, torch.Tensor]:
        """All that training has changed: also the steps, which are alive, and their gradients' scale."""
        low = {} if self._low is None else {"low": self._low}
        steps = {"step": self.step.detach(), "alive": self._alive, "scale": self._scale}
        return super().state() | low | steps

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Become what `state` was taken of."""
        super().restore(state)
        device = self.latent.device
        self.step.copy_(state["step"])
        self._low = state["low"].to(device) if "low" in state else None
        self._alive, self._scale = state["alive"].to(device), state["scale"].to(device)

    @torch.no_grad()
    def coded(self) -> CodedWeight:
        """The weights as they are now, on the CPU."""
        grid = self._grid()
        values = encode(self.masked, grid, self._like.bits).cpu().clone()
        return replace(self._like, values=values, grid=on_device(grid, "cpu"))


class _LearnedStep(torch.autograd.Function):
    """Forward the stored weights; backward to the latent weights and to the steps."""

    @staticmethod
    def forward(ctx: Any, *given: torch.Tensor) -> torch.Tensor:
        """Decoded weights, (channels, n), eqs. 1 and 2."""
        _, _, masked, codes, values, step, low, high, passes, scale = given
        ctx.save_for_backward(masked, codes, step, low, high, passes, scale)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the latent weights (eq. 5) and of the steps (eq. 3)."""
        masked, codes, step, low, high, passes, scale = ctx.saved_tensors
        n = masked.shape[1]
        wide = spread(step, n)
        ratio = torch.where(wide > 0, masked / wide, 0.0)  # v / s
        inside = (ratio > spread(low, n)) & (ratio < spread(high, n))
        to_latent = grads[0] * (inside if passes is None else inside & passes)
        slope = codes.float() - torch.where(inside, ratio, 0.0)  # eq. 3: round(v / s) - v / s, or -QN, or QP
        to_step = _sum_like(grads[0] * slope, step) * scale
        return to_latent, to_step, *[None] * 8


def _sum_like(numbers: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Sums of numbers (channels, n) over what shares a step, in the step's shape."""
    rows, groups = step.shape
    channels, n = numbers.shape
    if rows < channels:
        return numbers.sum().reshape(1, 1)
    return numbers.reshape(channels, groups, n // groups).sum(dim=2)
