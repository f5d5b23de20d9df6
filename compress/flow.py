"""Where each layer's output goes, seen by running a model; and changes that are kept only where its outputs stay."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compress.inputs import Inputs, named, outputs, positional, same_draws, take

Change = Callable[[nn.Module], None]  # in place
_ABOUT_A_TENSOR = (int, str, torch.Size, torch.dtype, torch.device, torch.layout)  # what shape, dim() and such return


@dataclass(frozen=True)
class Flow:
    """What one run of a model showed.

    Attributes:
        calls: how often each module was called, by dotted name.
        readers: for each module that returned one tensor, the modules that used it, one entry for each use; "" is the
            model itself, which also uses what it returns.
    """

    calls: Mapping[str, int]
    readers: Mapping[str, tuple[str, ...]]

    def only_reader(self, name: str) -> str | None:
        """The one module that used a module's output, once; None where there are others, or either was called again."""
        found = self.readers.get(name, ())
        if len(found) != 1 or self.calls[name] != 1 or self.calls[found[0]] != 1:
            return None
        return found[0]


class _Recorder(TorchFunctionMode):
    """Notes in which module each tensor is used by a torch function.

    A function that returns its argument unchanged (dropout in evaluation) is no use, nor is one that asks for a shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside = [""]  # names of the modules that are running, innermost last
        self.uses: list[tuple[torch.Tensor, str]] = []  # holds the tensors, so that no id is given twice

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        versions = [(tensor, tensor._version) for tensor in _tensors((args, kwargs or {}))]
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, _ABOUT_A_TENSOR):
            used = [tensor for tensor, before in versions if result is not tensor or tensor._version != before]
            self.uses += [(tensor, self.inside[-1]) for tensor in used]
        return result


@torch.no_grad()
def trace(model: nn.Module, example: Inputs) -> Flow:
    """Run a model on an example, and see where tensors go; no hook stays.

    Args:
        model: in evaluation mode.
        example: a few samples.
    """
    calls: Counter[str] = Counter()
    returned: dict[str, torch.Tensor] = {}
    recorder = _Recorder()
    example = take(example, slice(None), next(model.parameters()).device)
    with ExitStack() as hooks:
        for name, module in model.named_modules():

            def enter(_module: nn.Module, _arguments: Any, name: str = name) -> None:
                calls[name] += 1
                recorder.inside.append(name)

            def leave(_module: nn.Module, _arguments: Any, result: Any, name: str = name) -> None:
                recorder.inside.pop()
                if isinstance(result, torch.Tensor):
                    returned[name] = result

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        with same_draws("cpu"), recorder:
            result = model(*positional(example), **named(example))
    readers: dict[int, list[str]] = {}
    for tensor, user in [*recorder.uses, *((tensor, "") for tensor in _tensors(result))]:
        readers.setdefault(id(tensor), []).append(user)
    return Flow(calls, {name: tuple(readers.get(id(tensor), ())) for name, tensor in returned.items()})


def change_where_equal(
    model: nn.Module, inputs: Inputs, changes: Mapping[str, Change], chunk: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """A new model with those changes that leave its outputs as they are, but for float rounding.

    Args:
        model: is not touched.
        inputs: what the outputs are compared on.
        changes: each changes a model in place, by name.
        chunk: samples a batch.

    Returns:
        The new model, in evaluation mode, and the names of the changes that it has.
    """
    parameter = next(model.parameters())
    old = copy.deepcopy(model).eval()
    wanted = outputs(old, inputs, chunk, parameter.device)
    current, kept = old, tuple[str, ...]()
    for names in [tuple(changes), *((name,) for name in changes)]:  # all at once, else one after the other
        new = copy.deepcopy(current)
        with torch.no_grad():
            for name in names:
                changes[name](new)
        if same(wanted, outputs(new, inputs, chunk, parameter.device), parameter.dtype):
            current, kept = new, (*kept, *names)
            if names == tuple(changes):
                break
    return current, kept


def same(wanted: torch.Tensor, got: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether outputs are equal but for rounding in `dtype`: the root of its epsilon of the largest; NaN never is."""
    tolerance = torch.finfo(dtype).eps ** 0.5 * float(wanted.abs().max())
    return bool((wanted - got).abs().max() <= tolerance)


def own_weight(model: nn.Module, name: str) -> bool:
    """Whether a layer has a weight that is a plain parameter, which no other layer holds."""
    weight = model.get_submodule(name)._parameters.get("weight")
    return weight is not None and sum(p is weight for _, p in model.named_parameters(remove_duplicate=False)) == 1


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    match value:
        case torch.Tensor():
            yield value
        case list() | tuple():
            for part in value:
                yield from _tensors(part)
        case dict():
            for part in value.values():
                yield from _tensors(part)
