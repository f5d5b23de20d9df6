"""Distillation, Hinton et al. 2015 (arXiv:1503.02531): the compressed student learns the float model's soft outputs.

The student is trained as it will be stored: its forward pass uses the masked, quantized weights, gradients go straight
through the rounding (Bengio et al. 2013, arXiv:1308.3432), and pruned weights stay zero.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from compress.coding import CodedWeight, Kind
from compress.inputs import Inputs, first_tensor, named, positional, take
from compress.quantization.uniform import dequantize, encode, top
from compress.sites import Site
from spaces.errors import CandidateError
from spaces.policy import Distillation

OutputKind = Literal["logits", "values"]
HardLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float, kind: OutputKind) -> torch.Tensor:
    """How far the student's outputs are from the teacher's, a scalar mean.

    Logits (samples, ..., classes): T^2 KL(softmax(teacher / T) || softmax(student / T)), the T^2 keeping gradients of
    one size at every T (Hinton et al. 2015, section 2.1). Values: mean squared error, where T plays no part.
    """
    if kind == "values":
        return functional.mse_loss(student, teacher)
    classes = student.shape[-1]
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1).reshape(-1, classes),
        functional.log_softmax(teacher / temperature, dim=-1).reshape(-1, classes),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


@dataclass(frozen=True)
class Lesson:
    """What the student learns from: training inputs, the teacher's outputs on them, targets where there are any.

    `hard` is the loss against targets; None, or targets None, leaves the soft loss alone.
    """

    inputs: Inputs
    teacher: torch.Tensor
    targets: torch.Tensor | None
    hard: HardLoss | None
    kind: OutputKind = "logits"


class Student:
    """A compressed model in training, which continues where the last rung ended.

    Args:
        model: the stitched model; it is trained in place (biases, norms) and its site weights are replaced at the end.
        sites: its sites.
        originals: float weights of the sites, from which training starts.
        kept: which of them stay, same shapes.
        coded: the one-shot coded weights, whose scales and bits the student keeps.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        originals: Mapping[str, torch.Tensor],
        kept: Mapping[str, torch.Tensor],
        coded: Mapping[str, CodedWeight],
    ) -> None:
        self.model = model
        self._device = next(model.parameters()).device
        self._sites = sites
        self._coded = dict(coded)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._weights = {site.name: parameters[site.parameter] for site in sites}
        self._slots = {site.name: _slots(model, site) for site in sites}
        self._scales = {name: one.scales.to(self._device) for name, one in coded.items() if one.scales is not None}
        rows = {site.name: site.rows(kept[site.name]).to(self._device) for site in sites}
        # a channel without a scale holds zeros and stays so
        self._kept = {
            name: row & (self._scales[name] > 0) if name in self._scales else row for name, row in rows.items()
        }
        self._latent = {
            site.name: torch.where(
                self._kept[site.name], site.rows(originals[site.name].detach().float()).to(self._device), 0.0
            ).requires_grad_()
            for site in sites
        }

    def train(self, lesson: Lesson, settings: Distillation, steps: int, generator: torch.Generator) -> float:
        """Train for a number of steps with Adam, the learning rate falling to zero along a cosine.

        Returns:
            The mean loss of the last tenth of the steps.

        Raises:
            CandidateError: the loss became infinite or not a number.
        """
        taken = {id(weight) for weight in self._weights.values()}
        others = [p for p in self.model.parameters() if id(p) not in taken and p.requires_grad]
        optimizer = torch.optim.Adam([*self._latent.values(), *others], lr=settings.learning_rate, fused=True)
        batches = _batches(lesson.teacher.shape[0], settings.batch_size, steps, generator)
        losses = []
        self.model.train()
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for step, index in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                loss = self._loss(lesson, settings, index)
                if not math.isfinite(loss.item()):
                    raise CandidateError(f"distillation diverged at step {step} of {steps}: the loss is {loss.item()}")
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        self.model.eval()
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)

    def _loss(self, lesson: Lesson, settings: Distillation, index: torch.Tensor) -> torch.Tensor:
        inputs = take(lesson.inputs, index, self._device)
        weights = {}
        for site in self._sites:
            weight = site.weight(self._quantized(site.name)).to(self._weights[site.name].dtype)
            weights.update(dict.fromkeys(self._slots[site.name], weight))
        # tied weights are given under each of their names; torch's own way breaks on a module that has two names
        called = functional_call(self.model, weights, positional(inputs), named(inputs), tie_weights=False)
        output = first_tensor(called).float()
        teacher = lesson.teacher[index].to(self._device)
        soft = soft_loss(output, teacher, settings.temperature, lesson.kind)
        if lesson.hard is None or lesson.targets is None or settings.alpha == 1:
            return soft
        hard = lesson.hard(output, lesson.targets[index].to(self._device))
        return settings.alpha * soft + (1 - settings.alpha) * hard

    def _quantized(self, name: str) -> torch.Tensor:
        """The weight as it will be stored, (channels, n), with gradients straight through to the latent one."""
        stored: torch.Tensor = _Stored.apply(
            self._latent[name], self._kept[name], self._scales.get(name), self._coded[name]
        )  # type: ignore[no-untyped-call]
        return stored

    @torch.no_grad()
    def finish(self) -> dict[str, CodedWeight]:
        """The coded weights as they are now; the model's own weights become their decoded values."""
        for site in self._sites:
            old = self._coded[site.name]
            values, _ = _store(self._latent[site.name], self._kept[site.name], self._scales.get(site.name), old)
            new = CodedWeight(old.kind, values.cpu().clone(), old.bits, old.scales, old.exponent)
            self._coded[site.name] = new
            self._weights[site.name].copy_(site.weight(new.decode()))
        return dict(self._coded)


def _slots(model: nn.Module, site: Site) -> list[str]:
    """The names under which a site's weight is kept, one for each module that has it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[tuple[int, str], str] = {}
    for name in (site.parameter, *site.tied):
        module, _, parameter = name.rpartition(".")
        found.setdefault((id(modules[module]), parameter), name)
    return list(found.values())


def _store(
    latent: torch.Tensor, kept: torch.Tensor, scales: torch.Tensor | None, like: CodedWeight
) -> tuple[torch.Tensor, torch.Tensor]:
    """The values that a file would hold for latent weights (channels, n), and the weights that they decode to."""
    masked = torch.where(kept, latent.detach(), 0.0)  # times 0 would be -0.0, which is coded as a value of its own
    if scales is not None:
        codes = encode(masked, scales, like.bits)
        return codes, dequantize(codes, scales)
    values = masked.half() if like.kind is Kind.FLOAT16 else masked
    return values, values.float()


class _Stored(torch.autograd.Function):
    """Forward the stored weights; backward the gradient as if nothing was rounded, none where pruned or clipped."""

    @staticmethod
    def forward(
        ctx: Any, latent: torch.Tensor, kept: torch.Tensor, scales: torch.Tensor | None, like: CodedWeight
    ) -> torch.Tensor:
        """Decoded weights, (channels, n)."""
        inside = kept if scales is None else kept & (latent.abs() <= top(like.bits) * scales)
        ctx.save_for_backward(inside)
        return _store(latent, kept, scales, like)[1]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """The gradient of the latent weights."""
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None


def _batches(samples: int, size: int, steps: int, generator: torch.Generator) -> list[torch.Tensor]:
    """`steps` index tensors of `size` samples, from one shuffled pass after another."""
    size = min(size, samples)
    passes = -(-steps * size // samples)
    order = torch.cat([torch.randperm(samples, generator=generator) for _ in range(passes)])
    return [order[start : start + size] for start in range(0, steps * size, size)]
