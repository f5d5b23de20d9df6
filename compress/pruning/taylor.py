"""Taylor importance, Molchanov et al. 2019 (arXiv:1906.10771): the squared change of the loss without a weight."""

import torch


def taylor(rows: torch.Tensor, gradient: torch.Tensor | None, fisher: torch.Tensor | None) -> torch.Tensor:
    """How much the loss would change if a weight were zero, to first order, squared; float64 (channels, n).

    The paper's importance is I = (E(D, W) - E(D, W | w = 0))^2, which to first order is I^(1) = (g w)^2. It averages
    these squares over batches; with batches of one sample that is mean(g^2) w^2 = fisher w^2, which is taken where
    there is a `fisher`. Only where there is none the mean `gradient` is squared: in a trained model the gradients of
    the samples cancel, so that it says little.

    Args:
        rows: weights, (channels, n).
        gradient: mean gradient of the loss, (channels, n).
        fisher: mean over samples of the squared gradient, (channels, n).

    Raises:
        ValueError: neither is given.
    """
    weights = rows.detach().double()  # float64, since the square of 1e-25 is none that float32 holds
    if fisher is not None:
        return weights.square() * fisher.double()  # mean over samples of I^(1)
    if gradient is None:
        raise ValueError("neither gradient nor fisher is given: Taylor importance needs one")
    return (gradient.double() * weights).square()  # I^(1)
