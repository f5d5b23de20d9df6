"""How much each weight of a site matters by a criterion, and which weights a choice of pruning keeps."""

from typing import TYPE_CHECKING, assert_never

import torch

from compress.pruning import semistructured, threshold, unstructured
from compress.pruning.apoz import apoz
from compress.pruning.magnitude import magnitude
from compress.pruning.obs import saliency
from compress.pruning.random_scores import random_scores
from compress.pruning.taylor import taylor
from compress.pruning.wanda import wanda
from spaces.choice import Criterion, NoPruning, Prune, SemiStructured, Threshold, Unstructured
from spaces.errors import CandidateError

if TYPE_CHECKING:
    from compress.statistics import SiteStatistics


def importance(criterion: Criterion, rows: torch.Tensor, statistics: "SiteStatistics", name: str) -> torch.Tensor:
    """The importance of each weight, float32 or float64 (channels, n); higher stays.

    Args:
        criterion: what counts.
        rows: weights, (channels, n).
        statistics: what calibration data say about the site; "magnitude" and "random" look at none of it.
        name: of the site.

    Raises:
        CandidateError: the site has not what the criterion needs, or its scores are not finite.
    """
    scores = _scores(criterion, rows, statistics, name)
    if not bool(scores.isfinite().all()):
        raise CandidateError(
            f"site {name}: criterion {criterion} gives scores that are not finite: look for NaN and infinity in the "
            f"weights and the calibration data"
        )
    return scores


def kept_mask(prune: Prune, rows: torch.Tensor, statistics: "SiteStatistics", name: str) -> torch.Tensor:
    """Which weights of a site stay, boolean (channels, n).

    Args:
        prune: the pruning of a choice.
        rows: weights, (channels, n).
        statistics: what calibration data say about the site, for the criteria that need them.
        name: of the site.

    Raises:
        CandidateError: the site has not what the criterion needs, or N:M does not fit its shape.
    """
    match prune:
        case NoPruning():
            return torch.ones_like(rows, dtype=torch.bool)
        case Unstructured(ratio=ratio, criterion=criterion):
            scores = importance(criterion, rows, statistics, name)
            return unstructured.mask(scores, ratio, per_row=criterion == "wanda")  # per output, as its section 3 has it
        case SemiStructured(n=n, m=m, criterion=criterion):
            return semistructured.mask(importance(criterion, rows, statistics, name), n, m, name=name)
        case Threshold(value=value):
            return threshold.mask(rows, value)
        case _:
            assert_never(prune)


def _scores(criterion: Criterion, rows: torch.Tensor, known: "SiteStatistics", name: str) -> torch.Tensor:
    match criterion:
        case "magnitude":
            return magnitude(rows)
        case "random":
            return random_scores(rows, name)
        case "taylor":
            if known.gradient is None and known.fisher is None:
                raise _missing(criterion, "a gradient", "the loss does not reach its weight, or none was given", name)
            return taylor(rows, known.gradient, known.fisher)
        case "apoz":
            if known.zeros is None:
                raise _missing(criterion, "a share of zeros for each output", "none was counted", name)
            return apoz(rows, known.zeros)
        case "wanda" | "hessian":
            if known.hessian is None:
                raise _missing(criterion, "a Hessian of its inputs", known.reason or "none was collected", name)
            if criterion == "wanda":
                return wanda(rows, known.hessian)
            try:
                return saliency(rows, known.hessian)
            except ValueError as error:
                raise CandidateError(f"site {name}: criterion hessian: {error}") from error
        case _:
            assert_never(criterion)


def _missing(criterion: Criterion, what: str, why: str, name: str) -> CandidateError:
    return CandidateError(
        f"site {name}: criterion {criterion} needs {what}, which it has not ({why}): take another criterion for this "
        f"site with space.rules"
    )
