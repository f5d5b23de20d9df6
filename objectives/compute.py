"""Multiply-accumulates of one example, counted at the sites."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from compress.inputs import Inputs, call, count, take
from compress.sites import Site

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def dense_macs(model: nn.Module, sites: Sequence[Site], example: Inputs) -> dict[str, float]:
    """Multiply-accumulates of each site for one example of the batch `example`, all weights counted.

    Each weight of a site is used once per position of its layer's output (of its input, for a transposed convolution);
    an embedding is looked up and costs none.
    """
    used: dict[str, float] = dict.fromkeys((site.name for site in sites), 0.0)
    modules = dict(model.named_modules(remove_duplicate=False))
    of_module: dict[int, list[Site]] = {}
    for site in sites:
        for parameter in (site.parameter, *site.tied):
            of_module.setdefault(id(_user(modules, parameter.rpartition(".")[0])), []).append(site)

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        for site in of_module[id(module)]:
            used[site.name] += site.size * _positions(module, inputs, output)

    unique = {key: next(m for m in modules.values() if id(m) == key) for key in of_module}
    hooks = [module.register_forward_hook(record) for module in unique.values()]
    try:
        model.eval()
        call(model, take(example, slice(None)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: macs / count(example) for name, macs in used.items()}


def _user(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The module whose call uses the weights of the named one: attention never calls its own output projection."""
    around = modules.get(name.rpartition(".")[0])
    return around if isinstance(around, nn.MultiheadAttention) else modules[name]


def _positions(module: nn.Module, inputs: tuple[object, ...], output: object) -> float:
    """How often a layer uses each of its weights in this forward pass, all examples together."""
    into = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
    out = output[0] if isinstance(output, tuple) else output
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or not isinstance(out, torch.Tensor):
        return 0.0
    if isinstance(module, _CONVOLUTIONS):
        transposed = module.transposed
        at = into if transposed and into is not None else out
        channels = module.in_channels if transposed else module.out_channels
        return at.numel() / channels
    return out.numel() / out.shape[-1]


def policy_macs(dense: Mapping[str, float], density: Mapping[str, float]) -> float:
    """Multiply-accumulates with non-zero weights: dense ones times each site's share of non-zero weights."""
    return sum(macs * density[name] for name, macs in dense.items())
