"""What a model's outputs on a split are worth: the workload's metric, checked and reduced."""

from typing import Any

import torch

from objectives.accuracy import Accuracy, summarize
from objectives.splits import SplitName
from objectives.workload import LoadedWorkload
from spaces.errors import CandidateError

JUDGED: tuple[SplitName, SplitName] = ("validation", "test")


def judge(loaded: LoadedWorkload, outputs: torch.Tensor, name: SplitName) -> Accuracy:
    """The accuracy of outputs for all samples of a split, (samples, ...).

    Raises:
        CandidateError: the metric fails, or is neither one finite number nor one a sample.
    """
    split = loaded.splits[name]
    targets: Any = split.targets
    try:
        result = loaded.workload.metric(outputs, targets)
    except Exception as error:
        raise CandidateError(f"the metric failed on the {name} split: {type(error).__name__}: {error}") from error
    return summarize(result, split.samples)
