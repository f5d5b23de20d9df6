"""Which channels can only go together: the dependency graph of Fang et al. 2023 (arXiv:2301.12900), as plain cuts.

torch-pruning traces the model and says which axis of which layer belongs to which output channel of a first layer. Here
that is turned into tables, so that no surgery is left to it. What it says is a proposal: `channels.py` tries it out.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compress.inputs import Inputs, same_draws
from compress.pruning.tracing import dependency_graph
from compress.structure import FREE, ChannelGroup, Count, Cut

Role = Literal["output", "input", "norm"]


class Unsupported(Exception):  # noqa: N818 - it says why something is left out; nothing went wrong
    """Why channels cannot be removed."""


@dataclass(frozen=True)
class Coupled:
    """Channels that torch-pruning says go together: groups to try, the first that holds up is it; or a reason."""

    first: str
    groups: tuple[ChannelGroup, ...]
    reason: str = ""


@dataclass(frozen=True)
class _Item:
    """One side of one layer: its position `positions[i]` goes with channel `roots[i]` of the first layer."""

    target: Any  # nn.Module or nn.Parameter
    name: str
    role: Role
    axis: int  # of a bare parameter
    positions: Sequence[int]
    roots: Sequence[int]
    last: bool  # nothing comes after it in the model


def coupled(model: nn.Module, example: Inputs) -> list[Coupled]:
    """All channels of a model that torch-pruning finds coupled, in the model's order; the model is untouched.

    Raises:
        Exception: whatever torch-pruning or the model raises where it cannot trace it.
    """
    with warnings.catch_warnings(), torch.enable_grad(), same_draws("cpu"):
        warnings.simplefilter("ignore")
        model = copy.deepcopy(model).eval()
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        graph = dependency_graph(model, example)
        found: list[Coupled] = []
        seen: set[int] = set()
        for name, module in model.named_modules():
            if isinstance(module, (_ConvNd, nn.Linear, nn.Embedding)) and id(module) not in seen:
                if module not in graph.module2node:
                    continue  # not called, or part of an attention
                items, closure = _items(graph, module)
                seen |= {id(item.target) for item in items if item.role == "output"}
                found.append(_propose(model, name, items, closure))
        return found


def _items(graph: Any, module: nn.Module) -> tuple[list[_Item], list[int]]:
    """What goes with the output channels of a module; and which of its own go with its first one."""
    pruner = graph.get_pruner_of_module(module)
    names = {id(part): name for name, part in (*graph.model.named_modules(), *graph.model.named_parameters())}
    items = []
    for item in graph.get_pruning_group(module, pruner.prune_out_channels, range(pruner.get_out_channels(module))):
        node = item.dep.target
        output = graph.is_out_channel_pruning_fn(item.dep.handler)
        role: Role = "output" if output else "input"
        if isinstance(node.module, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU, nn.Parameter)):
            role = "norm"
        last = output and not node.outputs
        name = names.get(id(node.module), "")
        items.append(_Item(node.module, name, role, node.pruning_dim, item.idxs, item.root_idxs, last))
    return items, sorted(graph.get_pruning_group(module, pruner.prune_out_channels, [0])[0].idxs)


def _propose(model: nn.Module, name: str, items: Sequence[_Item], closure: Sequence[int]) -> Coupled:
    """The groups that a coupling may be: of single channels, or of the heads of an attention written by hand."""
    try:
        if any(item.last for item in items):
            raise Unsupported("they are the model's output")
        return Coupled(name, tuple(_variants(model, name, items, closure)))
    except Unsupported as reason:
        return Coupled(name, (), str(reason))


def _variants(model: nn.Module, name: str, items: Sequence[_Item], closure: Sequence[int]) -> Iterator[ChannelGroup]:
    """Groups to try, the finest first."""
    classes = _coupled_classes(items, closure)
    yield _group(model, name, items, classes, ())
    parent_name = name.rpartition(".")[0]
    whole = {  # numbers of the module around, such as num_heads and embed_dim
        key: value
        for key, value in vars(model.get_submodule(parent_name)).items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    width = len(classes.parent) // len(closure)  # of one of q, k, v, which may be one layer
    for heads in sorted({n for key, n in whole.items() if "head" in key and "dim" not in key and "size" not in key}):
        if heads < 2 or width % heads or heads == width:
            continue
        size = width // heads
        for i in range(len(classes.parent)):
            classes.join(i, i // size * size)
        counted = [Count(parent_name, key, 1) for key, n in whole.items() if n == heads and "head" in key]
        widths = [Count(parent_name, key, size) for key, n in whole.items() if n == width]
        for counts in {tuple(counted): 0, (*counted, *widths): 0, (): 0}:
            yield _group(model, name, items, classes, counts)


class _Classes:
    """Channels of the first layer, joined where they must go together."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, i: int) -> int:
        """The least channel that goes with one."""
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i

    def join(self, i: int, j: int) -> None:
        """Let two channels go together."""
        i, j = sorted((self.find(i), self.find(j)))
        self.parent[j] = i

    def units(self) -> list[int]:
        """For each channel its unit, counted from 0 in the order of their least channels."""
        firsts = [self.find(i) for i in range(len(self.parent))]
        number = {first: unit for unit, first in enumerate(sorted(set(firsts)))}
        return [number[first] for first in firsts]


def _coupled_classes(items: Sequence[_Item], closure: Sequence[int]) -> _Classes:
    """Which channels of the first layer go together, whatever is decided."""
    count = len(items[0].positions)
    classes = _Classes(count)
    if list(closure) == list(range(len(closure))):  # runs, as of a linear layer whose output becomes (c, h, w)
        pairs = [(i, i // len(closure) * len(closure)) for i in range(count)]
    else:  # parts, as of a gated linear unit or of q, k, v in one layer
        pairs = [(i, i + step) for step in closure[1:] for i in range(count - step)]
    for item in items:
        root_of = dict(zip(item.positions, item.roots, strict=True))
        if any(root is None for root in item.roots):
            raise Unsupported(f"torch-pruning does not tell which of them {item.name} uses")
        for position, other in _forced(item):
            if position in root_of or other in root_of:
                if position not in root_of or other not in root_of:
                    raise Unsupported(f"{item.name} lets them go only together with other channels")
                pairs.append((root_of[position], root_of[other]))
    for i, j in pairs:
        classes.join(i, j)
    return classes


def _forced(item: _Item) -> Iterator[tuple[int, int]]:
    """Positions of a layer that must go together: one of each group of a convolution; a whole group of a norm."""
    module = item.target
    if isinstance(module, nn.GroupNorm):
        size = module.num_channels // module.num_groups
        yield from ((i, i // size * size) for i in range(module.num_channels))
    elif isinstance(module, _ConvNd) and module.groups > 1 and not _depthwise(module):
        total = module.out_channels if item.role == "output" else module.in_channels
        yield from ((i, i % (total // module.groups)) for i in range(total))


def _depthwise(module: _ConvNd) -> bool:
    """Whether each output channel of a convolution is made from the input channel of the same number."""
    return module.groups == module.in_channels == module.out_channels > 1


def _group(
    model: nn.Module, name: str, items: Sequence[_Item], classes: _Classes, counts: Sequence[Count]
) -> ChannelGroup:
    """The group in which each class of channels is a unit."""
    units = classes.units()
    order = {name: at for at, (name, _) in enumerate(model.named_modules())}
    first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    cuts: dict[tuple[str, int], tuple[list[int], Role]] = {}
    members: set[str] = set()
    for item in items:
        for attribute, axis, period in _axes(item):
            tensor = _tensor(item, attribute)
            if tensor is None:
                continue
            if id(tensor) not in first:
                raise Unsupported(f"{item.name}.{attribute} is computed, not kept")
            size = tensor.shape[axis]
            table, _ = cuts.setdefault((first[id(tensor)], axis % tensor.dim()), ([FREE] * size, item.role))
            for position, root in zip(item.positions, item.roots, strict=True):
                at = position % period if period else position
                if at >= size or table[at] not in (FREE, units[root]):
                    raise Unsupported(f"torch-pruning places them wrongly in {item.name}.{attribute}")
                table[at] = units[root]
            if item.role == "output":
                members.add(f"{item.name}.{attribute}".rpartition(".")[0])
        counts = (*counts, *_norm_groups(item, max(units) + 1))
    named = sorted(members, key=order.__getitem__)
    return ChannelGroup(
        name=f"group-{name}",
        channels=max(units) + 1,
        unit=len(units) // (max(units) + 1),
        members=tuple(named),
        cuts=tuple(Cut(tensor, axis, tuple(table), role) for (tensor, axis), (table, role) in cuts.items()),
        counts=tuple(counts),
    )


def _norm_groups(item: _Item, units: int) -> Iterator[Count]:
    """How the number of groups of a GroupNorm falls."""
    if isinstance(item.target, nn.GroupNorm):
        size = item.target.num_channels // item.target.num_groups
        yield Count(item.name, "num_groups", len(set(item.positions)) // size // units)


def _tensor(item: _Item, attribute: str) -> torch.Tensor | None:
    """A tensor of a layer; the layer itself, where it is a bare parameter."""
    found: Any = item.target
    for part in attribute.split(".") if attribute else ():
        found = getattr(found, part, None)
    return found if isinstance(found, torch.Tensor) else None


def _axes(item: _Item) -> list[tuple[str, int, int]]:
    """The tensors of a layer that become shorter: name, axis, and the period in which positions repeat there (or 0)."""
    match item.target:
        case nn.Parameter():
            return [("", item.axis, 0)]
        case _ConvNd() as conv if _depthwise(conv):
            return [("weight", 0, 0), ("bias", 0, 0)]
        case _ConvNd() as conv if item.role == "output":
            if not conv.transposed:
                return [("weight", 0, 0), ("bias", 0, 0)]
            return [("weight", 1, conv.out_channels // conv.groups), ("bias", 0, 0)]
        case _ConvNd() as conv:
            return [("weight", 0, 0)] if conv.transposed else [("weight", 1, conv.in_channels // conv.groups)]
        case nn.Linear():
            return [("weight", 0, 0), ("bias", 0, 0)] if item.role == "output" else [("weight", 1, 0)]
        case nn.Embedding():
            return [("weight", 1, 0)]
        case _NormBase():
            return [(name, 0, 0) for name in ("weight", "bias", "running_mean", "running_var")]
        case nn.GroupNorm():
            return [("weight", 0, 0), ("bias", 0, 0)]
        case nn.PReLU() as prelu:
            return [("weight", 0, 0)] if prelu.num_parameters > 1 else []
        case nn.LayerNorm():
            raise Unsupported(f"{item.name} normalises over them: without some, the others mean something else")
        case nn.RNNBase() if item.role == "input":
            return [("weight_ih_l0", 1, 0), ("weight_ih_l0_reverse", 1, 0)]
        case nn.RNNBase():
            raise Unsupported(f"they are coupled with the states of {item.name}")
        case nn.MultiheadAttention() if item.role == "output":
            return [("out_proj.weight", 0, 0), ("out_proj.bias", 0, 0)]
        case nn.MultiheadAttention() as attention:
            if attention.in_proj_weight is None:
                raise Unsupported(f"{item.name} reads keys and values of other widths")
            return [("in_proj_weight", 1, 0)]
        case _:
            return []  # an operation, which keeps nothing
