"""A workload: a trained model, its four data splits, its metric and an example input; and how one is loaded."""

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from compress.distillation import HardLoss, OutputKind
from compress.inputs import Inputs
from compress.sites import Site, find_sites
from objectives.accuracy import accuracy
from objectives.seeds import seed_of
from objectives.splits import SPLITS, Data, Split, SplitName, at, read_split, tensors_of
from spaces.errors import WorkloadError
from spaces.space import TRAINED

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | float]


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
        students: smaller models that may be taken instead, by name: they take the same inputs and give outputs of the
            same shape, and learn from the trained model before they are compressed.
        early: weights of the model early in its training, by name, from which surviving weights may be rewound.

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
    students: Mapping[str, nn.Module] = field(default_factory=dict)
    early: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class LoadedWorkload:
    """A workload that was checked, with its own copies of the models in evaluation mode on the CPU.

    The validation split is in the racing order, a fixed shuffle: any first part of it is a random sample of the whole.
    `model_sha256` (of the model, its students and early weights) and `data_sha256` are over names, shapes, types and
    bytes, of the data as they were brought.
    """

    entry: str
    workload: Workload
    model: nn.Module
    splits: Mapping[SplitName, Split]
    sites: tuple[Site, ...]
    model_sha256: str
    data_sha256: str
    students: Mapping[str, nn.Module] = field(default_factory=dict)

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
    for key in ("metric", "loss"):
        given = getattr(workload, key)
        if not callable(given) and not (key == "loss" and given is None):
            raise WorkloadError(f"{entry}: {key} is {type(given).__name__}, expected a callable (outputs, targets)")
    model, sites = _own_copy(f"{entry}: the model", workload.model)
    students = _students(entry, workload.students)
    early = _early(entry, workload.early, model)
    splits = {split: read_split(entry, split, getattr(workload, split)) for split in SPLITS}
    raced = splits["validation"].shuffled(seed_of(0, "validation order"))
    return LoadedWorkload(
        entry=name or entry,
        workload=workload,
        model=model,
        splits={**splits, "validation": raced},
        sites=sites,
        model_sha256=sha256_of({**model.state_dict(), **_named("student", students), **early}),
        data_sha256=sha256_of({f"{k}.{n}": t for k, split in splits.items() for n, t in tensors_of(split).items()}),
        students=students,
    )


def _own_copy(where: str, given: nn.Module) -> tuple[nn.Module, tuple[Site, ...]]:
    """A copy of a model, in evaluation mode on the CPU, and its sites."""
    try:
        model = copy.deepcopy(given).cpu().eval()
    except Exception as error:
        raise WorkloadError(f"{where} cannot be copied: {type(error).__name__}: {error}") from error
    for key, tensor in model.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise WorkloadError(f"{where}'s {key} has no shape yet: call a lazy model once before")
        if not isinstance(tensor, torch.Tensor):
            raise WorkloadError(f"{where}'s state {key} is {type(tensor).__name__}, expected a tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WorkloadError(f"{where}'s {key} has values that are not finite; train or load it first")
    try:
        return model, find_sites(model)
    except WorkloadError as error:
        raise WorkloadError(f"{where}: {error}") from error


def _students(entry: str, given: Any) -> dict[str, nn.Module]:
    if not isinstance(given, Mapping):
        raise WorkloadError(f"{entry}: students is {type(given).__name__}, expected a dict of name and model")
    found = {}
    for name, model in given.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name == TRAINED:
            raise WorkloadError(f"{entry}: student {name!r}: a name has letters, digits, dots and dashes")
        if not isinstance(model, nn.Module):
            raise WorkloadError(f"{entry}: student {name} is {type(model).__name__}, expected a torch.nn.Module")
        found[name] = _own_copy(f"{entry}: the student {name}", model)[0]
    return found


def _early(entry: str, given: Any, model: nn.Module) -> dict[str, torch.Tensor]:
    """The early weights under names of their own; refused where they are not the model's."""
    if given is None:
        return {}
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in known.items():
        if name not in given or tuple(given[name].shape) != tuple(parameter.shape):
            shape = tuple(given[name].shape) if name in given else "missing"
            raise WorkloadError(f"{entry}: early weights {name}: {shape}, the model has {tuple(parameter.shape)}")
    return {f"early.{name}": torch.as_tensor(given[name]) for name in known}


def _named(what: str, models: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{what}.{name}.{key}": t for name, model in models.items() for key, t in model.state_dict().items()}


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
        raise WorkloadError(f"workload {entry}: calling {function}() failed{at(error)}") from error


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
        raise WorkloadError(f"workload {entry}: importing {where} failed{at(error)}") from error


def sha256_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
