"""Who takes training steps, and how large: Adam (Kingma & Ba 2015, arXiv:1412.6980) or SGD with momentum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch

MOMENTUM = 0.9  # Sutskever et al. 2013, of SGD


@dataclass(frozen=True)
class Learned:
    """Tensors that are trained together.

    Attributes:
        tensors: leaves that need gradients.
        pace: their learning rate, in units of the settings' one, under Adam, whose steps are as large as the learning
            rate however large the tensor is. SGD's follow the gradient, which the technique has scaled itself.
    """

    tensors: Sequence[torch.Tensor]
    pace: float = 1.0


class Optimizer:
    """An optimizer whose learning rate follows a schedule over a known number of steps. No weight decay.

    Args:
        learned: what is trained.
        kind: "adam" or "sgd" (momentum 0.9).
        schedule: "cosine" and "linear" fall to zero, "constant" stays.
        learning_rate: that of the first step.
        steps: how many steps there will be.
    """

    def __init__(
        self,
        learned: Sequence[Learned],
        kind: Literal["adam", "sgd"],
        schedule: Literal["cosine", "linear", "constant"],
        learning_rate: float,
        steps: int,
    ) -> None:
        self._schedule, self._steps = schedule, steps
        match kind:
            case "adam":
                rates = [learning_rate * one.pace for one in learned]
                self._torch: torch.optim.Optimizer = torch.optim.Adam(_groups(learned, rates), fused=True)
            case "sgd":
                rates = [learning_rate] * len(learned)
                self._torch = torch.optim.SGD(_groups(learned, rates), momentum=MOMENTUM, fused=True)
            case _:
                assert_never(kind)
        self._rates = rates

    def step(self, loss: torch.Tensor, step: int) -> None:
        """Take step number `step`, from 0, down the gradient of a scalar loss."""
        share = share_of_rate(self._schedule, step, self._steps)
        for group, rate in zip(self._torch.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._torch.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._torch.step()


def share_of_rate(schedule: Literal["cosine", "linear", "constant"], step: int, steps: int) -> float:
    """The learning rate of a step in units of the first one (cosine: Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / steps))
        case "linear":
            return 1 - step / steps
        case "constant":
            return 1.0
        case _:
            assert_never(schedule)


def _groups(learned: Sequence[Learned], rates: Sequence[float]) -> list[dict[str, object]]:
    return [{"params": list(one.tensors), "lr": rate} for one, rate in zip(learned, rates, strict=True)]
