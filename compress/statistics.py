"""What calibration data say about each site: means and Hessians of its inputs, gradients, and shares of zeros."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from compress.columns import PLAIN, columns, given, multiplied, user, why_none
from compress.gradients import ChunkLoss, Gradient, gradients
from compress.inputs import Inputs, call, count, same_draws, take
from compress.sites import Site

MOST_COLUMNS = 8192  # a Hessian of more is not collected: it would be above 256 MiB
MOST_INPUTS = 65536  # values of a site's input that are kept
SLAB = 2**23  # numbers laid out as columns at a time: 32 MiB
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class SiteStatistics:
    """What calibration data say about one site; float32 on the CPU, None where the site cannot have it.

    Attributes:
        samples: calibration samples.
        mean: (blocks, n), mean over samples and positions of each input column. Blocks are the groups of a grouped
            convolution, or the three inputs of an attention whose query, key and value differ; else there is one.
            Block b belongs to the b-th of as many equal parts of the rows.
        hessian: (blocks, n, n), mean over samples and positions of x x^T in the column order of `Site.rows`: half the
            Hessian of the squared output error of a row.
        gradient: (channels, n), mean over samples of the gradient of the loss.
        fisher: (channels, n), mean over samples of the squared gradient; see `gradients` for which samples.
        zeros: (channels,), share of a channel's outputs that are <= 0 (APoZ, Hu et al. 2016, arXiv:1607.03250), those
            that a ReLU makes zero and other activations zero or less. Counted behind the norm layer where one is given
            the site's output itself, else at the output; what is added before the activation is not seen.
        inputs: (<= 65536,), values of the input, for activation ranges: the least and the largest of each chunk, and
            others drawn evenly.
        reason: why there is no hessian.
    """

    samples: int
    mean: torch.Tensor | None = None
    hessian: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    fisher: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    reason: str | None = None


def collect(
    model: nn.Module,
    sites: Sequence[Site],
    inputs: Inputs,
    chunk: int,
    device: torch.device | str = "cpu",
    loss: ChunkLoss | None = None,
) -> dict[str, SiteStatistics]:
    """Statistics of all sites from one pass over calibration inputs (two where there is a loss).

    The model is as before when this returns: its weights, buffers, gradients, hooks and modes.

    Args:
        model: on `device`.
        sites: its sites.
        inputs: calibration samples.
        chunk: samples at a time; it bounds memory.
        device: where to compute.
        loss: (outputs of a chunk, which samples they are) to a scalar that is a sum over samples; None: no gradients.

    Raises:
        WorkloadError: the loss does not depend on the weights of any site.
    """
    watches = [_Watch(site, model, count(inputs)) for site in sites]
    found: Mapping[str, Gradient] = {}
    with evaluated(model), same_draws(device):
        with _watched(model, watches) as outputs, torch.no_grad():
            for start in range(0, count(inputs), chunk):
                part = take(inputs, slice(start, start + chunk), device)
                for watch in watches:
                    watch.chunk = count(part)
                call(model, part)
                outputs.settle()
        if loss is not None:
            found = gradients(model, sites, inputs, chunk, device, loss)
    return {watch.site.name: watch.finish(found.get(watch.site.name)) for watch in watches}


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again afterwards.

    Meanwhile attention takes no short cuts: they call its layers with nested tensors, which have no shape.
    """
    modes, fast = [(module, module.training) for module in model.modules()], torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode


class _Watch:
    """Sums over the calls of the modules that use one site's weight."""

    def __init__(self, site: Site, model: nn.Module, total: int) -> None:
        self.site = site
        self.users = dict(user(model, parameter) for parameter in (site.parameter, *site.tied))
        self.chunk = self._total = total  # samples in the chunk that is run, and of all chunks
        self._reason = next((why for why in map(why_none, *zip(*self.users.items(), strict=True)) if why), None)
        self._looked_up = any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in self.users)
        self._positions = 0
        self._sums: torch.Tensor | None = None  # (blocks, n)
        self._products: torch.Tensor | None = None  # (blocks, n, n)
        self._outputs, self._at_most_zero = 0.0, torch.zeros(site.channels)
        self._values: list[torch.Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def add(self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Take in the input of one call."""
        if why_none(module, self.users[module]) is None or self.users[module] == "weight":
            tensors = given(module, self.users[module], (arguments, named))
            if tensors and not self._looked_up:
                self._sample(tensors)
                if self._reason is None:
                    self._add_columns(module, tensors)

    def _sample(self, tensors: Sequence[torch.Tensor]) -> None:
        flat = torch.cat([one.detach().float().flatten() for one in tensors])
        quota = max(2, MOST_INPUTS * self.chunk // self._total - 2)
        drawn = flat if flat.numel() <= quota else flat[_draw(flat.numel(), quota, self._generator).to(flat.device)]
        self._values.append(torch.cat([flat.min()[None], flat.max()[None], drawn]).cpu())

    def _add_columns(self, module: nn.Module, tensors: Sequence[torch.Tensor]) -> None:
        slab = max(1, SLAB // (tensors[0][0].numel() * multiplied(module)))
        for start in range(0, tensors[0].shape[0], slab):
            parts = [columns(module, one[start : start + slab]).flatten(0, 1) for one in tensors]
            if len({len(part) for part in parts}) > 1:
                self._reason = "its query has another length than its key"
                return
            x = torch.cat(parts, dim=1).transpose(0, 1)  # (blocks, positions, n)
            blocks, positions, n = x.shape
            if self._sums is None:
                self._sums = x.new_zeros(blocks, n)
                self._products = x.new_zeros(blocks, n, n) if n <= MOST_COLUMNS else None
            self._positions += positions
            self._sums.add_(x.sum(dim=1))
            if self._products is not None:
                self._products.baddbmm_(x.transpose(1, 2), x)

    def add_zeros(self, at_most_zero: torch.Tensor, outputs: float) -> None:
        """Take in how many of the outputs of each channel are <= 0, (channels,), of how many."""
        self._at_most_zero += at_most_zero
        self._outputs += outputs

    def finish(self, found: Gradient | None) -> SiteStatistics:
        """The statistics of all calls."""
        hessian, reason = None, self._reason
        if reason is None and self._sums is None:
            reason = f"{self.site.name} is not called with a float tensor on the calibration data"
        elif reason is None and self._products is None:
            n = self.site.size // self.site.channels
            reason = f"{n} weights a channel: a Hessian of more than {MOST_COLUMNS} is not collected"
        elif reason is None and self._products is not None:
            hessian = (self._products / self._positions).cpu()
        values = torch.cat(self._values) if self._values else None
        if values is not None and values.numel() > MOST_INPUTS:
            drawn = values[_draw(values.numel(), MOST_INPUTS - 2, self._generator)]
            values = torch.cat([values.min()[None], values.max()[None], drawn])
        return SiteStatistics(
            samples=self._total,
            mean=None if self._sums is None or self._reason else (self._sums / self._positions).cpu(),
            hessian=hessian,
            gradient=None if found is None else found.mean,
            fisher=None if found is None else found.fisher,
            zeros=self._at_most_zero / self._outputs if self._outputs else None,
            inputs=values,
            reason=reason,
        )


def _draw(values: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of `wanted` of so many values, evenly drawn, (wanted,)."""
    return torch.randint(values, (wanted,), generator=generator)


class _Outputs:
    """Counts a site's outputs that are <= 0, behind the norm layer that is given them."""

    def __init__(self) -> None:
        self._tensor: torch.Tensor | None = None  # the last output of a site
        self._counts: tuple[torch.Tensor, float] | None = None
        self._watches: list[_Watch] = []
        self._axis = 0

    def of_site(self, module: nn.Module, output: torch.Tensor, watches: Sequence[_Watch]) -> None:
        """A site's module gave an output."""
        self.settle()
        self._axis = output.ndim - 1 if isinstance(module, nn.Linear) else output.ndim - 1 - len(module.kernel_size)  # type: ignore[arg-type]
        self._tensor, self._counts = output, _at_most_zero(output, self._axis)
        self._watches = list(watches)

    def of_norm(self, given: object, output: torch.Tensor) -> None:
        """A norm layer gave an output; it counts instead of a site's, if that is what it was given."""
        if self._tensor is not None and given is self._tensor:
            self._counts = _at_most_zero(output, self._axis)
            self._tensor = None

    def settle(self) -> None:
        """Add the counts of the last output to its sites."""
        if self._counts is not None:
            for watch in self._watches:
                watch.add_zeros(*self._counts)
        self._tensor, self._counts = None, None


def _at_most_zero(output: torch.Tensor, axis: int) -> tuple[torch.Tensor, float]:
    """How many outputs of each channel are <= 0, (channels,), and how many there are of each."""
    others = [i for i in range(output.ndim) if i != axis]
    return (output <= 0).sum(dim=others).float().cpu(), output.numel() / output.shape[axis]


@contextlib.contextmanager
def _watched(model: nn.Module, watches: Sequence[_Watch]) -> Iterator[_Outputs]:
    """While this lasts, a forward pass of the model fills the watches."""
    outputs, inside = _Outputs(), False
    of_module: dict[nn.Module, list[_Watch]] = {}
    for watch in watches:
        for module in watch.users:
            of_module.setdefault(module, []).append(watch)

    def see(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        nonlocal inside
        if inside:  # an attention is run again to see what its output projection is given
            return
        inside = True
        try:
            for watch in of_module.get(module, ()):
                watch.add(module, arguments, named)
        finally:
            inside = False
        if isinstance(module, PLAIN):
            outputs.of_site(module, output, of_module[module])
        elif isinstance(module, _NORMS):
            outputs.of_norm(arguments[0] if arguments else named.get("input"), output)

    seen = [module for module in model.modules() if module in of_module or isinstance(module, _NORMS)]
    hooks = [module.register_forward_hook(see, with_kwargs=True) for module in seen]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
