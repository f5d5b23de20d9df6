"""How candidates are evaluated, and what the float model teaches them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from compress.inputs import outputs
from compress.training.teacher import TeacherOutputs, WholeOutputs
from compress.training.teacher import teach as teach_on
from objectives.seeds import seed_of
from objectives.splits import SplitName
from objectives.threads import set_threads
from objectives.workload import LoadedWorkload
from spaces.errors import WorkloadError
from spaces.policy import ChannelPruning, Choice, Distillation
from spaces.target import CodingName

__all__ = [
    "CACHE_BYTES",
    "Evaluation",
    "Teacher",
    "forward",
    "needs_gradients",
    "no_teacher",
    "resolve_device",
    "seed_of",
    "teach",
]

CACHE_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Evaluation:
    """How candidates are evaluated; fixed for a study.

    Attributes:
        seed: of the study.
        chunk: samples a forward pass, and between two looks at a race.
        threads: torch threads.
        device: "cpu" or "cuda".
        steps: training steps after which rungs 1, 2, ... are scored.
        cache: folder for packed files and compressed layers.
        coding: how packed files are coded.
        max_bytes: bound on the compressed layers in the folder, and one on the students that are kept there.
        distillation: the settings that all policies share; None where nothing is distilled.
        smoothing: alpha of SmoothQuant; None is not at all.
        gradients: whether a criterion or codebook needs gradients on calibration data.
        shared: where nodes share what is in the folder (see `compress.places.checked_url`); None does not share. It
            may hold a secret.
    """

    seed: int
    chunk: int
    threads: int
    device: str
    steps: tuple[int, ...]
    cache: Path
    coding: CodingName = "packed"
    max_bytes: int = CACHE_BYTES
    distillation: Distillation | None = None
    smoothing: float | None = None
    gradients: bool = False
    shared: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Teacher:
    """The float model's outputs, float32.

    Attributes:
        train: on train data, as far as they are kept.
        calibration: on calibration data, (samples, ...).
        validation: on validation data, in the racing order, (samples, ...).
    """

    train: TeacherOutputs
    calibration: torch.Tensor
    validation: torch.Tensor


def no_teacher() -> Teacher:
    """For what is neither trained nor calibrated."""
    return Teacher(WholeOutputs(torch.empty(0)), torch.empty(0), torch.empty(0))


def needs_gradients(choices: Iterable[Choice], channels: ChannelPruning | None = None) -> bool:
    """Whether any of these choices looks at gradients on calibration data."""
    return (channels is not None and channels.criterion == "taylor") or any(
        getattr(choice.prune, "criterion", None) == "taylor" or getattr(choice.weights, "fisher", False)
        for choice in choices
    )


def resolve_device(wished: str) -> str:
    """`auto` is cuda where there is one.

    Raises:
        WorkloadError: cuda is wished for and there is none.
    """
    if wished == "cuda" and not torch.cuda.is_available():
        raise WorkloadError("device: given cuda, but torch sees no CUDA device; take auto or cpu")
    return "cuda" if wished != "cpu" and torch.cuda.is_available() else "cpu"


def teach(loaded: LoadedWorkload, evaluation: Evaluation) -> Teacher:
    """The teacher's outputs on train data (none where nothing is distilled), calibration and validation data."""
    set_threads(evaluation.threads)
    model = loaded.model.to(evaluation.device)
    try:
        calibration, validation = (forward(loaded, model, name, evaluation) for name in ("calibration", "validation"))
        if not evaluation.steps and not loaded.students:
            return Teacher(WholeOutputs(calibration[:0]), calibration, validation)
        kept = evaluation.distillation.cache_bytes if evaluation.distillation else None
        inputs, kind = loaded.splits["train"].inputs, loaded.workload.outputs
        try:
            train = teach_on(model, inputs, evaluation.chunk, evaluation.device, kind, kept)
        except Exception as error:
            raise _fails(loaded, "train", error) from error
        return Teacher(train, calibration, validation)
    finally:
        model.cpu()


def forward(loaded: LoadedWorkload, model: nn.Module, split: SplitName, evaluation: Evaluation) -> torch.Tensor:
    """The float model's outputs on a split, (samples, ...).

    Raises:
        WorkloadError: it fails.
    """
    try:
        return outputs(model, loaded.splits[split].inputs, evaluation.chunk, evaluation.device)
    except Exception as error:
        raise _fails(loaded, split, error) from error


def _fails(loaded: LoadedWorkload, split: SplitName, error: Exception) -> WorkloadError:
    return WorkloadError(f"{loaded.entry}: the model fails on the {split} split: {type(error).__name__}: {error}")
