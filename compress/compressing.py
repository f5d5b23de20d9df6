"""How one site is compressed: which weights stay, how the others are rounded, and what that costs."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from compress.bias import bias_shift
from compress.coding import CodedWeight
from compress.compensation import Job, Swept, compensate
from compress.layer import CompressedLayer, Cost
from compress.nearest import nearest
from compress.pruning.importance import kept_mask
from compress.quantization.adaround import adaround
from compress.sites import Site
from compress.statistics import SiteStatistics
from spaces.errors import CandidateError
from spaces.policy import Choice, Codebook, Float16, Float32, Prune, SemiStructured, Uniform, Unstructured
from spaces.target import CodingName

HALF_MAX = 65504.0


def compress_layer(
    site: Site,
    weight: torch.Tensor,
    choices: Sequence[Choice],
    statistics: SiteStatistics,
    coding: CodingName,
    lost: torch.Tensor | None = None,
) -> list[CompressedLayer]:
    """Prune and quantize one site's weight in several ways, each for itself.

    Args:
        site: the site.
        weight: its float weight, in the site's shape.
        choices: what to do; their activations play no part here.
        statistics: what calibration data say about the site.
        coding: how its bytes are counted.
        lost: what its output has lost on average already, (channels,), as channels before it were removed.

    Raises:
        CandidateError: a choice cannot hold this weight, or needs statistics that the site has not.
    """
    rows = site.rows(weight.detach().float())
    error, found = OutputError(rows, statistics.hessian), []
    for coded, kept, note in _ways(site.name, rows, choices, statistics):
        decoded = coded.decode()
        shift = None if statistics.mean is None else bias_shift(rows, decoded, statistics.mean)
        shift = shift if lost is None or shift is None else shift + lost
        cost = Cost(coded.payload_bytes(coding), error.of(decoded), note)
        found.append(CompressedLayer(coded, cost, None if bool(kept.all()) else kept, shift))
    return found


Way = tuple[CodedWeight, torch.Tensor, str | None]


def _ways(name: str, rows: torch.Tensor, choices: Sequence[Choice], statistics: SiteStatistics) -> list[Way]:
    """The coded weights of each choice, which of them stay, and what was done otherwise than chosen."""
    masks: dict[Prune, torch.Tensor] = {}

    def mask(prune: Prune) -> torch.Tensor:
        if prune not in masks:
            masks[prune] = kept_mask(prune, rows, statistics, name)
        return masks[prune]

    found: dict[int, Way] = {}
    jobs: dict[int | Prune, Job] = {}  # of a choice, or of a pruning whose refilled weights are rounded afterwards
    for i, choice in enumerate(choices):
        _check(name, rows, choice)
        prune, rounding = choice.prune, getattr(choice.weights, "rounding", "nearest")
        if isinstance(prune, Unstructured | SemiStructured) and prune.criterion == "hessian":
            later = isinstance(choice.weights, Uniform | Codebook) and rounding != "gptq"
            jobs[prune if later else i] = Job(Float32() if later else choice.weights, prune=prune)
        elif rounding == "gptq":
            jobs[i] = Job(choice.weights, mask(prune))
        else:
            coded = nearest(rows, mask(prune), choice.weights, statistics.fisher)
            found[i] = _rounded(coded, rows, mask(prune), choice, statistics)
    hessian, fisher = statistics.hessian, statistics.fisher
    swept = compensate(rows, hessian, list(jobs.values()), fisher=fisher, name=name) if jobs else []
    done = dict(zip(jobs, swept, strict=True))
    for i, choice in enumerate(choices):
        if i in done:
            one = done[i]
            found[i] = one.coded, one.kept, _note("rounded to nearest, pruned by magnitude", one, statistics)
        elif i not in found:
            found[i] = _refilled(done[choice.prune], choice, statistics)
    return [found[i] for i in range(len(choices))]


def _refilled(pruned: Swept, choice: Choice, statistics: SiteStatistics) -> Way:
    """The weights that make up for those pruned by the output error, rounded as chosen.

    As they are the best ones with their mask, the output error to them differs from that to the original weights by
    what no rounding can change: AdaRound minimises the one with the other.
    """
    rows = pruned.coded.decode()
    coded = nearest(rows, pruned.kept, choice.weights, statistics.fisher)
    if pruned.note is None:
        return _rounded(coded, rows, pruned.kept, choice, statistics)
    learned = isinstance(choice.weights, Uniform) and choice.weights.rounding == "adaround"
    what = "rounded to nearest, pruned by magnitude" if learned else "pruned by magnitude"
    return coded, pruned.kept, _note(what, pruned, statistics)


def _note(what: str, one: Swept, statistics: SiteStatistics) -> str | None:
    """What was done otherwise than chosen where the Hessian is of no use, and why."""
    if one.note is None:
        return None
    return f"{what}: {statistics.reason if statistics.hessian is None and statistics.reason else one.note}"


def _rounded(
    coded: CodedWeight, rows: torch.Tensor, kept: torch.Tensor, choice: Choice, statistics: SiteStatistics
) -> Way:
    """What was rounded to nearest, rounded by AdaRound where the choice says so."""
    if not isinstance(choice.weights, Uniform) or choice.weights.rounding != "adaround" or coded.grid is None:
        return coded, kept, None
    if statistics.hessian is None:
        return coded, kept, f"rounded to nearest: {statistics.reason or 'there is no Hessian of its inputs'}"
    codes = adaround(rows, kept, coded.grid, coded.bits, statistics.hessian)
    return replace(coded, values=codes), kept, None


def _check(name: str, rows: torch.Tensor, choice: Choice) -> None:
    """Refuse what cannot hold a site's weights, with its name."""
    size = choice.weights.group_size if isinstance(choice.weights, Uniform) else None
    if size is not None and rows.shape[1] % size:
        raise CandidateError(
            f"site {name}: group_size {size} does not divide its {rows.shape[1]} weights a channel: take another for "
            "this site with space.rules"
        )
    if isinstance(choice.weights, Float16) and float(rows.abs().max()) > HALF_MAX:
        raise CandidateError(
            f"site {name}: float16 holds up to {HALF_MAX:.0f}, the largest weight is {float(rows.abs().max()):.3g}: "
            "take float16 out of its choices with space.rules"
        )


class OutputError:
    """Squared error of a layer's output on calibration data, relative to the output's own square.

    tr(D H D^T) / tr(W H W^T) with D = W - W~ and H the mean of x x^T; the identity stands for H where it is not known.

    Args:
        rows: float weights, (channels, n).
        hessian: (blocks, n, n) or None.
    """

    def __init__(self, rows: torch.Tensor, hessian: torch.Tensor | None) -> None:
        self._rows = rows.double()
        self._hessian = None if hessian is None else hessian.double()
        self._whole = self._square(self._rows)

    def of(self, decoded: torch.Tensor) -> float:
        """The error of what stands for the weights, (channels, n)."""
        return self._square(self._rows - decoded.double()) / self._whole if self._whole > 0 else 0.0

    def _square(self, rows: torch.Tensor) -> float:
        if self._hessian is None:
            return float(rows.square().sum())
        blocked = rows.reshape(len(self._hessian), -1, rows.shape[1])  # (blocks, channels / blocks, n)
        return float(((blocked @ self._hessian) * blocked).sum().clamp(min=0))
