"""What the float model answers on fixed data: all of it, its largest logits, or asked anew, by a bound on bytes.

Keeping only a teacher's largest logits is what Tan et al. 2019 (arXiv:1902.10461) do for vocabularies.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from compress.distillation import OutputKind
from compress.inputs import Inputs, call, chunks, count, same_draws, take

FEWEST_LOGITS = 8  # fewer tell too little of how classes resemble each other: the model is asked instead


class TeacherOutputs(ABC):
    """The float model's outputs for the samples of one data set."""

    @abstractmethod
    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The outputs for the samples at int64 `index` (batch,): float32, (batch, ...), on the CPU."""


@dataclass(frozen=True)
class WholeOutputs(TeacherOutputs):
    """All outputs, (samples, ...), float32, on the CPU."""

    outputs: torch.Tensor

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The outputs for the samples at `index`, as they were computed."""
        return self.outputs[index]


@dataclass(frozen=True)
class LargestLogits(TeacherOutputs):
    """The largest k logits of each position, and one number that stands for each of the others.

    The other logits are all taken as the one that leaves the softmax (at temperature 1) of those k as it was: the
    probability left over is spread evenly.

    Attributes:
        values: the largest logits, float32 (samples, ..., k).
        classes_at: their classes, (samples, ..., k), int16 or int32.
        rest: each of the other logits, float32 (samples, ..., 1).
        classes: how many classes there are.
    """

    values: torch.Tensor
    classes_at: torch.Tensor
    rest: torch.Tensor
    classes: int

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The logits for the samples at `index`, (batch, ..., classes); their argmax is the teacher's."""
        rest = self.rest[index]
        dense = rest.expand(*rest.shape[:-1], self.classes).contiguous()
        return dense.scatter_(-1, self.classes_at[index].long(), self.values[index])


@dataclass(frozen=True)
class AskedOutputs(TeacherOutputs):
    """Nothing is kept: the float model computes its outputs each time, `chunk` samples a forward pass.

    Attributes:
        model: the float model in evaluation mode, on `device`.
        inputs: of the data set.
        chunk: samples a forward pass.
        device: where the model is.
    """

    model: nn.Module
    inputs: Inputs
    chunk: int
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The outputs for the samples at `index`, computed now."""
        with same_draws(self.device):
            parts = [call(self.model, take(self.inputs, part, self.device)) for part in torch.split(index, self.chunk)]
        return torch.cat([part.float().cpu() for part in parts])


def largest(logits: torch.Tensor, k: int) -> LargestLogits:
    """Keep the k largest of logits (samples, ..., classes), k below the number of classes."""
    classes = logits.shape[-1]
    values, classes_at = logits.topk(k, dim=-1)
    # log of the mean of exp over what is left; sums in float64 where float32 would cancel
    others = logits.double().scatter(-1, classes_at, -torch.inf)
    rest = others.logsumexp(dim=-1, keepdim=True) - torch.tensor(float(classes - k)).log()
    return LargestLogits(values, classes_at.to(_index_type(classes)), rest.float(), classes)


@torch.no_grad()
def teach(
    model: nn.Module,
    inputs: Inputs,
    chunk: int,
    device: torch.device | str = "cpu",
    kind: OutputKind = "logits",
    cache_bytes: int | None = None,
) -> TeacherOutputs:
    """The float model's outputs on fixed data, in the most exact form that `cache_bytes` has room for.

    Whole outputs where they fit, with the bits that `compress.inputs.outputs` gives. Otherwise the largest logits, as
    many as fit; and where they are no logits or fewer than FEWEST_LOGITS fit, a copy of the model answers when asked.

    Args:
        model: the float model, on `device`; it is put into evaluation mode and not changed otherwise.
        inputs: all samples, at least one.
        chunk: samples a forward pass.
        device: where the model is.
        kind: "logits" (samples, ..., classes) are compared as distributions, "values" are numbers.
        cache_bytes: bound on the bytes kept; None has none.
    """
    model.eval()
    samples, kept, k = count(inputs), None, 0
    whole: list[torch.Tensor] = []
    parts: list[LargestLogits] = []
    with same_draws(device):
        for part in chunks(inputs, chunk, device):
            out = call(model, part).float().cpu()
            if kept is None:
                positions = samples * (out.numel() // (out.shape[0] * out.shape[-1])) if out.dim() > 1 else samples
                kept = cache_bytes is None or samples * out[0].numel() * out.itemsize <= cache_bytes
                if not kept:
                    k = _room(cache_bytes or 0, positions, out.shape[-1]) if kind == "logits" and out.dim() > 1 else 0
                    if not k:
                        break
            if kept:
                whole.append(out)
            else:
                parts.append(largest(out, k))
    if kept:
        return WholeOutputs(torch.cat(whole))
    if not parts:
        return AskedOutputs(copy.deepcopy(model), inputs, chunk, device)
    return LargestLogits(
        torch.cat([part.values for part in parts]),
        torch.cat([part.classes_at for part in parts]),
        torch.cat([part.rest for part in parts]),
        parts[0].classes,
    )


def _room(cache_bytes: int, positions: int, classes: int) -> int:
    """How many logits a position fit into `cache_bytes`; 0 where they are too few to be worth it."""
    each = 4 + _index_type(classes).itemsize  # a float32 and its class
    k = min((cache_bytes // positions - 4) // each, classes - 1)  # 4: the rest
    return k if k >= FEWEST_LOGITS else 0


def _index_type(classes: int) -> torch.dtype:
    return torch.int16 if classes <= 2**15 else torch.int32
