"""Channel pruning: which channels of a model can be removed, which of them matter, how many stay.

Channels that residual sums, concatenations and the like couple share one decision, Fang et al. 2023 (arXiv:2301.12900).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from compress.inputs import Inputs, call, same_draws, take
from compress.pruning.coupling import Coupled, coupled
from compress.structure import ChannelGroup, Count, Cut, Structure, masked, restructure

Skipped = dict[str, str]


def find_groups(model: nn.Module, example: Inputs) -> tuple[tuple[ChannelGroup, ...], Skipped]:
    """The channel groups of a model, in its order, and why other channels are in none; the model is untouched.

    Each group was tried out: without a random half of its units the smaller model computes, up to rounding, what the
    model computes in which they are zero. So do all groups together. What fails that is left out, with the reason.

    Args:
        model: the model.
        example: a batch that it takes.

    Returns:
        The groups; and for channels (by the name that their group would have), or for the whole model (by ""), a
        reason why they are left out.
    """
    skipped: Skipped = {}
    try:
        found = coupled(model, example)
    except Exception as error:  # torch-pruning raises whatever its tracing stumbles over
        found = []
        skipped[""] = f"torch-pruning cannot trace the model: {_line(error)}"
    found = sorted([*found, *_attentions(model)], key=lambda one: _order(model, one.first))
    trial = _Trial(model, example)
    groups: list[ChannelGroup] = []
    for one in found:
        name = f"group-{one.first}"
        reasons = [one.reason] if one.reason else []
        for group in one.groups:
            if (reason := trial.fails([group])) is None:
                groups.append(group)
                break
            reasons.append(reason)
        else:
            skipped[name] = reasons[0]
    if trial.fails(groups) or trial.fails(groups, share=0.0):
        groups = _compatible(trial, groups, skipped)
    return tuple(groups), skipped


def _compatible(trial: "_Trial", groups: Sequence[ChannelGroup], skipped: Skipped) -> list[ChannelGroup]:
    """The groups that hold up together, the first ones first."""
    taken: list[ChannelGroup] = []
    for group in groups:
        if (reason := trial.fails([*taken, group]) or trial.fails([*taken, group], share=0.0)) is None:
            taken.append(group)
        else:
            skipped[group.name] = f"together with other groups: {reason}"
    return taken


def _order(model: nn.Module, name: str) -> int:
    """Where a module comes in a model."""
    return next(at for at, (other, _) in enumerate(model.named_modules()) if other == name)


def _attentions(model: nn.Module) -> Iterator[Coupled]:
    """The heads of each `nn.MultiheadAttention`: nothing outside of it depends on how many there are."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.num_heads > 1:
            yield Coupled(name, (_heads(name, module),))


def _heads(name: str, module: nn.MultiheadAttention) -> ChannelGroup:
    """The group of an attention's heads."""
    own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
    once = tuple(head for head in range(module.num_heads) for _ in range(module.head_dim))
    cuts = (
        Cut(f"{name}.in_proj_weight", 0, once * 3, "output"),
        Cut(f"{name}.q_proj_weight", 0, once, "output"),
        Cut(f"{name}.k_proj_weight", 0, once, "output"),
        Cut(f"{name}.v_proj_weight", 0, once, "output"),
        Cut(f"{name}.in_proj_bias", 0, once * 3, "output"),
        Cut(f"{name}.bias_k", 2, once, "output"),
        Cut(f"{name}.bias_v", 2, once, "output"),
        Cut(f"{name}.out_proj.weight", 1, once, "input"),
    )
    return ChannelGroup(
        name=f"group-{name}",
        channels=module.num_heads,
        unit=module.head_dim,
        members=(name,),
        cuts=tuple(cut for cut in cuts if cut.tensor in own),
        counts=(Count(name, "num_heads", 1),),
    )


class _Trial:
    """Compares smaller models with masked ones on noise around an example."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        self.model = model
        self.inputs = example
        whole = masked(model, {})  # a copy
        try:
            if torch.isfinite(self._run(whole, _noisy(example))).all():
                self.inputs = _noisy(example)
        except Exception:  # the model takes no other numbers than it was given
            self.inputs = example

    def fails(self, groups: Sequence[ChannelGroup], share: float = 0.5) -> str | None:
        """Why a model without a random share of these groups' units (at least one) is not the masked one, or None."""
        if any(group.channels < 2 for group in groups):
            return "all of them would have to go together"
        draw = torch.Generator().manual_seed(0)
        kept = {}
        for group in groups:
            order = torch.randperm(group.channels, generator=draw)
            kept[group.name] = tuple(sorted(order[max(1, int(share * group.channels)) :].tolist()))
        try:
            smaller = restructure(self.model, groups, Structure(kept))
            got = self._run(smaller.model, self.inputs)
        except Exception as error:  # a model's code may stumble over fewer channels in any way
            return f"the model does not run with fewer: {_line(error)}"
        wanted = self._run(masked(self.model, smaller.index), self.inputs)
        if got.shape != wanted.shape:
            return f"the output becomes {tuple(got.shape)} instead of {tuple(wanted.shape)}"
        scale = float(wanted.abs().amax())
        error_is = float((got - wanted).abs().amax())
        if not error_is <= scale * math.sqrt(torch.finfo(wanted.dtype).eps):
            return f"the rest of the model then computes something else (by {error_is:.2g}, its outputs by {scale:.2g})"
        return None

    @torch.no_grad()
    def _run(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        with same_draws("cpu"):
            out = call(model, take(inputs, slice(None)))
        return out if out.is_floating_point() or out.is_complex() else out.float()


def _noisy(example: Inputs) -> Inputs:
    """An example whose real numbers have noise added: constant inputs would show no difference."""
    draw = torch.Generator().manual_seed(0)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(x.shape, generator=draw).to(x) if x.is_floating_point() else x

    match example:
        case torch.Tensor():
            return noisy(example)
        case tuple():
            return tuple(map(noisy, example))
        case _:
            return {name: noisy(x) for name, x in example.items()}


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
