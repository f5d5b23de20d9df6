"""Corrections on calibration data after the weights have changed, each kept only where it lowers the loss there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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


@torch.no_grad()
def correct(model: nn.Module, corrections: Sequence[Correction], loss: Callable[[nn.Module], float]) -> float:
    """Make corrections one after the other, in place, each undone where it does not lower the loss.

    Args:
        model: of ours, in evaluation mode.
        corrections: in this order.
        loss: of a model on calibration data.

    Returns:
        The loss that remains.
    """
    best = loss(model)
    for correction in corrections:
        touched = correction.touched(model)
        if not touched:
            continue
        before = [tensor.clone() for tensor in touched]
        correction(model)
        now = loss(model)
        if now < best:
            best = now
            continue
        for tensor, old in zip(touched, before, strict=True):
            tensor.copy_(old)
    return best


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
