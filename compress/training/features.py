"""Feature loss ("hints"), Romero et al. 2015 (arXiv:1412.6550): inner outputs of the student follow the teacher's.

FitNets' regressor is not needed: only outputs of one shape are compared. Matched are the outputs of the modules one or
two levels below the model (its blocks) that student and teacher have under the same name and that have the same shape;
a tensor that comes out of several of them counts once, and the model's own output, which the soft loss has, not at all.
"""

import copy
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from compress.inputs import Inputs, call, same_draws
from spaces.errors import CandidateError

LEVELS = 2


class FeatureMatch:
    """A context in which the inner outputs of a student are recorded; its hooks are gone at the end.

    Args:
        student: the model in training.
        teacher: the float model; a copy of it is asked, on the student's device.

    Raises:
        CandidateError: they have no module of the same name.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        theirs = dict(_blocks(teacher))
        self._names = [name for name, _ in _blocks(student) if name in theirs]
        self._check(self._names)
        self._device = next(student.parameters()).device
        self._student, self._teacher = student, copy.deepcopy(teacher).to(self._device).eval()
        self._seen: dict[str, torch.Tensor] = {}
        self._asked: dict[str, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for model, seen in ((self._student, self._seen), (self._teacher, self._asked)):
            modules = dict(model.named_modules())
            self._hooks += [modules[name].register_forward_hook(_recorder(name, seen)) for name in self._names]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._seen.clear()
        self._asked.clear()

    def loss(self, inputs: Inputs) -> torch.Tensor:
        """Mean over the matched outputs of ||s - t||^2 / ||t||^2, after the student's forward pass on its own inputs.

        `inputs` is another copy of that batch, on the student's device (a model may change its inputs in place). Romero
        et al. 2015, eq. 3, divided by the teacher's size, so that no block counts more because its numbers are large.

        Raises:
            CandidateError: no inner outputs have the same shape.
        """
        with torch.no_grad(), same_draws(self._device):
            last = call(self._teacher, inputs)
        matched, taken = [], {id(last)}
        for name in self._names:
            ours, theirs = self._seen.get(name), self._asked.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape or id(theirs) in taken:
                continue
            taken.add(id(theirs))
            matched.append((ours.float() - theirs.float()).square().sum() / _size(theirs))
        self._check(matched)
        self._seen.clear()
        self._asked.clear()
        return torch.stack(matched).mean()

    def _check(self, found: list[Any]) -> None:
        if not found:
            raise CandidateError(
                "distillation.features compares the outputs of blocks that student and teacher have under the same "
                f"name and in the same shape, at most {LEVELS} levels below the model, and there are none: set it to 0"
            )


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if name and name.count(".") < LEVELS]


def _recorder(name: str, seen: dict[str, torch.Tensor]) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            seen[name] = first

    return record


def _size(theirs: torch.Tensor) -> torch.Tensor:
    return theirs.float().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
