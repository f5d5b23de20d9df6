"""BatchNorm folded into the layer before it, Jacob et al. 2018 (arXiv:1712.05877), section 3.2."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.flow import Change, change_where_equal, own_weight, trace
from compress.inputs import Inputs, take

CHUNK = 32
_OUTPUTS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Folded:
    """A model without the BatchNorms that could be folded.

    Attributes:
        model: new, in evaluation mode; the folded norms are `nn.Identity`.
        factors: by the dotted name of the layer before, what its output channels were multiplied by, (channels,).
    """

    model: nn.Module
    factors: Mapping[str, torch.Tensor]


def fold_batchnorms(model: nn.Module, inputs: Inputs, chunk: int = CHUNK) -> Folded:
    """A new model in which a BatchNorm directly behind a Conv, ConvTranspose or Linear is part of that layer.

    It is left alone where something else uses the layer's output, or where the outputs on `inputs` would change.

    Args:
        model: is not touched.
        inputs: samples to check on.
        chunk: samples a batch.
    """
    model = copy.deepcopy(model).eval()
    flow = trace(model, take(inputs, slice(0, 2)))
    modules = dict(model.named_modules())
    factors: dict[str, torch.Tensor] = {}
    changes: dict[str, Change] = {}
    for name, layer in modules.items():
        reader = flow.only_reader(name)
        norm = modules[reader] if reader is not None else None
        if reader is not None and isinstance(norm, _BatchNorm) and _fits(layer, norm) and own_weight(model, name):
            factors[name] = _factor(norm)
            changes[name] = _Fold(name, reader)
    new, kept = change_where_equal(model, inputs, changes, chunk)
    return Folded(new, {name: factors[name] for name in kept})


def _fits(layer: nn.Module, norm: _BatchNorm) -> bool:
    """Whether a layer has as many output channels as a norm with fixed statistics."""
    if norm.running_mean is None or norm.running_var is None:
        return False
    if isinstance(layer, _TRANSPOSED):
        return layer.groups == 1 and layer.out_channels == norm.num_features
    return isinstance(layer, _OUTPUTS_FIRST) and layer.weight.shape[0] == norm.num_features


@torch.no_grad()
def _factor(norm: _BatchNorm) -> torch.Tensor:
    """The norm's gamma / sqrt(variance + epsilon), (channels,), float32."""
    assert norm.running_var is not None  # noqa: S101 - _fits
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    return (factor * norm.weight.double() if norm.affine else factor).float()


@dataclass(frozen=True)
class _Fold:
    """Folds one norm in place."""

    layer: str
    norm: str

    def __call__(self, model: nn.Module) -> None:
        layer, norm = model.get_submodule(self.layer), model.get_submodule(self.norm)
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None  # noqa: S101, PT018 - _fits
        weight, factor, mean = layer.get_parameter("weight"), _factor(norm), norm.running_mean.double()
        if layer._parameters.get("bias") is not None:
            mean = mean - layer.get_parameter("bias").double()
        bias = -mean * factor.double()
        if norm.affine:
            bias = bias + norm.bias.double()
        shape = [1] * weight.dim()
        shape[1 if isinstance(layer, _TRANSPOSED) else 0] = -1
        weight.copy_(weight.float() * factor.reshape(shape))  # eq. 14
        layer.register_parameter("bias", nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad))
        for holder in list(model.modules()):
            for child, module in list(holder.named_children()):
                if module is norm:
                    setattr(holder, child, nn.Identity())
