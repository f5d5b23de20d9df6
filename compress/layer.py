"""One site compressed at one choice, with what that costs; many choices of a site are compressed together."""

from dataclasses import dataclass

import torch

from compress.coding import CodedWeight


@dataclass(frozen=True)
class Cost:
    """What a choice at a site costs.

    Attributes:
        bytes: of scales and codes in the packed file.
        error: squared error of the output on calibration data, relative to the output's square; of the weights where
            the site's input is not known.
        note: what was done otherwise than chosen, and why.
    """

    bytes: int
    error: float
    note: str | None = None


@dataclass(frozen=True)
class CompressedLayer:
    """A site compressed at a choice.

    Attributes:
        coded: its weights as they are stored.
        cost: what they cost.
        kept: boolean (channels, n), the weights that were not pruned; None where all stay. (One that is kept may still
            be rounded to zero.)
        shift: (channels,), what the output lost on average: the bias correction; None where it is not known.
    """

    coded: CodedWeight
    cost: Cost
    kept: torch.Tensor | None = None
    shift: torch.Tensor | None = None
