"""What the weights of a layer are multiplied with: its input as columns, one for each weight of an output channel."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PLAIN = (nn.Linear, *CONVOLUTIONS)  # their output is columns times rows, plus a bias
_PARTS = {"q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2}
OWN_PROJECTION = "out_proj.weight"

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]  # of one call of a module: positional and named


def why_none(module: nn.Module, parameter: str) -> str | None:
    """Why the input of a layer's parameter cannot be laid out as columns; None where it can.

    Args:
        module: the module whose call uses the parameter.
        parameter: its name in that module, such as `weight`, `in_proj_weight` or `out_proj.weight`.
    """
    match module:
        case nn.Linear() | nn.Conv1d() | nn.Conv2d() | nn.Conv3d() | nn.MultiheadAttention():
            return None
        case nn.Embedding() | nn.EmbeddingBag():
            return "an embedding's weights are looked up, so no error of one makes up for another's"
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return "the inputs of a transposed convolution are not laid out as columns"
        case _:
            if parameter in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"):
                return None
            return f"the input of {parameter} stays inside {type(module).__name__}"


def user(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    """The module whose call uses a parameter of a model, and the parameter's name in it.

    That is the module that has it; for an attention's output projection, which is never called, the attention.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    owner, _, name = parameter.rpartition(".")
    around, _, child = owner.rpartition(".")
    if owner and isinstance(modules.get(around), nn.MultiheadAttention):
        return modules[around], f"{child}.{name}"
    return modules[owner], name


def given(module: nn.Module, parameter: str, arguments: Arguments) -> tuple[torch.Tensor, ...]:
    """The tensors that a parameter is multiplied with in a call, (samples, ...); empty where they are no float tensors.

    One for most layers; three for the input projection of an attention that is called with a query, a key and a value
    that differ.
    """
    positional, named = arguments
    if isinstance(module, nn.MultiheadAttention):
        if parameter == OWN_PROJECTION:
            return (_before_projection(module, arguments),)
        names = ("query", "key", "value")
        three = [positional[i] if i < len(positional) else named[name] for i, name in enumerate(names)]
        if parameter in _PARTS:
            three = [three[_PARTS[parameter]]]
        found = three if any(one is not three[0] for one in three) else three[:1]
    else:
        found = [positional[0] if positional else named.get("input")]
    floats = [one for one in found if isinstance(one, torch.Tensor) and one.is_floating_point() and one.numel()]
    axes = 2 + len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else 2
    return tuple(one if one.ndim >= axes else one[None] for one in floats) if len(floats) == len(found) else ()


def columns(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """A layer's input as columns in the order of `Site.rows`, float32 (samples, positions, blocks, n).

    Args:
        module: a layer that `why_none` has nothing against.
        inputs: convolutions: (samples, channels, ...); others: (samples, ..., features).
    """
    inputs = inputs.float()
    if not isinstance(module, CONVOLUTIONS):
        return inputs.reshape(inputs.shape[0], -1, 1, inputs.shape[-1])
    size = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    inputs = functional.pad(inputs, _padding(module), mode)
    for axis in range(size):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        inputs = inputs.unfold(2 + axis, reach, module.stride[axis])[..., :: module.dilation[axis]]
    # (samples, channels, position axes, kernel axes) with the channels moved behind the positions
    moved = inputs.permute(0, *range(2, 2 + size), 1, *range(2 + size, 2 + 2 * size))
    samples, positions = moved.shape[0], moved.shape[1 : 1 + size].numel()
    return moved.reshape(samples, positions, module.groups, -1)


def multiplied(module: nn.Module) -> int:
    """How many columns an input value becomes at most: the size of a convolution's kernel, else 1."""
    return int(torch.Size(module.kernel_size).numel()) if isinstance(module, CONVOLUTIONS) else 1


def _padding(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Zeros before and behind each axis, the last axis first, as `functional.pad` takes them."""
    found: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            found += [total // 2, total - total // 2]
        elif isinstance(module.padding, str):  # "valid"
            found += [0, 0]
        else:
            found += [module.padding[axis]] * 2
    return found


def _before_projection(module: nn.MultiheadAttention, arguments: Arguments) -> torch.Tensor:
    """The input of an attention's output projection: its output when that projection is the identity."""
    weight = module.out_proj.weight
    swapped = {"out_proj.weight": torch.eye(module.out_proj.weight.shape[1], dtype=weight.dtype, device=weight.device)}
    if module.out_proj.bias is not None:
        swapped["out_proj.bias"] = torch.zeros_like(module.out_proj.bias)
    output: torch.Tensor = functional_call(module, swapped, arguments[0], dict(arguments[1]))[0]
    return output
