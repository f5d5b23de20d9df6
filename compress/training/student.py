"""A compressed model in training: its sites are trained as they will be stored, the rest of it as it is."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import assert_never

import torch
from torch import nn
from torch.func import functional_call

from compress.coding import CodedWeight, Kind
from compress.inputs import count, first_tensor, named, positional, take
from compress.sites import Site
from compress.training import masks
from compress.training.codebook_training import TrainedCodebook
from compress.training.features import FeatureMatch
from compress.training.lesson import Lesson
from compress.training.lsq import TrainedSteps
from compress.training.optimizers import Learned, Optimizer
from compress.training.penalties import penalty_of
from compress.training.rewinding import rewound
from compress.training.straight_through import TrainedCodes, TrainedFloat, TrainedWeight
from spaces.errors import CandidateError
from spaces.policy import Distillation, NoPruning, Prune


class Student:
    """A compressed model in training, which continues where the last rung ended.

    Args:
        model: the stitched model; it is trained in place (biases, norms) and its site weights are replaced at the end.
            Rounding of activations (`quantize_inputs`) is already on it.
        sites: its sites.
        originals: float weights of the sites, from which training starts. Where they do not round to what is stored
            (error-compensated codes), it starts from what is stored.
        kept: which of them stay, same shapes.
        coded: the coded weights without training, whose kinds, bits and grids the student keeps.
        settings: how it learns.
        prune: how the sites are pruned, which masks that are chosen anew keep to. May be left out for static masks.
        early: weights from an early time of the float model's training, from which those that stay start instead
            (see `rewinding`).
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        originals: Mapping[str, torch.Tensor],
        kept: Mapping[str, torch.Tensor],
        coded: Mapping[str, CodedWeight],
        settings: Distillation,
        prune: Mapping[str, Prune] | None = None,
        early: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        if prune is None and settings.masks != "static":
            raise ValueError(f"{settings.masks} masks need to know how the sites are pruned: give prune")
        self.model = model
        self._device = next(model.parameters()).device
        self._sites, self._settings, self._prune = sites, settings, prune or {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._weights = {site.name: parameters[site.parameter] for site in sites}
        self._slots = {site.name: _slots(model, site) for site in sites}
        self._trained: dict[str, TrainedWeight] = {}
        self._ratios: dict[str, float] = {}
        for site in sites:
            mask, start = site.rows(kept[site.name]), site.rows((early or originals)[site.name].detach().float())
            like = coded[site.name] if early is None else rewound(coded[site.name], start.cpu(), mask.cpu())
            self._trained[site.name] = _trained(like, start.to(self._device), mask.to(self._device), settings)
            self._ratios[site.name] = 1 - float(mask.sum()) / mask.numel()
        self._rung = 0

    def train(self, lesson: Lesson, steps: int, generator: torch.Generator) -> float:
        """Train for a number of steps; the learning rate's schedule and the optimizer start anew.

        Returns:
            The mean loss of the last tenth of the steps.

        Raises:
            CandidateError: the loss became infinite or not a number, or the settings do not fit the model.
            ValueError: the settings have a feature loss, and the lesson no model.
        """
        settings = self._settings
        optimizer = self._optimizer(steps)
        batches = _batches(count(lesson.inputs), settings.batch_size, steps, generator)
        chosen = masks.choices(settings.masks, steps, first=self._rung == 0)
        self._rung += 1
        losses = []
        self.model.train()
        devices = [self._device] if self._device.type == "cuda" else []
        # dropout draws from the global generator
        with torch.random.fork_rng(devices=devices), self._features(lesson) as features:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for step, index in enumerate(batches):
                if step in chosen:
                    self._choose(chosen[step])
                loss = self._loss(lesson, index, features)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise CandidateError(f"distillation diverged at step {step} of {steps}: the loss is {losses[-1]}")
                optimizer.step(loss, step)
        self.model.eval()
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def _optimizer(self, steps: int) -> Optimizer:
        taken = {id(weight) for weight in self._weights.values()}
        others = [p for p in self.model.parameters() if id(p) not in taken and p.requires_grad]
        trained = self._trained.values()
        learned = [Learned([*(one.latent for one in trained), *others])]
        learned += [more for one in trained for more in one.learned()]
        settings = self._settings
        return Optimizer(learned, settings.optimizer, settings.schedule, settings.learning_rate, steps)

    def _features(self, lesson: Lesson) -> FeatureMatch | nullcontext[None]:
        if self._settings.features == 0:
            return nullcontext()
        if lesson.model is None:
            raise ValueError("distillation.features compares with the float model: give it to the lesson")
        return FeatureMatch(self.model, lesson.model)

    def _choose(self, share: float) -> None:
        for name, one in self._trained.items():
            if not isinstance(self._prune[name], NoPruning):
                one.choose(masks.choose(one.latent, one.kept, self._prune[name], self._ratios[name], share))

    def _loss(self, lesson: Lesson, index: torch.Tensor, features: FeatureMatch | None) -> torch.Tensor:
        inputs = take(lesson.inputs, index, self._device)
        weights = {}
        for site in self._sites:
            weight = site.weight(self._trained[site.name].stored()).to(self._weights[site.name].dtype)
            weights.update(dict.fromkeys(self._slots[site.name], weight))
        # tied weights are given under each of their names; torch's own way breaks on a module that has two names
        called = functional_call(self.model, weights, positional(inputs), named(inputs), tie_weights=False)
        loss = lesson.loss(first_tensor(called).float(), index, self._settings)
        if features is not None:
            loss = loss + self._settings.features * features.loss(take(lesson.inputs, index, self._device))
        if self._settings.penalty is not None:
            shrunk = [one.masked for one in self._trained.values()]
            loss = loss + penalty_of(self._settings.penalty, shrunk, self.model)
        return loss

    @torch.no_grad()
    def finish(self) -> dict[str, CodedWeight]:
        """The coded weights as they are now; the model's own weights become their decoded values."""
        coded = {name: one.coded() for name, one in self._trained.items()}
        for site in self._sites:
            self._weights[site.name].copy_(site.weight(coded[site.name].decode()))
        return coded

    def state(self) -> dict[str, torch.Tensor]:
        """All that training has changed, by name, copied to the CPU; a rung's optimizer does not outlive it."""
        found = {f"model {name}": tensor for name, tensor in _tensors(self.model).items()}
        for name, one in self._trained.items():
            found |= {f"site {name} {what}": tensor for what, tensor in one.state().items()}
        found["rung"] = torch.tensor(self._rung)
        contiguous = torch.contiguous_format
        return {name: one.detach().to("cpu", copy=True, memory_format=contiguous) for name, one in found.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Become what `state` was taken of, another student that began as this one did; then go on as that one would.

        Raises:
            ValueError: it began as another one.
        """
        if {name: one.shape for name, one in state.items()} != {name: one.shape for name, one in self.state().items()}:
            raise ValueError("this state is that of another student: names or shapes differ")
        for name, tensor in _tensors(self.model).items():
            tensor.copy_(state[f"model {name}"])
        for name, one in self._trained.items():
            start = f"site {name} "
            one.restore({key.removeprefix(start): value for key, value in state.items() if key.startswith(start)})
        self._rung = int(state["rung"])


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, those that are not saved among them."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _trained(coded: CodedWeight, latent: torch.Tensor, kept: torch.Tensor, settings: Distillation) -> TrainedWeight:
    one = _of_kind(coded, latent, kept, settings)
    _start_from_stored(one, coded)
    return one


def _of_kind(coded: CodedWeight, latent: torch.Tensor, kept: torch.Tensor, settings: Distillation) -> TrainedWeight:
    free, learned = settings.masks != "static", settings.grids == "learned"
    match coded.kind:
        case Kind.FLOAT32 | Kind.FLOAT16:
            return TrainedFloat(coded, latent, kept, free=free)
        case Kind.UNIFORM:
            return (TrainedSteps if learned else TrainedCodes)(coded, latent, kept, free=free)
        case Kind.CODEBOOK:
            return TrainedCodebook(coded, latent, kept, free=free, learned=learned)
        case _:
            assert_never(coded.kind)


@torch.no_grad()
def _start_from_stored(one: TrainedWeight, coded: CodedWeight) -> None:
    """Move latent weights that do not round to what is stored (it was not rounded to the nearest) to what is stored."""
    other = one.kept.cpu() & (one.coded().values != coded.values)
    if bool(other.any()):
        one.latent.copy_(torch.where(other.to(one.latent.device), coded.decode().to(one.latent.device), one.latent))


def _slots(model: nn.Module, site: Site) -> list[str]:
    """The names under which a site's weight is kept, one for each module that has it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[tuple[int, str], str] = {}
    for name in (site.parameter, *site.tied):
        module, _, parameter = name.rpartition(".")
        found.setdefault((id(modules[module]), parameter), name)
    return list(found.values())


def _batches(samples: int, size: int, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """`steps` index tensors of `size` samples, from one shuffled pass after another."""
    size = min(size, samples)
    passes = -(-steps * size // samples)
    order = torch.cat([torch.randperm(samples, generator=generator) for _ in range(passes)])
    return [order[start : start + size] for start in range(0, steps * size, size)]
