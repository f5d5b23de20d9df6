"""A workload: a trained model, its four data splits, its metric and an example input; and how one is loaded."""

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, default_collate

from compress.distillation import HardLoss, OutputKind
from compress.inputs import Inputs, count
from compress.sites import Site, find_sites
from objectives.accuracy import accuracy
from spaces.errors import WorkloadError

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | float]
Data = Sequence[Any] | Dataset[Any] | DataLoader[Any] | torch.Tensor | Mapping[str, torch.Tensor]
SplitName = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a user brings.

    A split is a pair (inputs, targets) of tensors, a Dataset of such pairs, or a DataLoader of batches of them that
    gives the same samples in the same order every time. Inputs are one tensor, a tuple of positional tensors or a dict
    of named ones; targets may be None (inputs alone) where neither metric nor loss needs them.

    Attributes:
        model: the trained float model.
        train: what a student is distilled on.
        calibration: what BatchNorm statistics and ranges are taken from.
        validation: what candidates are scored on.
        test: held back; only members of the front are scored on it, at the end.
        example_input: one batch, for counting multiply-accumulates.
        metric: (outputs, targets) to one outcome per sample, or to one number; higher is better.
        loss: (outputs, targets) to a scalar, beside the soft loss; None is cross entropy for class targets.
        outputs: "logits" are compared as distributions over the last axis, "values" by squared error.
        chance: accuracy of guessing, where plots and the hypervolume start.
        licence: of data and weights, in one sentence.

    Example:
        >>> from slimfront import Workload
        >>> data = (torch.randn(32, 4), torch.randint(0, 2, (32,)))
        >>> Workload(model=nn.Linear(4, 2), train=data, calibration=data, validation=data, test=data,
        ...          example_input=torch.zeros(1, 4)).chance
        0.0
    """

    model: nn.Module
    train: Data
    calibration: Data
    validation: Data
    test: Data
    example_input: Inputs
    metric: Metric = accuracy
    loss: HardLoss | None = None
    outputs: OutputKind = "logits"
    chance: float = 0.0
    licence: str = ""


@dataclass(frozen=True)
class Split:
    """All samples of a split in memory, in a fixed order."""

    inputs: Inputs
    targets: torch.Tensor | None

    @property
    def samples(self) -> int:
        """How many there are."""
        return count(self.inputs)


@dataclass(frozen=True)
class LoadedWorkload:
    """A workload that was checked, with its own copy of the model in evaluation mode on the CPU.

    `model_sha256` and `data_sha256` are over names, shapes, types and bytes.
    """

    entry: str
    workload: Workload
    model: nn.Module
    splits: Mapping[SplitName, Split]
    sites: tuple[Site, ...]
    model_sha256: str
    data_sha256: str

    def hard_loss(self) -> HardLoss | None:
        """The loss against targets; None where there is none to take."""
        if self.workload.loss is not None:
            return self.workload.loss
        targets = self.splits["train"].targets
        classes = targets is not None and not targets.is_floating_point()
        return functional.cross_entropy if classes and self.workload.outputs == "logits" else None


def load_workload(entry: str, name: str | None = None) -> LoadedWorkload:
    """Import a workload's function, call it, and check what it returns.

    Args:
        entry: `module:function` or `file.py:function`; imported because the user named it.
        name: how the entry is written where it is compared (in policies and files); `entry` if None.

    Raises:
        WorkloadError: it cannot be imported or called, or what it returns does not keep the protocol.
    """
    workload = _call(entry)
    if not isinstance(workload, Workload):
        raise WorkloadError(
            f"{entry} returned {type(workload).__name__}, expected a Workload: `from slimfront import Workload` and "
            "return one"
        )
    if not isinstance(workload.model, nn.Module):
        raise WorkloadError(f"{entry}: model is {type(workload.model).__name__}, expected a torch.nn.Module")
    if workload.outputs not in ("logits", "values"):
        raise WorkloadError(f"{entry}: outputs is {workload.outputs!r}, expected 'logits' or 'values'")
    for field in ("metric", "loss"):
        given = getattr(workload, field)
        if not callable(given) and not (field == "loss" and given is None):
            raise WorkloadError(f"{entry}: {field} is {type(given).__name__}, expected a callable (outputs, targets)")
    try:
        model = copy.deepcopy(workload.model).cpu().eval()
    except Exception as error:
        raise WorkloadError(f"{entry}: the model cannot be copied: {type(error).__name__}: {error}") from error
    for key, tensor in model.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise WorkloadError(f"{entry}: the model's {key} has no shape yet: call a lazy model once before")
        if not isinstance(tensor, torch.Tensor):
            raise WorkloadError(f"{entry}: the model's state {key} is {type(tensor).__name__}, expected a tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WorkloadError(f"{entry}: the model's {key} has values that are not finite; train or load it first")
    try:
        sites = find_sites(model)
    except WorkloadError as error:
        raise WorkloadError(f"{entry}: {error}") from error
    splits = {split: _split(entry, split, getattr(workload, split)) for split in SPLITS}
    return LoadedWorkload(
        entry=name or entry,
        workload=workload,
        model=model,
        splits=splits,
        sites=sites,
        model_sha256=_sha256(model.state_dict()),
        data_sha256=_sha256({f"{k}.{n}": t for k, split in splits.items() for n, t in _tensors(split).items()}),
    )


def _call(entry: str) -> object:
    where, _, function = entry.rpartition(":")
    module = _import(entry, where)
    found = getattr(module, function, None)
    if found is None:
        names = sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise WorkloadError(
            f"workload {entry}: {where} has no {function!r}; it has {', '.join(names) or 'no function'}"
        )
    if not callable(found):
        raise WorkloadError(f"workload {entry}: {function} is {type(found).__name__}, expected a function")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a command prints on standard output is the command's own
            return found()
    except WorkloadError:
        raise
    except Exception as error:
        raise WorkloadError(f"workload {entry}: calling {function}() failed{_at(error)}") from error


def _import(entry: str, where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))  # as `python -m` would: a user's module beside the config
            return importlib.import_module(where)
        path = Path(where).resolve()
        if not path.is_file():
            raise WorkloadError(f"workload {entry}: no such file: {path}")
        name = f"slimfront_workload_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise WorkloadError(f"workload {entry}: {path} cannot be imported as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except WorkloadError:
        raise
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"workload {entry}: no module named {error.name!r}; install it, or give a file: file.py:function"
        ) from error
    except Exception as error:
        raise WorkloadError(f"workload {entry}: importing {where} failed{_at(error)}") from error


def _at(error: Exception) -> str:
    """The innermost line of user code in words."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{place}: {type(error).__name__}: {error}"


def _split(entry: str, name: SplitName, data: Any) -> Split:
    where = f"{entry}: the {name} split"
    try:
        split = _collect(data)
    except WorkloadError as error:
        raise WorkloadError(f"{where} {error}") from error
    except Exception as error:
        raise WorkloadError(f"{where} cannot be read{_at(error)}") from error
    if split is None or split.samples == 0:
        raise WorkloadError(f"{where} is empty: give it at least one sample")
    parts = _tensors(split)
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


def _tensors(split: Split) -> dict[str, torch.Tensor]:
    match split.inputs:
        case torch.Tensor():
            found = {"inputs": split.inputs}
        case tuple():
            found = {f"inputs[{i}]": part for i, part in enumerate(split.inputs)}
        case _:
            found = {f"inputs[{key}]": part for key, part in split.inputs.items()}
    return found if split.targets is None else {**found, "targets": split.targets}


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
