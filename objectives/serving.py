"""Packed files in use: loaded as a ready model, with a workload's architecture or one that is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compress.artifact import Opened, open_packed
from compress.coding import CodedWeight
from compress.family import Family, Member, Variant
from compress.inputs import Inputs
from objectives.evaluation import Evaluation, no_teacher
from objectives.models import Models
from objectives.replay import workload_of
from objectives.workload import LoadedWorkload


def load(
    path: Path | str,
    *,
    workload: str | None = None,
    model: nn.Module | None = None,
    example: Inputs | None = None,
    student: str | None = None,
) -> nn.Module:
    """A ready model, in evaluation mode on the CPU, with the weights of a packed file.

    Args:
        path: the packed file.
        workload: `module:function` or `file.py:function` of the workload it was packed from; None is the one that the
            file names, if that ships with Slimfront. What a file names is never imported otherwise.
        model: a model of the same architecture, instead of a workload's; it is not changed.
        example: one batch of its inputs; needed beside `model` where the file's model has channels or blocks cut out.
        student: the workload's name for `model`, where the file is of one of its smaller models.

    Raises:
        ArtifactError: the file is missing, damaged, or packed from another architecture.
        WorkloadError: the workload is not known or cannot be loaded.

    Example:
        >>> model = load("model.safetensors")  # doctest: +SKIP
        >>> model(images).argmax(dim=1)  # doctest: +SKIP
    """
    opened = open_packed(Path(path))
    if model is not None:
        return unpack(Family({student: Member(student, model, example, opened.entry)}), opened).model
    return unpack(family_of(workload_of(opened.entry, workload, f"{path} was packed")), opened).model


@dataclass(frozen=True, eq=False)
class Unpacked:
    """What a packed file holds: which of a workload's models, its coded weights, and a ready model with all of it."""

    variant: Variant
    coded: Mapping[str, CodedWeight]
    model: nn.Module


def unpack(family: Family, opened: Opened) -> Unpacked:
    """Read a packed file's content, once.

    Raises:
        ArtifactError: the file is damaged, or packed from none of these models.
    """
    variant = family.of_file(opened)
    rest, coded = variant.layout.read(opened)
    return Unpacked(variant, coded, variant.layout.assemble(opened, rest, coded))


def family_of(loaded: LoadedWorkload) -> Family:
    """The models that a workload offers, as architectures for packed files: nothing is trained for it."""
    return Models(loaded, Evaluation(0, 1, 1, "cpu", (), Path(), max_bytes=0), no_teacher()).family
