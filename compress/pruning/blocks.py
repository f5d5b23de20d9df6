"""Residual blocks left out whole, which networks endure (Veit et al. 2016, arXiv:1605.06431, section 4.1)."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compress.inputs import Inputs, call, same_draws, take
from compress.sites import find_sites


class Dropped(nn.Identity):
    """What stands in a dropped block's place: it returns its first argument, whatever else it is given."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the input."""
        return input


@torch.no_grad()
def find_blocks(model: nn.Module, example: Inputs) -> tuple[str, ...]:
    """Dotted names of the residual blocks that can be left out, in the model's order; the model is untouched.

    A block is a module with submodules and at least one site whose first input and only output are tensors of one
    shape. It is residual if with its weights zeroed the output still depends on the input, and no mere gate (what
    is zero at the input must be able to leave it as something else). Of blocks within blocks the innermost are
    taken, and only those without which the model still runs on the example.
    """
    model = copy.deepcopy(model).eval()
    weights = {site.parameter for site in find_sites(model)} | {t for site in find_sites(model) for t in site.tied}
    inside = {  # a block's sites, by names within it
        name: [weight[len(name) + 1 :] for weight in sorted(weights) if weight.startswith(f"{name}.")]
        for name, module in model.named_modules()
        if name and next(module.children(), None) is not None
    }
    seen = _seen(model, [name for name, sites in inside.items() if sites], example)
    residual = [name for name, (args, kwargs) in seen.items() if _residual(model, name, inside[name], args, kwargs)]
    innermost = [name for name in residual if not any(other.startswith(f"{name}.") for other in residual)]
    return tuple(_droppable(model, innermost, example))


def _seen(model: nn.Module, names: list[str], example: Inputs) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of the last call of each module that is only called with tensors that keep their shape."""
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    refused: set[str] = set()
    hooks = []
    for name in names:

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, name: str = name) -> None:
            into = args[0] if args else None
            like = (
                isinstance(into, Tensor)
                and isinstance(out, Tensor)
                and (into.shape, into.dtype) == (out.shape, out.dtype)
            )
            if like and out.is_floating_point():
                seen[name] = (copy.deepcopy(args), copy.deepcopy(kwargs))
            else:
                refused.add(name)

        hooks.append(model.get_submodule(name).register_forward_hook(record, with_kwargs=True))
    try:
        with same_draws("cpu"):
            call(model, take(example, slice(None)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: seen[name] for name in names if name in seen and name not in refused}


def _residual(model: nn.Module, name: str, sites: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a way around the sites leads through a module."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(args[0].shape, generator=draw).to(args[0])
    half = (torch.rand(args[0].shape, generator=draw) < 0.5).to(args[0].device)
    block = model.get_submodule(name)
    emptied = copy.deepcopy(block)
    for site in sites:
        emptied.get_parameter(site).zero_()
    try:
        one, other = (emptied(x, *args[1:], **kwargs) for x in (noise.clone(), -noise))
        through = block(noise.masked_fill(half, 0.0), *args[1:], **kwargs)
    except Exception:  # a block that does not take other numbers is none
        return False
    return not torch.equal(one, other) and bool((through[half] != 0).any())


def _droppable(model: nn.Module, names: list[str], example: Inputs) -> Iterator[str]:
    """Those of the blocks without which the model runs on the example, to an output of the same shape."""
    with same_draws("cpu"):
        whole = call(model, take(example, slice(None))).shape
        for name in names:
            block = model.get_submodule(name)
            model.set_submodule(name, Dropped())
            with contextlib.suppress(Exception):  # whatever the reason is, it cannot be left out
                if call(model, take(example, slice(None))).shape == whole:
                    yield name
            model.set_submodule(name, block)
