"""The places in a model that may be compressed, and which of them must share one decision."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from spaces.errors import WorkloadError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT_WEIGHT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")  # not weight_hh_l0_v, of which one is computed
_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)


@dataclass(frozen=True)
class Site:
    """One weight tensor that may be compressed.

    Attributes:
        name: dotted name of the module (of the parameter where the module has several weights).
        parameter: dotted name of the parameter in the state dict.
        shape: shape of the weight.
        channel_axis: the axis of output channels, one scale each.
        tied: other dotted names under which the same tensor is used; they share this decision.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    channel_axis: int
    tied: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())

    @property
    def module(self) -> str:
        """Dotted name of the module that holds the weight."""
        return self.parameter.rpartition(".")[0]

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.shape[self.channel_axis]

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as (channels, weights a channel), contiguous."""
        return weight.movedim(self.channel_axis, 0).reshape(self.channels, -1).contiguous()

    def weight(self, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of `rows`: the weight in its own shape, contiguous."""
        moved = [
            self.shape[self.channel_axis],
            *(n for i, n in enumerate(self.shape) if i != self.channel_axis),
        ]
        return rows.reshape(moved).movedim(0, self.channel_axis).contiguous()


def _weights_of(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The compressible parameters of a module itself: (name, axis of output channels)."""
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear, nn.Embedding, nn.EmbeddingBag)):
        yield "weight", 0
    elif isinstance(module, _TRANSPOSED):
        yield "weight", 1
    elif isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        yield from ((name, 0) for name in names)
    elif isinstance(module, _RECURRENT):
        own = (name for name, _ in module.named_parameters(recurse=False))
        yield from ((name, 0) for name in own if _RECURRENT_WEIGHT.fullmatch(name))


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """All sites of a model, in the order of its modules; a tied weight is one site.

    Raises:
        WorkloadError: the model has no site.
    """
    found: dict[int, Site] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for parameter, axis in _weights_of(module):
            tensor = module._parameters.get(parameter)  # a parametrized weight is computed, not kept: no site
            if tensor is None or not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            full = f"{module_name}.{parameter}" if module_name else parameter
            if (known := found.get(id(tensor))) is not None:
                found[id(tensor)] = Site(
                    known.name, known.parameter, known.shape, known.channel_axis, (*known.tied, full)
                )
                continue
            name = module_name if parameter == "weight" and module_name else full
            found[id(tensor)] = Site(name, full, tuple(tensor.shape), axis)
    if not found:
        raise WorkloadError(
            f"{type(model).__name__} has no Conv, Linear, Embedding or recurrent weight: there is nothing to compress"
        )
    return tuple(found.values())
