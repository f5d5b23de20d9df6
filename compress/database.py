"""The layer database: each site compressed at each choice once, with its exact bytes and its error."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import nn

from compress.compressing import compress_layer
from compress.layer import CompressedLayer, Cost
from compress.quantization.activations import InputGrid, fake_quantize, fit_range
from compress.restriction import Excerpt, excerpted
from compress.shelf import Shelf
from compress.sites import Site
from compress.statistics import SiteStatistics
from spaces.errors import CandidateError
from spaces.policy import Choice, DynamicActivations, StaticActivations
from spaces.target import CodingName

CODE_VERSION = 2  # of everything that shapes a compressed layer: raise it when a result changes
CODER_VERSION = version("constriction")  # entropy-coded layers have the bytes that it gives
MEMORY_BYTES = 512 * 2**20

Statistics = Callable[[], Mapping[str, SiteStatistics]]


class LayerDatabase:
    """Compressed sites, made when first asked for, kept on a shelf and, up to a bound, in memory.

    Args:
        model: the whole float model; it is read, never changed.
        sites: its sites.
        statistics: gives what calibration data say about the sites; called once, when a layer has to be made.
        identity: of the model, the calibration data and how they are evaluated: layers are found again under it.
        coding: how packed files are coded.
        shelf: where layers are kept on disk; None keeps them in memory only.
        memory_bytes: bound on the layers in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[Site],
        statistics: Statistics,
        identity: str = "",
        *,
        coding: CodingName = "packed",
        shelf: Shelf | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._sites = {site.name: site for site in sites}
        self._weights = {name: parameters[site.parameter].detach() for name, site in self._sites.items()}
        self._collect, self._collected = statistics, dict[str, SiteStatistics]()
        self._identity, self._coding, self._shelf = identity, coding, shelf
        self._kept: OrderedDict[str, CompressedLayer] = OrderedDict()
        self._costs: dict[str, Cost] = {}
        self._grids: dict[tuple[str, StaticActivations | DynamicActivations], tuple[InputGrid, float]] = {}
        self._free = memory_bytes

    def weight(self, name: str) -> torch.Tensor:
        """The float weight of a site, to be read only."""
        return self._weights[name]

    def layer(self, site: Site, choice: Choice, cut: Excerpt | None = None) -> CompressedLayer:
        """A site compressed at a choice.

        Args:
            site: as it is in the model at hand: with fewer channels where some were removed.
            choice: what is done.
            cut: where channels were removed, which of the weights are left.

        Raises:
            CandidateError: the choice does not fit the site.
        """
        return self.layers(site, [choice], cut)[0]

    def layers(self, site: Site, choices: Sequence[Choice], cut: Excerpt | None = None) -> list[CompressedLayer]:
        """A site compressed at several choices, together where they have to be made.

        Raises:
            CandidateError: a choice does not fit the site.
        """
        plain = {choice: choice.model_copy(update={"activations": None}) for choice in choices}
        keys = {one: self._key(site.name, one, cut) for one in plain.values()}
        found = {one: layer for one, key in keys.items() if (layer := self._known(key)) is not None}
        missing = [one for one in keys if one not in found]
        if missing:
            weight, statistics = self._weights[site.name], self._statistics(site.name)
            lost = None
            if cut is not None:
                weight, statistics, lost = excerpted(weight, statistics, self._sites[site.name], site, cut)
            made = compress_layer(site, weight, missing, statistics, self._coding, lost)
            for one, layer in zip(missing, made, strict=True):
                found[one] = layer
                self._remember(keys[one], layer)
                if self._shelf is not None:
                    self._shelf.put(keys[one], layer)
        return [self._with_inputs(site.name, found[plain[choice]], choice) for choice in choices]

    def cost(self, site: Site, choice: Choice, cut: Excerpt | None = None) -> Cost:
        """What a site costs at a choice.

        Raises:
            CandidateError: the choice does not fit the site.
        """
        return self.costs(site, [choice], cut)[0]

    def costs(self, site: Site, choices: Sequence[Choice], cut: Excerpt | None = None) -> list[Cost]:
        """What a site costs at several choices; remembered longer than the layers themselves."""
        keys = [self._key(site.name, choice, cut) for choice in choices]
        missing = [choice for choice, key in zip(choices, keys, strict=True) if key not in self._costs]
        for choice, layer in zip(missing, self.layers(site, missing, cut), strict=True):
            self._costs[self._key(site.name, choice, cut)] = layer.cost
        return [self._costs[key] for key in keys]

    def digest(self, name: str, choices: Sequence[Choice], cut: Excerpt | None = None) -> str:
        """SHA-256 (hex) of all that shapes a site's layers at these choices, in this order."""
        return hashlib.sha256(" ".join(self._key(name, choice, cut) for choice in choices).encode()).hexdigest()

    def _key(self, name: str, choice: Choice, cut: Excerpt | None) -> str:
        parts = [
            CODE_VERSION,
            torch.__version__,
            CODER_VERSION,
            self._identity,
            name,
            self._coding,
            choice.model_dump(mode="json"),
            None if cut is None else cut.digest,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _statistics(self, name: str) -> SiteStatistics:
        if not self._collected:
            self._collected = dict(self._collect())
        return self._collected[name]

    def _known(self, key: str) -> CompressedLayer | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        layer = self._shelf.get(key) if self._shelf is not None else None
        if layer is not None:
            self._remember(key, layer)
        return layer

    def _remember(self, key: str, layer: CompressedLayer) -> None:
        self._kept[key] = layer
        self._free -= _memory(layer)
        while self._free < 0 and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._free += _memory(dropped)

    def _with_inputs(self, name: str, layer: CompressedLayer, choice: Choice) -> CompressedLayer:
        """A layer whose input is quantized as well; what that costs in accuracy is added to its error."""
        if choice.activations is None:
            return layer
        grid, error = self._grid(name, choice.activations)
        coded = replace(layer.coded, inputs=grid)
        bytes = layer.cost.bytes + coded.head_bytes - layer.coded.head_bytes
        return replace(layer, coded=coded, cost=replace(layer.cost, bytes=bytes, error=layer.cost.error + error))

    def _grid(self, name: str, wished: StaticActivations | DynamicActivations) -> tuple[InputGrid, float]:
        if (name, wished) not in self._grids:
            sample = self._statistics(name).inputs
            if sample is None:
                raise CandidateError(f"site {name}: its input is no float tensor, so it cannot be quantized")
            low_high = fit_range(sample, wished.bits, wished.range) if isinstance(wished, StaticActivations) else ()
            grid = InputGrid(wished.bits, *low_high)
            self._grids[name, wished] = grid, _relative_error(sample, grid)
        return self._grids[name, wished]


def _relative_error(sample: torch.Tensor, grid: InputGrid) -> float:
    """Squared error of rounded inputs, relative to their square; a dynamic grid is taken to have the sample's range."""
    lost = float((fake_quantize(sample[None], grid)[0].double() - sample.double()).square().sum())
    whole = float(sample.double().square().sum())
    return lost / whole if whole > 0 else 0.0


def _memory(layer: CompressedLayer) -> int:
    coded, grid = layer.coded, layer.coded.grid
    tensors = [coded.values, coded.entries, layer.kept, layer.shift, *((grid.step, grid.low) if grid else ())]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
