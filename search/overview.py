"""What a config would search: the sites of its model, its sizes, and how many policies there are."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from search.candidates import check, prepare
from search.config import Config


@dataclass(frozen=True)
class SiteView:
    """A site: its shape, its weights and their share of the model's, its choices, and what is tied to it."""

    name: str
    shape: tuple[int, ...]
    weights: int
    share: float
    choices: int
    tied: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """What a config would search.

    Attributes:
        float_bytes: of the uncompressed model's packed file; its accuracies are on validation and test.
        smallest_bytes: of the smallest file in the space, one-shot: exact, nothing is trained.
        axes: along which policies differ.
        log10_policies: how many ways there are to choose for all sites; continuous axes are not counted.
        device: where candidates would be scored.
    """

    study: str
    workload: str
    sites: tuple[SiteView, ...]
    float_bytes: int
    float_accuracy: float
    float_test_accuracy: float
    macs: float
    smallest_bytes: int
    axes: int
    log10_policies: float
    device: str

    def document(self) -> dict[str, Any]:
        """The overview as JSON values: what `slimfront inspect --json` prints."""
        return asdict(self)


def overview(config: Config) -> Overview:
    """Load a config's workload, score its float model and size its space; nothing is written.

    Raises:
        ConfigError, WorkloadError: it cannot be searched.
    """
    checked = check(config)
    whole = sum(parameter.numel() for parameter in checked.loaded.model.parameters())
    choices = {site.name: len(site.choices()) for site in checked.space.sites}
    score = checked.float_score
    return Overview(
        study=config.study,
        workload=config.workload,
        sites=tuple(
            SiteView(site.name, site.shape, site.size, site.size / whole, choices[site.name], site.tied)
            for site in checked.loaded.sites
        ),
        float_bytes=score.bytes,
        float_accuracy=score.validation.value,
        float_test_accuracy=score.test.value,
        macs=score.macs,
        smallest_bytes=prepare(config, checked).smallest_bytes,
        axes=len(checked.space.axes()),
        log10_policies=math.log10(checked.space.size()),
        device=checked.evaluation.device,
    )
