"""SmoothQuant, Xiao et al. 2023 (arXiv:2211.10438): outliers of activations moved into the weights behind a norm."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.flow import Flow, change_where_equal, own_weight, trace
from compress.inputs import Inputs, outputs, take

CHUNK = 32


@dataclass(frozen=True)
class Pair:
    """A norm and the Linear layers that are all that uses its output, by dotted names."""

    norm: str
    layers: tuple[str, ...]


def smooth(
    model: nn.Module, inputs: Inputs, alpha: float = 0.5, chunk: int = CHUNK
) -> tuple[nn.Module, tuple[Pair, ...]]:
    """A new model with the same outputs whose Linear layers behind norms have inputs without outliers.

    A norm's weight and bias are divided by s, one for each channel, and the input columns of the Linear layers behind
    it are multiplied by it. A pair that would change the model's outputs is left as it is.

    Args:
        model: is not touched.
        inputs: calibration samples, whose largest magnitudes count.
        alpha: how much of the difficulty moves from the activations into the weights, 0 to 1.
        chunk: samples a batch.

    Returns:
        The new model, in evaluation mode, and what was smoothed.

    Raises:
        ValueError: alpha is not in 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie in 0 to 1")
    model = copy.deepcopy(model).eval()
    pairs = {pair.norm: pair for pair in _pairs(model, trace(model, take(inputs, slice(0, 2))))}
    largest = _largest_inputs(model, inputs, list(pairs), chunk)
    scales = {name: _scale(model, pair, largest[name], alpha) for name, pair in pairs.items()}

    changes = {name: _Divide(pair, scales[name]) for name, pair in pairs.items()}
    new, kept = change_where_equal(model, inputs, changes, chunk)
    return new, tuple(pairs[name] for name in kept)


def _pairs(model: nn.Module, flow: Flow) -> Iterator[Pair]:
    for name, norm in model.named_modules():
        layers = flow.readers.get(name, ())
        if layers and _is_norm(norm) and len(set(layers)) == len(layers):
            linear = all(isinstance(model.get_submodule(layer), nn.Linear) for layer in layers)
            if linear and all(own_weight(model, part) and flow.calls[part] == 1 for part in (name, *layers)):
                yield Pair(name, layers)


def _is_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm, or one of a model's own called so, over one axis; what it really does is checked later."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1 and type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


def _largest_inputs(model: nn.Module, inputs: Inputs, norms: list[str], chunk: int) -> Mapping[str, torch.Tensor]:
    """The largest |x| of each channel of the norms' outputs, (channels,)."""
    largest: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name in norms:

            def look(_module: nn.Module, _arguments: Any, result: torch.Tensor, name: str = name) -> None:
                seen = result.detach().float().abs().reshape(-1, result.shape[-1]).amax(dim=0)
                largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

            hooks.callback(model.get_submodule(name).register_forward_hook(look).remove)
        if norms:
            outputs(model, inputs, chunk, next(model.parameters()).device)
    return largest


@torch.no_grad()
def _scale(model: nn.Module, pair: Pair, largest: torch.Tensor, alpha: float) -> torch.Tensor:
    """The s of each channel, (channels,); 1 where a channel or its weights are all zero."""
    weights = [model.get_submodule(name).get_parameter("weight").float().abs().amax(dim=0) for name in pair.layers]
    weight = torch.stack(weights).amax(dim=0)
    scale = largest**alpha / weight ** (1 - alpha)  # eq. 4
    return torch.where((largest > 0) & (weight > 0) & torch.isfinite(scale), scale, 1.0)


@dataclass(frozen=True)
class _Divide:
    """Eq. 3, in place: X diag(s)^-1 · diag(s) W."""

    pair: Pair
    scale: torch.Tensor

    def __call__(self, model: nn.Module) -> None:
        norm = model.get_submodule(self.pair.norm)
        for parameter in (norm._parameters.get("weight"), norm._parameters.get("bias")):
            if parameter is not None:
                parameter.copy_(parameter.float() / self.scale)
        for name in self.pair.layers:
            weight = model.get_submodule(name).get_parameter("weight")
            weight.copy_(weight.float() * self.scale)
