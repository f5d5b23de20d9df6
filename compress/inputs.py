"""A batch of inputs as a model takes it: one tensor, a tuple of positional ones, or a dict of named ones."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

Inputs = torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]


def call(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The model's output for a batch: `model(x)`, `model(*x)` or `model(**x)`.

    An output that is a tuple or has `.logits` (as transformers' outputs have) is reduced to its first tensor.
    """
    return first_tensor(model(*positional(inputs), **named(inputs)))


def positional(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The positional arguments of a batch."""
    match inputs:
        case torch.Tensor():
            return (inputs,)
        case tuple():
            return inputs
        case _:
            return ()


def named(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The keyword arguments of a batch."""
    return inputs if isinstance(inputs, dict) else {}


def first_tensor(output: Any) -> torch.Tensor:
    """The tensor that is scored, out of what a model returned.

    Raises:
        TypeError: there is none.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"the model returned {type(output).__name__}, expected a tensor (or a tuple that starts with one)"
        )
    return found


def count(inputs: Inputs) -> int:
    """Number of samples in a batch."""
    return int(next(iter((*positional(inputs), *named(inputs).values()))).shape[0])


def take(inputs: Inputs, index: slice | torch.Tensor, device: torch.device | str = "cpu") -> Inputs:
    """The samples at an index, on a device: always a copy, since a model may change its inputs in place."""
    match inputs:
        case torch.Tensor():
            return inputs[index].to(device, copy=True)
        case tuple():
            return tuple(part[index].to(device, copy=True) for part in inputs)
        case _:
            return {name: part[index].to(device, copy=True) for name, part in inputs.items()}


def chunks(inputs: Inputs, size: int, device: torch.device | str = "cpu") -> Iterator[Inputs]:
    """The samples in order, `size` at a time: always cut the same way, since batch splits change last bits."""
    for start in range(0, count(inputs), size):
        yield take(inputs, slice(start, start + size), device)


@contextlib.contextmanager
def same_draws(device: torch.device | str) -> Iterator[None]:
    """A model that draws random numbers in evaluation draws the same ones each time; those of others are left alone."""
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)
        yield


class Meter:
    """How many samples were put through a model."""

    def __init__(self) -> None:
        self.samples = 0


@contextlib.contextmanager
def metered(model: nn.Module) -> Iterator[Meter]:
    """Count the samples that are put through a model in a `with` block."""
    meter = Meter()

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        meter.samples += int(next(one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)).shape[0])

    handle = model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield meter
    finally:
        handle.remove()


@torch.no_grad()
def outputs(model: nn.Module, inputs: Inputs, size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The outputs of a model in evaluation mode for all samples, on the CPU, (samples, ...)."""
    model.eval()
    with same_draws(device):
        return torch.cat([call(model, chunk).float().cpu() for chunk in chunks(inputs, size, device)])
