"""Corrections on calibration data after the weights have changed, each kept only where it lowers the loss there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.distillation import OutputKind, sample_losses, soft_loss
from compress.inputs import Inputs, call, chunks, count, same_draws
from compress.sites import Site


class Correction(Protocol):
    """Changes a model of ours in place."""

    def touched(self, model: nn.Module) -> list[torch.Tensor]:
        """The tensors that it changes; none where it has nothing to do."""

    def __call__(self, model: nn.Module) -> None:
        """Do it."""


@dataclass(frozen=True)
class BatchNormStatistics:
    """BatchNorm's statistics estimated anew: a compressed network's activations are not those it was trained with.

    Adaptive BatchNorm of Li et al. 2020 ("EagleEye", arXiv:2007.02491, section 3). It saves heavily pruned networks and
    can hurt lightly pruned ones.

    Attributes:
        inputs: calibration samples.
        chunk: samples a forward pass.
        device: where the model is.
    """

    inputs: Inputs
    chunk: int
    device: torch.device | str = "cpu"

    def touched(self, model: nn.Module) -> list[torch.Tensor]:
        """The running statistics."""
        return [buffer for layer in batchnorms(model) for buffer in layer.buffers()]

    def __call__(self, model: nn.Module) -> None:
        """Replace the running statistics by those of the calibration samples."""
        reestimate_batchnorm(model, self.inputs, self.chunk, self.device)


@dataclass(frozen=True)
class BiasCorrection:
    """What each output channel lost on average is added to its bias, Nagel et al. 2019 (arXiv:1906.04721), section 4.2.

    Attributes:
        sites: of the model.
        shifts: by site what to add to the bias of its layer, (channels,); layers without a bias stay as they are (a
            BatchNorm behind them takes the shift up).
    """

    sites: Sequence[Site]
    shifts: Mapping[str, torch.Tensor]

    def touched(self, model: nn.Module) -> list[torch.Tensor]:
        """The biases of the sites that have one and a shift."""
        return [bias for bias, _ in self._pairs(model)]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Add the shifts."""
        for bias, shift in self._pairs(model):
            bias += shift.to(bias)

    def _pairs(self, model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
        modules = dict(model.named_modules(remove_duplicate=False))
        found = []
        for site in self.sites:
            module, _, parameter = site.parameter.rpartition(".")
            bias = modules[module]._parameters.get("bias") if parameter == "weight" else None
            if bias is not None and site.name in self.shifts and not site.tied:
                found.append((bias, self.shifts[site.name]))
        return found


class Loss(Protocol):
    """A loss on calibration data."""

    def __call__(self, model: nn.Module, enough: float = math.inf) -> float:
        """Of a model of ours; infinite where it is more than `enough`, if that is known before all samples are."""


@dataclass(frozen=True, eq=False)
class DistanceToTeacher:
    """The soft loss (T = 1) on calibration data.

    Attributes:
        inputs: calibration samples.
        teacher: the float model's outputs for them, (samples, ...), on the CPU.
        kind: of outputs.
        chunk: samples a forward pass.
        device: where the models are.
        weights: how much the loss of each sample counts, float64 (samples,); None is their mean.
    """

    inputs: Inputs
    teacher: torch.Tensor
    kind: OutputKind
    chunk: int
    device: torch.device | str = "cpu"
    weights: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(self, model: nn.Module, enough: float = math.inf) -> float:
        """The loss of a model; it is a mean of what is not negative, so a part of the sum may be enough."""
        model.eval()
        parts: list[torch.Tensor] = []
        count = self.teacher.shape[0]
        weights = torch.full((count,), 1 / count, dtype=torch.float64) if self.weights is None else self.weights
        most, total, seen = enough * (1 + 1e-4) + 1e-6, 0.0, 0
        with same_draws(self.device):
            for part in chunks(self.inputs, self.chunk, self.device):
                parts.append(call(model, part).float().cpu())
                if enough < math.inf:
                    teacher = self.teacher[seen : seen + self.chunk]
                    losses = sample_losses(parts[-1], teacher, self.kind).double()
                    total += float((losses * weights[seen : seen + self.chunk]).sum())
                    seen += self.chunk
                    if total > most:
                        return math.inf
        if self.weights is None:
            return float(soft_loss(torch.cat(parts), self.teacher, 1.0, self.kind))
        return float((sample_losses(torch.cat(parts), self.teacher, self.kind).double() * weights).sum())


@torch.no_grad()
def correct(model: nn.Module, corrections: Sequence[Correction], loss: Loss) -> float:
    """Make corrections one after the other, in place, each undone where it does not lower the loss.

    Args:
        model: of ours, in evaluation mode.
        corrections: in this order.
        loss: on calibration data.

    Returns:
        The loss that remains.
    """
    best: float | None = None
    for correction in corrections:
        touched = correction.touched(model)
        if not touched:
            continue
        before = _copies(touched)
        correction(model)
        if best is None:  # most often it helps, and then the loss that was there need not be known to the end
            now, after = loss(model), _copies(touched)
            _put(touched, before)
            best = loss(model, now)
            if now < best:
                _put(touched, after)
                best = now
            continue
        now = loss(model, best)
        if now < best:
            best = now
        else:
            _put(touched, before)
    return loss(model) if best is None else best


def _copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors]


def _put(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, inputs: Inputs, chunk: int, device: torch.device | str = "cpu") -> None:
    """Replace the running statistics by the averages over the chunks of `inputs`, in place."""
    layers = batchnorms(model)
    momenta = [layer.momentum for layer in layers]
    model.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average over the chunks
            layer.train()
        with same_draws(device):
            for part in chunks(inputs, chunk, device):
                if not 1 == count(part) < min(chunk, count(inputs)):  # one sample left over has no variance
                    call(model, part)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
