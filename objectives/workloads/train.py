"""How the weights that ship were trained: `python -m objectives.workloads.train digits|animals|lenet`."""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from objectives.workloads import Splits, animals, digits, lenet
from objectives.workloads.resnet import ResNet

MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that shapes a training: the schedule and how far an image may be moved."""

    epochs: int
    shift: float  # pixels, at most, in each direction
    turn: float  # degrees, at most, either way
    zoom: float  # share by which an image may grow or shrink
    mirror: bool  # whether left and right may be swapped
    batch: int = 128  # images
    learning_rate: float = 0.1  # its peak
    weight_decay: float = 5e-4
    l1: float = 0.0  # weight of the sum of absolute weights in the loss, which makes many of them zero
    seed: int = 0


RECIPES: dict[str, tuple[Callable[[], Splits], Callable[[], nn.Module], Path, Recipe]] = {
    "digits": (
        digits.splits,
        ResNet,
        digits.WEIGHTS,
        Recipe(epochs=120, batch=64, shift=1, turn=12, zoom=0.1, mirror=False),
    ),
    "animals": (
        animals.splits,
        ResNet,
        animals.WEIGHTS,
        Recipe(epochs=36, shift=2, turn=10, zoom=0.1, mirror=True),
    ),
    "lenet": (
        lenet.splits,
        lenet.LeNet,
        lenet.WEIGHTS,
        # an L1 penalty, as Han et al. 2015 tried for pruning (arXiv:1506.02626, section 3.1): about half a point less
        # accurate than weight decay, with weights of which most can be pruned
        Recipe(epochs=30, shift=1.5, turn=10, zoom=0.1, mirror=True, weight_decay=0.0, l1=5e-5),
    ),
}


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw a model's weights anew, in place: He et al. 2015 (arXiv:1502.01852) for convolutions, eq. 14."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.bias)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return images (n, c, h, w), each shifted, turned, zoomed and mirrored by its own random amount."""
    if not (recipe.shift or recipe.turn or recipe.zoom or recipe.mirror):
        return images
    count, _, height, width = images.shape
    draws = 2 * torch.rand(5, count, generator=generator) - 1  # -1..1
    angle = draws[0] * math.radians(recipe.turn)
    size = 1 + draws[1] * recipe.zoom
    side = torch.where(draws[2] < 0, -1.0, 1.0) if recipe.mirror else torch.ones(count)
    cos, sin = angle.cos() * size, angle.sin() * size
    across = draws[3] * recipe.shift * 2 / width  # of an image that reaches from -1 to 1
    down = draws[4] * recipe.shift * 2 / height
    rows = torch.stack([side * cos, -side * sin, across, sin, cos, down], dim=1)
    grid = functional.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)  # outside is 0: background


def fit(model: nn.Module, data: tuple[Tensor, Tensor], recipe: Recipe) -> None:
    """Train a model in place by SGD under a one-cycle schedule and print a line for each epoch.

    The labels are not smoothed: smoothed teachers distil worse (Müller et al. 2019, arXiv:1906.02629).

    Args:
        model: its output is logits (n, classes).
        data: inputs (n, c, h, w) and targets (n,), int64.
        recipe: the schedule; the same recipe gives the same weights on the same machine and threads.
    """
    inputs, targets = data
    generator = torch.Generator().manual_seed(recipe.seed)
    initialise(model, generator)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    other = [weight for weight in model.parameters() if weight.dim() <= 1]  # biases and BatchNorm
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": other, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        momentum=MOMENTUM,
        nesterov=True,
    )
    steps = len(inputs) // recipe.batch  # in an epoch; the images left over get their turn in another one
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=recipe.epochs * steps,
        pct_start=0.2,
        cycle_momentum=False,
    )
    start = time.monotonic()
    for epoch in range(1, recipe.epochs + 1):
        total, right = 0.0, 0
        order = torch.randperm(len(inputs), generator=generator)[: steps * recipe.batch]
        for chosen in torch.split(order, recipe.batch):
            images = augment(inputs[chosen], recipe, generator).contiguous(memory_format=torch.channels_last)
            logits = model(images)
            loss = functional.cross_entropy(logits, targets[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            _shrink(decayed, recipe.l1 * float(schedule.get_last_lr()[0]) / (1 - MOMENTUM))
            schedule.step()
            total += loss.item()
            right += int((logits.argmax(dim=1) == targets[chosen]).sum())
        mean, share, seconds = total / steps, right / len(order), time.monotonic() - start
        print(f"epoch {epoch:3d}  loss {mean:.4f}  train {share:.4f}  {seconds:.0f} s", flush=True)


@torch.no_grad()
def _shrink(weights: Sequence[Tensor], by: float) -> None:
    """Bring weights nearer to zero, in place: the proximal step of an L1 penalty (Parikh & Boyd 2014, 6.5.2)."""
    for weight in weights if by else ():
        weight.copy_(weight.sign() * (weight.abs() - by).clamp_(min=0))


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the share of right answers of a model, put into evaluation mode, on (inputs, targets), 0..1."""
    model.eval()
    inputs, targets = data
    answers = torch.cat([model(images).argmax(dim=1) for images in torch.split(inputs, 500)])
    return int((answers == targets).sum()) / len(targets)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one workload's model on its train split, report it on the others and write its weights."""
    parser = argparse.ArgumentParser(prog="python -m objectives.workloads.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--out", type=Path, help="the file to write instead of the weights that ship")
    options = parser.parse_args(arguments)
    load, build, out, recipe = RECIPES[options.name]
    out = options.out or out
    if options.epochs is not None:
        if options.epochs < 1:
            parser.error(f"--epochs is {options.epochs}; it must be at least 1")
        recipe = replace(recipe, epochs=options.epochs)
    data = load()
    model = build()
    fit(model, data.train, recipe)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out)
    print(f"{out}: {out.stat().st_size:,} bytes")
    for part, samples in zip(data._fields, data, strict=True):
        print(f"{part}: {accuracy(model, samples):.4f} of {len(samples[1])}")


if __name__ == "__main__":
    main()
