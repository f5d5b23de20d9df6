"""The layer database: each site compressed at each choice once, with its exact bytes and its error."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import nn

from compress.coding import CodedWeight, Kind
from compress.pruning.magnitude import magnitude_mask
from compress.quantization.uniform import quantize
from compress.sites import Site
from spaces.errors import CandidateError
from spaces.policy import Choice, Float16, Float32, Uniform

HALF_MAX = 65504.0


@dataclass(frozen=True)
class Cost:
    """What a choice at a site costs: bytes in the file, and relative squared error of the weights."""

    bytes: int
    error: float


def kept_mask(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Which weights a choice keeps (boolean, the weight's shape)."""
    return magnitude_mask(weight, choice.ratio)


def compress(site: Site, weight: torch.Tensor, choice: Choice) -> CodedWeight:
    """Prune and quantize one site's weight.

    Raises:
        CandidateError: the choice cannot hold this weight.
    """
    rows = site.rows(weight.detach().float())
    kept = site.rows(kept_mask(weight, choice))
    match choice.weights:
        case Uniform(bits=bits):
            codes, scales, exponent = quantize(rows, kept, bits)
            return CodedWeight(Kind.UNIFORM, codes, bits, scales, exponent)
        case Float16():
            if float(rows.abs().max()) > HALF_MAX:
                raise CandidateError(
                    f"site {site.name}: float16 holds up to {HALF_MAX:.0f}, the largest weight is "
                    f"{float(rows.abs().max()):.3g}: take float16 out of its choices with space.rules"
                )
            return CodedWeight(Kind.FLOAT16, torch.where(kept, rows, 0.0).half(), 16)
        case Float32():
            return CodedWeight(Kind.FLOAT32, torch.where(kept, rows, 0.0), 32)
        case _:
            assert_never(choice.weights)


class LayerDatabase:
    """Compressed sites, made when first asked for and kept up to a bound.

    Args:
        model: the float model; it is read, never changed.
        sites: its sites.
        max_bytes: bound on the memory for kept weights; what does not fit is made again when asked.
    """

    def __init__(self, model: nn.Module, sites: Iterable[Site], max_bytes: int = 512 * 2**20) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._sites = {site.name: site for site in sites}
        self._weights = {name: parameters[site.parameter].detach() for name, site in self._sites.items()}
        self._kept: OrderedDict[tuple[str, Choice], CodedWeight] = OrderedDict()
        self._costs: dict[tuple[str, Choice], Cost] = {}
        self._free = max_bytes

    def weight(self, name: str) -> torch.Tensor:
        """The float weight of a site, to be read only."""
        return self._weights[name]

    def coded(self, name: str, choice: Choice) -> CodedWeight:
        """A site's coded weight at a choice."""
        key = (name, choice)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        coded = compress(self._sites[name], self._weights[name], choice)
        self._kept[key] = coded
        self._free -= coded.values.nbytes
        while self._free < 0 and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._free += dropped.values.nbytes
        return coded

    def cost(self, name: str, choice: Choice) -> Cost:
        """Bytes and relative squared error ||W - Q||^2 / ||W||^2 of a site at a choice."""
        key = (name, choice)
        if key not in self._costs:
            coded = self.coded(name, choice)
            rows = self._sites[name].rows(self._weights[name].float())
            norm = float(rows.double().square().sum())
            error = float((coded.decode() - rows).double().square().sum())
            self._costs[key] = Cost(coded.payload_bytes, error / norm if norm > 0 else 0.0)
        return self._costs[key]

    def policy(self, choices: Mapping[str, Choice]) -> dict[str, CodedWeight]:
        """The coded weights of all sites of a policy."""
        return {name: self.coded(name, choice) for name, choice in choices.items()}
