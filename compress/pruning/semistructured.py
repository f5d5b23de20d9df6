"""N:M sparsity, Mishra et al. 2021 (arXiv:2104.08378): of each m consecutive weights of a channel n stay."""

import torch

from spaces.errors import CandidateError


def mask(importance: torch.Tensor, n: int, m: int, *, name: str = "(unnamed)") -> torch.Tensor:
    """Which weights stay: of each `m` consecutive columns the `n` of most importance.

    Args:
        importance: (channels, columns).
        n: how many stay, of equal ones the later.
        m: of how many.
        name: the site, for the error.

    Returns:
        Boolean (channels, columns).

    Raises:
        CandidateError: m does not divide the columns.
    """
    channels, columns = importance.shape
    if columns % m:
        raise CandidateError(
            f"site {name}: {n}:{m} pruning keeps {n} of each {m} consecutive weights of a channel, but a channel has "
            f"{columns} weights, which {m} does not divide: take {n}:{m} out of its choices with space.rules"
        )
    groups = importance.reshape(channels, columns // m, m)
    least_first = torch.sort(groups, dim=2, stable=True).indices
    kept = torch.ones_like(groups, dtype=torch.bool).scatter_(2, least_first[..., : m - n], False)
    return kept.reshape(channels, columns)
