"""BatchNorm statistics re-estimated on calibration data after the weights have changed.

Adaptive BatchNorm of Li et al. 2020 ("EagleEye", arXiv:2007.02491, section 3): the activations of a compressed network
have other statistics than those it was trained with.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.inputs import Inputs, call, chunks, count, same_draws


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


def reestimate_if_better(
    model: nn.Module,
    inputs: Inputs,
    chunk: int,
    loss: Callable[[nn.Module], float],
    device: torch.device | str = "cpu",
) -> float:
    """Re-estimate BatchNorm in place where that lowers the loss on calibration data; the loss that remains.

    It saves heavily pruned networks and can hurt lightly pruned ones, so both are tried.
    """
    before = loss(model)
    layers = batchnorms(model)
    if not layers:
        return before
    old = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    reestimate_batchnorm(model, inputs, chunk, device)
    after = loss(model)
    if after < before:
        return after
    for layer, state in zip(layers, old, strict=True):
        for name, buffer in layer.named_buffers():
            buffer.copy_(state[name])
    return before
