"""What a model's outputs on a split are worth, by the workload's metric; and who judges what that is enough for."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from objectives.accuracy import Accuracy, summarize
from objectives.failures import sorted_failures
from objectives.racing import Race
from objectives.splits import SplitName
from objectives.workload import LoadedWorkload

JUDGED: tuple[SplitName, SplitName] = ("validation", "test")


class Judge(Protocol):
    """Decides how far a candidate is taken, by what was known when it was asked."""

    def promote(self, rung: int, accuracy: float, bytes: int) -> bool:
        """Whether a candidate with this score on a rung goes on to the next one."""

    def keep(self, accuracy: float, bytes: int) -> bool:
        """Whether the packed file of a candidate with this last score is kept."""

    def race(self, rung: int, bytes: int) -> Race | None:
        """What a candidate of this size must beat on a rung; None evaluates it in full."""


@dataclass(frozen=True)
class FixedJudge:
    """Promotes up to a rung, whatever the scores, and races nobody.

    Attributes:
        last: the last rung; None is the last there is.
        kept: whether packed files are kept.
    """

    last: int | None = None
    kept: bool = True

    def promote(self, rung: int, accuracy: float, bytes: int) -> bool:
        """Whether `rung` lies before the last one."""
        return self.last is None or rung < self.last

    def keep(self, accuracy: float, bytes: int) -> bool:
        """The same for all."""
        return self.kept

    def race(self, rung: int, bytes: int) -> Race | None:
        """None: all are evaluated in full."""
        return None


def judge(loaded: LoadedWorkload, outputs: torch.Tensor, name: SplitName) -> Accuracy:
    """The accuracy of outputs for all samples of a split, (samples, ...).

    Raises:
        CandidateError: the metric fails, or is neither one finite number nor one a sample.
        RetryableError: it runs out of memory, or the system refuses it something.
    """
    return summarize(measure(loaded, outputs, name), loaded.splits[name].samples)


def measure(loaded: LoadedWorkload, outputs: torch.Tensor, name: SplitName, start: int = 0) -> Any:
    """What the metric returns for the outputs for consecutive samples of a split, (samples, ...), from `start` on.

    Raises:
        CandidateError: it fails.
        RetryableError: it runs out of memory, or the system refuses it something.
    """
    targets: Any = loaded.splits[name].targets
    if targets is not None:
        targets = targets[start : start + outputs.shape[0]]
    with sorted_failures(f"the metric failed on the {name} split: "):
        return loaded.workload.metric(outputs, targets)
