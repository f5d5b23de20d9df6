"""The data of a workload: what a user gives as a split, read into memory once."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from compress.inputs import Inputs, count, take
from spaces.errors import WorkloadError

Data = Sequence[Any] | Dataset[Any] | DataLoader[Any] | torch.Tensor | Mapping[str, torch.Tensor]
SplitName = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "validation", "test")


@dataclass(frozen=True)
class Split:
    """All samples of a split in memory, in a fixed order."""

    inputs: Inputs
    targets: torch.Tensor | None

    @property
    def samples(self) -> int:
        """How many there are."""
        return count(self.inputs)

    def shuffled(self, seed: int) -> "Split":
        """The same samples in an order that depends on the seed and on how many there are alone."""
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        return Split(take(self.inputs, order), None if self.targets is None else self.targets[order])


def read_split(entry: str, name: SplitName, data: Any) -> Split:
    """All samples of what a user gave as a split.

    Raises:
        WorkloadError: it cannot be read, is empty, or inputs and targets have different lengths.
    """
    where = f"{entry}: the {name} split"
    try:
        split = _collect(data)
    except WorkloadError as error:
        raise WorkloadError(f"{where} {error}") from error
    except Exception as error:
        raise WorkloadError(f"{where} cannot be read{at(error)}") from error
    if split is None or split.samples == 0:
        raise WorkloadError(f"{where} is empty: give it at least one sample")
    parts = tensors_of(split)
    lengths = {key: part.shape[0] if part.ndim else 0 for key, part in parts.items()}
    if len(set(lengths.values())) != 1:
        raise WorkloadError(f"{where}: inputs and targets have different lengths: {lengths}")
    return split


def _collect(data: Any) -> Split | None:
    if isinstance(data, DataLoader):
        batches = [_pair(batch) for batch in data]
        if not batches:
            return None
        known = [target for _, target in batches if target is not None]
        return Split(_concatenate([x for x, _ in batches]), torch.cat(known) if known else None)
    if isinstance(data, torch.Tensor | Mapping) or (isinstance(data, tuple | list) and _is_pair(data)):
        inputs, targets = _pair(data)
        return Split(_clone(inputs), targets)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise WorkloadError(
            f"is {type(data).__name__}, expected a pair of tensors (inputs, targets), a Dataset with a length or a "
            "DataLoader"
        )
    if len(data) == 0:
        return None
    inputs, targets = _pair(default_collate([data[i] for i in range(len(data))]))
    return Split(_clone(inputs), targets)


def _is_pair(data: Sequence[Any]) -> bool:
    """Whether it is (inputs, targets); two samples of (inputs, targets) each are not."""
    return (
        len(data) == 2
        and (isinstance(data[0], Mapping | tuple) or _is_array(data[0]))
        and (data[1] is None or _is_array(data[1]))
    )


def _is_array(part: object) -> bool:
    return isinstance(part, torch.Tensor) or hasattr(part, "__array__")


def _pair(batch: Any) -> tuple[Inputs, torch.Tensor | None]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, targets = batch
        return _inputs(inputs), None if targets is None else torch.as_tensor(targets).clone()
    return _inputs(batch), None


def _inputs(given: Any) -> Inputs:
    if isinstance(given, Mapping):
        return {str(key): torch.as_tensor(value) for key, value in given.items()}
    if isinstance(given, tuple | list):
        return tuple(torch.as_tensor(part) for part in given)
    return torch.as_tensor(given)


def _concatenate(parts: Sequence[Any]) -> Inputs:
    first = parts[0]
    if isinstance(first, dict):
        return {key: torch.cat([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return torch.cat(list(parts))


def _clone(inputs: Inputs) -> Inputs:
    """A copy in memory aligned by torch: alignment changes the last bits of a product."""
    if isinstance(inputs, dict):
        return {key: part.clone() for key, part in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(part.clone() for part in inputs)
    return inputs.clone()


def tensors_of(split: Split) -> dict[str, torch.Tensor]:
    """The tensors of a split by name."""
    match split.inputs:
        case torch.Tensor():
            found = {"inputs": split.inputs}
        case tuple():
            found = {f"inputs[{i}]": part for i, part in enumerate(split.inputs)}
        case _:
            found = {f"inputs[{key}]": part for key, part in split.inputs.items()}
    return found if split.targets is None else {**found, "targets": split.targets}


def at(error: Exception) -> str:
    """The innermost line of user code in words."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{place}: {type(error).__name__}: {error}"
