"""torch-pruning's trace of a model, in which attentions and recurrent layers are one step each."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.inputs import Inputs, call, take

_OPAQUE = (nn.MultiheadAttention, nn.RNNBase)


def dependency_graph(model: nn.Module, example: Inputs) -> Any:
    """A `torch_pruning.DependencyGraph` of a model, which is changed by it: give it a copy.

    torch-pruning follows the backward graph. Inside an attention or a recurrent layer it would take products and gates
    for operations that leave channels where they are; so these are made to look like one operation.

    Raises:
        Exception: whatever torch-pruning or the model raises where it cannot be traced.
    """
    import torch_pruning

    class TwoSided(torch_pruning.pruner.function.BasePruningFunc):  # type: ignore[misc] # it has no types
        """A layer whose inputs and outputs are not the same channels; it is asked for sizes, never to prune."""

        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return layer

        def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return layer

        def get_out_channels(self, layer: nn.MultiheadAttention | nn.RNNBase) -> int:
            if isinstance(layer, nn.MultiheadAttention):
                return layer.out_proj.out_features
            return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)

        def get_in_channels(self, layer: nn.MultiheadAttention | nn.RNNBase) -> int:
            return layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else layer.input_size

    opaque = [module for module in model.modules() if isinstance(module, _OPAQUE)]
    for module in opaque:
        module.__dict__["forward"] = _one_step(module.forward)
    return torch_pruning.DependencyGraph().build_dependency(
        model,
        take(example, slice(None)),
        forward_fn=call,
        customized_pruners={kind: TwoSided() for kind in {type(module) for module in opaque}},
        verbose=False,
    )


def _one_step(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward whose outputs have one node in the backward graph, with the inputs behind it."""

    def stepped(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            out = forward(*args, **kwargs)
        into = [x for x in _tensors((args, tuple(kwargs.values()))) if x.requires_grad]
        found = list(_tensors(out))
        new = _Step.apply(len(found), *found, *into)  # type: ignore[no-untyped-call] # torch has no types for it
        return _put(out, iter(new))

    return stepped


class _Step(torch.autograd.Function):
    """Hands its first `count` tensors on; it is never run backwards."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _put(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nested tuples with other tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if not isinstance(value, tuple):
        return value
    parts = [_put(part, tensors) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
