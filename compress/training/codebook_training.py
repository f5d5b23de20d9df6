"""Trained codebooks ("trained quantization"), Han et al. 2016 (arXiv:1510.00149), section 3.3.

The paper trains the entries and keeps the indices. Here latent weights are trained beside them and may take another
entry: on `animals` (90 % pruned, 3 bits, 60 steps) that reached a validation accuracy of 0.883, entries alone 0.606
(0.808 at four times the learning rate), and indices alone 0.863.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from compress.coding import CodedWeight
from compress.quantization.codebook import dequantize, encode, fit
from compress.training.optimizers import Learned
from compress.training.straight_through import TrainedWeight, through


class TrainedCodebook(TrainedWeight):
    """Indices into a codebook: latent weights take the nearest of the entries, straight-through.

    Where masks are chosen anew, zero is among them: what has just come back may be smaller than all entries.

    Args:
        coded, latent, kept, free: as of every trained weight.
        learned: the entries are trained, too, by the summed gradients of their weights. They are rounded to what a file
            holds in the forward pass.
    """

    def __init__(
        self, coded: CodedWeight, latent: torch.Tensor, kept: torch.Tensor, *, free: bool, learned: bool
    ) -> None:
        super().__init__(coded, latent, kept, free=free)
        if coded.entries is None:
            raise ValueError("a codebook weight has no entries")
        self._learned = learned
        self.entries = coded.entries.to(latent.device).clone().requires_grad_(learned)

    @torch.no_grad()
    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The entries as they are stored, increasing, and which entry each of them is."""
        unit = 2.0**self._like.exponent
        halves = (self.entries / unit).clamp(-65504.0, 65504.0).half().float() * unit
        return halves.sort(stable=True)

    @torch.no_grad()
    def _codes(self, levels: torch.Tensor) -> torch.Tensor:
        """For each weight 0, or one more than the place of its entry in `levels`, uint8 (channels, n)."""
        codes = encode(self.latent, self.kept, levels)
        if not self._free:
            return codes
        to_zero, to_entry = self.latent.abs(), (self.latent - dequantize(codes, levels)).abs()
        return torch.where(to_zero < to_entry, 0, codes)

    def stored(self) -> torch.Tensor:
        """The entries of the weights, (channels, n), float32, with gradients to latent weights and entries."""
        levels, order = self._levels()
        codes = self._codes(levels)
        values = dequantize(codes, levels)
        passes = None if self._free else self.kept
        if not self._learned:
            return through(self.latent, values, passes)
        found: torch.Tensor = _Entries.apply(self.latent, self.entries, values, codes, order, passes)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def choose(self, kept: torch.Tensor) -> None:
        """Take another mask, (channels, n), and, where entries are not trained, those that are best for it."""
        super().choose(kept)
        if not self._learned:
            entries, exponent = fit(self.latent.cpu(), kept.cpu(), self._like.bits)
            self._like = replace(self._like, exponent=exponent)
            self.entries = entries.to(self.latent.device)

    def learned(self) -> Sequence[Learned]:
        """The entries."""
        return (Learned([self.entries]),) if self._learned else ()

    def state(self) -> dict[str, torch.Tensor]:
        """All that training has changed: also the entries."""
        return super().state() | {"entries": self.entries.detach(), "exponent": torch.tensor(self._like.exponent)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Become what `state` was taken of."""
        super().restore(state)
        self.entries.copy_(state["entries"])
        self._like = replace(self._like, exponent=int(state["exponent"]))

    def coded(self) -> CodedWeight:
        """The weights as they are now, on the CPU."""
        levels, _ = self._levels()
        return replace(self._like, values=self._codes(levels).cpu(), entries=levels.cpu())


class _Entries(torch.autograd.Function):
    """Forward the entries of the weights; backward to the latent weights and, summed, to the entries."""

    @staticmethod
    def forward(ctx: Any, *given: torch.Tensor | None) -> torch.Tensor | None:
        """The values of the weights."""
        _, _, values, codes, order, passes = given
        ctx.save_for_backward(codes, order, passes)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of latent weights and entries."""
        codes, order, passes = ctx.saved_tensors
        sums = grads[0].new_zeros(order.numel() + 1)
        sums.index_add_(0, codes.reshape(-1).int(), grads[0].reshape(-1))  # eq. 3: dL/dC_k, the sum over I_ij = k
        to_entries = torch.empty_like(sums[1:]).index_copy_(0, order, sums[1:])
        return grads[0] if passes is None else grads[0] * passes, to_entries, *[None] * 4
