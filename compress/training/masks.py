"""Masks that are chosen anew while the student learns, so that pruned weights can come back.

Dynamic: Guo et al. 2016 (arXiv:1608.04493) and Lin et al. 2020 (arXiv:2006.07253): every few steps weights that stay
give their place to larger pruned ones, which keep getting the gradient of the pruned model. Gradual: the share that is
pruned also rises, by the cubic schedule of Zhu & Gupta 2017 (arXiv:1710.01878).
"""

from typing import Literal, assert_never

import torch

from compress.pruning import semistructured, unstructured
from spaces.policy import NoPruning, Prune, SemiStructured, Threshold, Unstructured

EVERY = 8  # steps from one choice to the next
# Of a site's weights that stay, how many may give up their place at a time. Adam's steps are of one size for all
# weights: without a bound up to half of a mask is exchanged at once (Guo et al., eq. 3, have two thresholds for it).
EXCHANGED = 0.01


def cubic(progress: float) -> float:
    """The sparsity after a share `progress` (0 to 1) of the schedule, in units of the final one: Zhu & Gupta, eq. 1."""
    return 1 - (1 - progress) ** 3


def choices(kind: Literal["static", "dynamic", "gradual"], steps: int, *, first: bool) -> dict[int, float]:
    """At which of `steps` training steps masks are chosen anew, and with which share of the final sparsity.

    Gradual masks have their final sparsity after two thirds of the first rung, and then stay (as in the paper), so
    every rung ends with the policy's sparsity. No dynamic mask is chosen in the last EVERY steps, which train it.
    """
    match kind:
        case "static":
            return {}
        case "dynamic":
            return dict.fromkeys(range(EVERY, steps - EVERY + 1, EVERY), 1.0)
        case "gradual":
            end = 2 * steps // 3
            return {step: cubic(step / end) for step in range(0, end, EVERY)} | {end: 1.0} if first else {}
        case _:
            assert_never(kind)


def choose(latent: torch.Tensor, kept: torch.Tensor, prune: Prune, ratio: float, share: float = 1.0) -> torch.Tensor:
    """The next mask: small weights that stay are exchanged for larger pruned ones, and the smallest that stay go.

    Args:
        latent: weights, (channels, n).
        kept: boolean, (channels, n): the mask until now.
        prune: how the site is pruned; whatever its criterion was, weights in training are compared by magnitude.
        ratio: the share of weights that the policy prunes there, for single weights.
        share: of that sparsity, 0 to 1.

    Returns:
        Boolean, (channels, n): `round(ratio * share * size)` weights are pruned, or all but n' of each m, where n'
        falls from m to n.
    """
    size = latent.detach().abs()
    if isinstance(prune, NoPruning):
        return torch.ones_like(kept)
    kept = _exchanged(size, kept, prune)
    first_kept = size.double() + kept * size.max()  # what stays comes before what does not, each by magnitude
    match prune:
        case SemiStructured(n=n, m=m):
            stay = m - round((m - n) * share)
            return semistructured.mask(first_kept, stay, m) if stay < m else torch.ones_like(kept)
        case Unstructured() | Threshold():
            return unstructured.mask(first_kept, ratio * share)
        case _:
            assert_never(prune)


def _exchanged(
    size: torch.Tensor, kept: torch.Tensor, prune: SemiStructured | Unstructured | Threshold
) -> torch.Tensor:
    """The mask after the exchanges that gain most magnitude: of any two weights, or of two in the same m."""
    most = max(1, round(EXCHANGED * int(kept.sum())))
    out, come = torch.where(kept, size, torch.inf), torch.where(kept, -1.0, size)
    if isinstance(prune, SemiStructured):
        start = torch.arange(0, size.numel(), prune.m, device=size.device)  # of each m
        smallest, leaves = out.reshape(-1, prune.m).min(dim=1)
        largest, enters = come.reshape(-1, prune.m).max(dim=1)
        leaves, enters = leaves + start, enters + start
    else:
        pairs = min(most, size.numel())
        smallest, leaves = out.flatten().topk(pairs, largest=False)
        largest, enters = come.flatten().topk(pairs)
    gain, pair = (largest - smallest).topk(min(most, len(smallest)))
    pair = pair[gain > 0]
    mask = kept.flatten().clone()
    mask[leaves[pair]], mask[enters[pair]] = False, True
    return mask.reshape(kept.shape)
