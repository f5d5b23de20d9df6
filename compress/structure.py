"""Making a model physically smaller: channels and blocks taken out of a copy, and where its values came from."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compress.pruning.blocks import Dropped
from compress.pruning.heads import FewerHeads
from compress.sites import Site
from spaces.errors import CandidateError

FREE = -1  # in Cut.units: a position that belongs to no unit of the group


@dataclass(frozen=True)
class Cut:
    """Where the units of a group lie along one axis of one tensor.

    Attributes:
        tensor: dotted name of a parameter or buffer (the first name, where it is tied).
        axis: of the tensor.
        units: for each position along the axis the unit it belongs to; -1: to none of this group.
        role: whether the positions are what a member puts out, what a later layer takes in, or a norm's between them.
    """

    tensor: str
    axis: int
    units: tuple[int, ...] = field(repr=False)
    role: Literal["output", "input", "norm"]


@dataclass(frozen=True)
class Count:
    """A number in a module that falls by `per_unit` with each unit that goes, as `num_heads` does with each head."""

    module: str
    attribute: str
    per_unit: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together, Fang et al. 2023 (arXiv:2301.12900): one decision.

    Attributes:
        name: "group-" and the first member.
        channels: number of units that can be removed one by one: of channels, or of attention heads, or of sets with
            one channel from each group of a grouped convolution.
        unit: output channels of the first member that one unit stands for; 1 for plain channels.
        members: dotted names of the modules whose output channels (or heads) these are, in the model's order.
        cuts: the axes of tensors that become shorter.
        counts: the numbers in modules that change and are not told by a tensor's shape.
    """

    name: str
    channels: int
    unit: int
    members: tuple[str, ...]
    cuts: tuple[Cut, ...] = field(repr=False)
    counts: tuple[Count, ...] = field(default=(), repr=False)

    def step(self, multiple: int) -> int:
        """The number of units whose channels are a multiple of `multiple`; the least one."""
        return multiple // math.gcd(multiple, self.unit)


@dataclass(frozen=True)
class Structure:
    """Which units of which groups are left, and which residual blocks are left out; groups not named stay whole.

    Example:
        >>> Structure(kept={"group-stem.conv": (0, 2)}) == Structure(kept={"group-stem.conv": (0, 2)}, dropped=())
        True
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", MappingProxyType(dict(sorted(self.kept.items()))))

    def __hash__(self) -> int:
        return hash((tuple(self.kept.items()), self.dropped))

    def __reduce__(self) -> tuple[type["Structure"], tuple[dict[str, tuple[int, ...]], tuple[str, ...]]]:
        return Structure, (dict(self.kept), self.dropped)


@dataclass(frozen=True)
class Restructured:
    """A smaller model, and for each of its parameters and buffers the flat indices into the tensor it was taken from.

    Attributes:
        model: new, in evaluation mode; shares nothing with the one it was made from.
        index: by dotted name, int64 in the new tensor's shape: `new == old.flatten()[index[name]]`.
    """

    model: nn.Module
    index: dict[str, torch.Tensor]


@torch.no_grad()
def restructure(model: nn.Module, groups: Sequence[ChannelGroup], structure: Structure) -> Restructured:
    """A new model without the channels and blocks that a structure leaves out; the model given is untouched.

    Up to rounding its outputs are those of the model given in which all that was removed is zero (`masked`).

    Raises:
        CandidateError: the structure names a group or block that there is not, or units that a group does not have.
    """
    stays = _stays(groups, structure)
    index: dict[int, torch.Tensor] = {}  # by the old tensor
    new_of: dict[int, Any] = {}  # what copy.deepcopy puts in place of each old tensor: the smaller one
    for name, tensor in _tensors(model, tied=False):
        flat = _flat_index(tensor.shape, stays.get(name, {}))
        old = tensor.detach()
        values = old.flatten()[flat.flatten().to(old.device)].reshape(flat.shape) if name in stays else old.clone()
        index[id(tensor)] = flat
        new_of[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
    first = {id(tensor): name for name, tensor in _tensors(model, tied=False)}
    old_of = {name: id(tensor) for name, tensor in _tensors(model, tied=True)}
    shorter = {name.rpartition(".")[0] for name, old_id in old_of.items() if first[old_id] in stays}
    new = copy.deepcopy(model, new_of).eval()
    for name, module in new.named_modules(remove_duplicate=False):
        if name in shorter or (isinstance(module, nn.MultiheadAttention) and f"{name}.out_proj" in shorter):
            _resize(module)
    for encoder in new.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(isinstance(m, FewerHeads) for m in encoder.modules()):
            encoder.enable_nested_tensor = encoder.use_nested_tensor = False  # only torch's own attentions take them
    _recount(new, groups, structure)
    for block in structure.dropped:
        _drop(new, block)
    return Restructured(new, {name: index[old_of[name]] for name, _ in _tensors(new, tied=True)})


@torch.no_grad()
def masked(model: nn.Module, index: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a model, in evaluation mode, in which every value that `index` does not name is zero.

    It has all the channels, but what a restructured model lacks counts for nothing in it: the reference for one.
    """
    new = copy.deepcopy(model).eval()
    for name, tensor in _tensors(new, tied=False):
        if name in index and index[name].numel() < tensor.numel():
            flat = index[name].flatten().to(tensor.device)
            left = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
            left[flat] = tensor.flatten()[flat]
            tensor.copy_(left.reshape(tensor.shape))
    return new


def kept_rows(site: Site, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in a whole site's `rows` the rows of a smaller one come from.

    Args:
        site: of the whole model.
        index: of its parameter, out of `Restructured.index`.

    Returns:
        The rows that are left, int64 (channels left,), and the columns that are left of each (channels left, columns
        left): all the same but where blocks of a grouped convolution lose different inputs.
    """
    n = site.size // site.channels
    place = torch.empty(site.size, dtype=torch.int64)  # of each weight among the rows
    place[site.rows(torch.arange(site.size).reshape(site.shape)).flatten()] = torch.arange(site.size)
    left = place[index.movedim(site.channel_axis, 0).reshape(index.shape[site.channel_axis], -1)]
    return left[:, 0] // n, left % n


def _tensors(model: nn.Module, *, tied: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers with their names; with all of their names if `tied`."""
    yield from model.named_parameters(remove_duplicate=not tied)
    yield from model.named_buffers(remove_duplicate=not tied)


def _stays(groups: Sequence[ChannelGroup], structure: Structure) -> dict[str, dict[int, torch.Tensor]]:
    """By tensor and axis the positions that stay, for all axes that become shorter."""
    named = {group.name: group for group in groups}
    stays: dict[str, dict[int, torch.Tensor]] = {}
    for name, kept in structure.kept.items():
        if name not in named:
            raise CandidateError(f"the structure names {name}, but the model's channel groups are {sorted(named)}")
        group = named[name]
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= group.channels:
            raise CandidateError(
                f"{name}: given the units {kept}; they must be at least one, increasing and below {group.channels}"
            )
        if len(kept) == group.channels:
            continue
        alive = torch.zeros(group.channels + 1, dtype=torch.bool)
        alive[list(kept)] = True
        alive[FREE] = True  # the last one
        for cut in group.cuts:
            here = alive[torch.tensor(cut.units)]
            axes = stays.setdefault(cut.tensor, {})
            axes[cut.axis] = here & axes[cut.axis] if cut.axis in axes else here
    return {name: {axis: here.nonzero()[:, 0] for axis, here in axes.items()} for name, axes in stays.items()}


def _flat_index(shape: torch.Size, stays: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Flat indices of what stays of a tensor, in the smaller tensor's shape."""
    flat = torch.zeros((), dtype=torch.int64)
    for axis, size in enumerate(shape):
        flat = (flat * size).unsqueeze(-1) + stays.get(axis, torch.arange(size))
    return flat


def _resize(module: nn.Module) -> None:
    """Make the numbers that a module keeps of its shape agree with its tensors."""
    match module:
        case _ConvNd():
            ahead, behind = module.weight.shape[:2]
            if module.groups == module.in_channels == module.out_channels:  # depthwise, or one channel
                module.groups = ahead if module.groups > 1 else 1
            shape = (ahead, behind * module.groups)
            module.in_channels, module.out_channels = shape if module.transposed else shape[::-1]
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Embedding() | nn.EmbeddingBag():
            module.embedding_dim = module.weight.shape[1]
        case _NormBase():
            module.num_features = next(t for _, t in _tensors(module, tied=False) if t.dim()).shape[0]
        case nn.GroupNorm():
            module.num_channels = module.weight.shape[0]
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.RNNBase():
            module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        case nn.MultiheadAttention():
            FewerHeads.take(module)
        case _:
            pass


def _recount(model: nn.Module, groups: Sequence[ChannelGroup], structure: Structure) -> None:
    """Lower the numbers that no tensor's shape tells."""
    for group in groups:
        gone = group.channels - len(structure.kept.get(group.name, range(group.channels)))
        for count in group.counts if gone else ():
            module = model.get_submodule(count.module)
            setattr(module, count.attribute, getattr(module, count.attribute) - gone * count.per_unit)


def _drop(model: nn.Module, block: str) -> None:
    """Put the identity in a block's place, under all of its names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if not block or block not in modules:
        raise CandidateError(f"the structure drops {block!r}, but the model has no such block")
    for name in [name for name, module in modules.items() if module is modules[block]]:
        model.set_submodule(name, Dropped())
