"""Masks chosen while the other weights make up for what is pruned, as SparseGPT's are (Frantar & Alistarh 2023).

The paper (arXiv:2301.00774, section 3.3) chooses among 128 columns at a time, with the errors of those before in mind.
Here the whole layer is looked at in a few rounds, each of which prunes more (Zhu & Gupta 2017, arXiv:1710.01878,
eq. 1), and after each the weights that stay are fitted anew: on `animals` at 60 % and 4 bits a third of the output
error of the paper's way is left, and the ratio is met over the whole layer.
"""

import torch

from compress.hessian import Curvature
from compress.pruning import semistructured, unstructured
from compress.pruning.refilling import refill
from spaces.choice import SemiStructured, Unstructured

ROUNDS = 6  # 10 leave 3 % less output error
STEPS = 10  # of fitting after each round; 20 leave 1 % less


def masks(
    rows: torch.Tensor, curvature: Curvature, prunes: list[Unstructured | SemiStructured], name: str
) -> list[torch.Tensor]:
    """Which weights stay, boolean (channels, n) for each pruning.

    Args:
        rows: weights, (channels, n).
        curvature: of the layer's output error.
        prunes: how much is pruned; their criterion plays no part.
        name: of the site, for the error.

    Raises:
        CandidateError: m does not divide n.
    """
    weights = curvature.laid_out(rows.expand(len(prunes), *rows.shape))
    pruned_one = curvature.inverse_diagonal[..., None]
    left, kept = weights, torch.ones_like(weights, dtype=torch.bool)
    found: list[torch.Tensor] = []
    for i in range(1, ROUNDS + 1):
        error = left.square() / pruned_one  # w^2 / [H^-1]_pp, eq. 3: of what is pruned already it is zero
        scores = curvature.rows(torch.where(kept, error, -1.0))
        found = [_mask(prune, score, i, name) for prune, score in zip(prunes, scores, strict=True)]
        if i < ROUNDS:
            kept = curvature.laid_out(torch.stack(found))
            left = refill(left, weights, kept, curvature, STEPS)
    return found


def _mask(prune: Unstructured | SemiStructured, scores: torch.Tensor, done: int, name: str) -> torch.Tensor:
    """Which weights stay after a round."""
    share = 1 - (1 - done / ROUNDS) ** 3
    if isinstance(prune, Unstructured):
        return unstructured.mask(scores, prune.ratio * share if done < ROUNDS else prune.ratio)
    gone = round((prune.m - prune.n) * share)
    return semistructured.mask(scores, prune.m - gone, prune.m, name=name)
