"""Gradients of a loss at each site, and their squares sample by sample: the diagonal of the empirical Fisher."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from compress.columns import CONVOLUTIONS, OWN_PROJECTION, PLAIN, columns, multiplied, user
from compress.inputs import Inputs, call, count, take
from compress.sites import Site
from spaces.errors import WorkloadError

ChunkLoss = Callable[[torch.Tensor, slice], torch.Tensor]

SINGLES = 64  # samples that are run alone, for sites whose gradients of many samples do not come apart
SLAB = 2**23  # numbers held at a time: 32 MiB


@dataclass(frozen=True)
class Gradient:
    """At one site, both (channels, n), float32 on the CPU.

    Attributes:
        mean: mean over samples of the gradient of the loss.
        fisher: mean over samples of its square; over `fisher_samples` of them.
        fisher_samples: all, or 64 where each sample has to be run alone.
        outputs: (channels,), mean over samples of the sum over positions of the squared gradient at each channel of the
            site's output, float32; None where the output is not seen, as inside a recurrent layer.
        alone: each sample was run alone for `fisher`.
    """

    mean: torch.Tensor
    fisher: torch.Tensor
    fisher_samples: int
    outputs: torch.Tensor | None = None
    alone: bool = False


def gradients(
    model: nn.Module,
    sites: Sequence[Site],
    inputs: Inputs,
    chunk: int,
    device: torch.device | str,
    loss: ChunkLoss,
) -> dict[str, Gradient]:
    """Mean and mean square of the loss gradient at each site; no `.grad` is written.

    The squares of all samples come from one backward pass where a layer is a Linear or a convolution that is called
    once, with samples along its first axis; elsewhere 64 samples, evenly spread, are run one by one.

    Args:
        model: on `device`, in evaluation mode.
        sites: its sites.
        inputs: calibration samples.
        chunk: samples at a time.
        device: where to compute.
        loss: (outputs of a chunk, which samples they are) to a scalar, a sum over samples.

    Raises:
        WorkloadError: the loss does not depend on the weights of a site.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = [parameters[site.parameter] for site in sites]
    samples = count(inputs)
    cudnn = torch.backends.cudnn.flags(enabled=False)  # it has no backward for recurrent layers in evaluation mode
    with _tracked(weights), cudnn, torch.enable_grad():
        apart = _apart(model, sites, inputs, device)
        squares = {
            site.name: torch.zeros_like(site.rows(parameters[site.parameter]).detach().float()) for site in sites
        }
        sums = {name: torch.zeros_like(square) for name, square in squares.items()}

        def add(part: slice, into: Mapping[str, torch.Tensor], chosen: Sequence[Site], power: int) -> None:
            value = loss(call(model, take(inputs, part, device)), part)
            found = _grad(value, [parameters[site.parameter] for site in chosen])
            for site, gradient in zip(chosen, found, strict=True):
                if gradient is not None:
                    into[site.name].add_(site.rows(gradient.float()) ** power)

        outputs = _Outputs(model, sites)
        with _squaring({site.name: module for site, module in apart}, squares), outputs.watched():
            for start in range(0, samples, chunk):
                add(slice(start, min(start + chunk, samples)), sums, sites, power=1)
        taken = {site.name for site, _ in apart}
        alone = [site for site in sites if site.name not in taken]
        singles = min(SINGLES, samples)
        for i in range(singles) if alone else ():
            at = i * samples // singles
            add(slice(at, at + 1), squares, alone, power=2)
    used = {site.name: samples if site.name in taken else singles for site in sites}
    return {
        name: Gradient(
            (sums[name] / samples).cpu(),
            (squares[name] / used[name]).cpu(),
            used[name],
            outputs.mean(name, samples),
            name not in taken,
        )
        for name in sums
    }


def _grad(value: torch.Tensor, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    if not value.requires_grad:
        raise WorkloadError("the loss does not depend on the weights of any site: is a part of the model detached?")
    return torch.autograd.grad(value, weights, allow_unused=True)


@contextlib.contextmanager
def _tracked(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Gradients of these weights are computed, also of those that are frozen."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, tracked in zip(weights, before, strict=True):
            weight.requires_grad_(tracked)


def _apart(
    model: nn.Module, sites: Sequence[Site], inputs: Inputs, device: torch.device | str
) -> list[tuple[Site, nn.Module]]:
    """The sites whose gradients of the samples of a batch come apart, and their modules.

    A module qualifies that is called once, with as many entries along the first axis as there are samples: found by
    running one sample, and two. An axis of time in front would have to be as long as each.
    """
    found = [
        (site, user(model, site.parameter)[0])
        for site in sites
        if not site.tied and isinstance(user(model, site.parameter)[0], PLAIN)
    ]
    for samples in {1, min(2, count(inputs))}:
        calls: dict[nn.Module, list[int]] = {module: [] for _, module in found}

        def record(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            calls[module].append(output.shape[0] if output.ndim > _unbatched(module) else -1)  # noqa: B023

        hooks = [module.register_forward_hook(record) for module in calls]
        try:
            with torch.no_grad():
                call(model, take(inputs, slice(samples), device))
        finally:
            for hook in hooks:
                hook.remove()
        found = [(site, module) for site, module in found if calls[module] == [samples]]
    return found


def _unbatched(module: nn.Module) -> int:
    """Number of axes of a layer's output for one sample without a sample axis."""
    return 1 if isinstance(module, nn.Linear) else 1 + len(module.kernel_size)  # type: ignore[arg-type]


@contextlib.contextmanager
def _squaring(modules: Mapping[str, nn.Module], squares: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While this lasts, a backward pass adds each sample's squared weight gradient to `squares`, (channels, n)."""
    name_of = {module: name for name, module in modules.items()}

    def watch(
        module: nn.Module, arguments: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor], output: torch.Tensor
    ) -> None:
        given = (arguments[0] if arguments else named["input"]).detach()
        if output.requires_grad:
            output.register_hook(lambda error: _add_squares(module, given, error, squares[name_of[module]]))  # type: ignore[no-untyped-call]

    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in name_of]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Outputs:
    """Squared gradients at the outputs of sites, summed over samples and positions."""

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self._users: dict[str, list[nn.Module]] = {}
        for site in sites:
            users = [user(model, parameter) for parameter in (site.parameter, *site.tied)]
            if all(isinstance(module, PLAIN) or name == OWN_PROJECTION for module, name in users):
                self._users[site.name] = list(dict.fromkeys(module for module, _ in users))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._sums = {
            site.name: torch.zeros(site.channels, device=parameters[site.parameter].device)
            for site in sites
            if site.name in self._users
        }

    def mean(self, name: str, samples: int) -> torch.Tensor | None:
        """Of one site, (channels,) on the CPU."""
        return (self._sums[name] / samples).cpu() if name in self._sums else None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, a backward pass adds the squared gradient at each output."""
        hooks = [
            module.register_forward_hook(partial(self._see, name))
            for name, modules in self._users.items()
            for module in modules
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, name: str, module: nn.Module, arguments: object, output: torch.Tensor | tuple[Any, ...]) -> None:
        tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output  # of an attention, the first
        axis = tensor.ndim - 1 if not isinstance(module, CONVOLUTIONS) else tensor.ndim - 1 - len(module.kernel_size)
        others = [i for i in range(tensor.ndim) if i != axis]

        def add(error: torch.Tensor) -> None:
            squares = error.detach().float().square()
            self._sums[name].add_(squares.sum(dim=others) if others else squares)

        if tensor.requires_grad:
            tensor.register_hook(add)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _add_squares(module: nn.Module, given: torch.Tensor, error: torch.Tensor, squares: torch.Tensor) -> None:
    """Add the squared weight gradient of each sample.

    Args:
        module: Linear or convolution.
        given: its input, (samples, ...).
        error: gradient of the loss at its output, (samples, ..., channels) or (samples, channels, ...).
        squares: (channels, n), added to.
    """
    error = error.float()
    if isinstance(module, nn.Linear):
        error = error.reshape(error.shape[0], -1, error.shape[-1])  # (samples, positions, channels)
    else:
        error = error.flatten(2).transpose(1, 2)
    channels, n = squares.shape
    if error.shape[1] == 1 and isinstance(module, nn.Linear):
        squares.addmm_(error[:, 0].square().T, columns(module, given)[:, 0, 0].square())  # (e x^T)^2 = e^2 (x^2)^T
        return
    per_sample = max(squares.numel(), given[0].numel() * multiplied(module))
    for start in range(0, given.shape[0], max(1, SLAB // per_sample)):
        part = slice(start, start + max(1, SLAB // per_sample))
        x = columns(module, given[part])  # (samples, positions, blocks, n)
        e = error[part].reshape(
            *error[part].shape[:2], x.shape[2], -1
        )  # (samples, positions, blocks, channels / blocks)
        each = torch.matmul(e.permute(0, 2, 3, 1), x.permute(0, 2, 1, 3))  # (samples, blocks, channels / blocks, n)
        squares.add_(each.square_().sum(dim=0).reshape(channels, n))
