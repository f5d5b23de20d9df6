"""Unstructured pruning: the single weights of least importance become zero, as exactly many as asked."""

import torch


def mask(importance: torch.Tensor, ratio: float, *, per_row: bool = False) -> torch.Tensor:
    """Which weights stay; the mask of a higher ratio is part of that of a lower one.

    Args:
        importance: any shape; higher stays. (channels, n) if `per_row`.
        ratio: share of weights to prune, 0 to below 1; `round(ratio * number of weights)` of them are.
        per_row: compare the weights of a row with each other only. Each row loses as many; of what does not divide by
            the number of rows the first rows lose one more.

    Returns:
        Boolean tensor of the importance's shape. Of equal weights the later ones stay.
    """
    pruned = round(ratio * importance.numel())
    groups = importance.reshape(len(importance) if per_row else 1, -1)  # (rows or 1, weights compared)
    each, more = divmod(pruned, len(groups))
    least_first = torch.sort(groups, dim=1, stable=True).indices
    kept = torch.ones_like(groups, dtype=torch.bool)
    kept.scatter_(1, least_first[:, :each], False)
    if more:
        kept[:more].scatter_(1, least_first[:more, each : each + 1], False)
    return kept.reshape(importance.shape)
