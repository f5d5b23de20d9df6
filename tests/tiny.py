"""Small real workloads that load in a tenth of a second: an MLP with BatchNorm on overlapping clouds."""

import os
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives.accuracy import accuracy
from objectives.workload import Metric, Workload

FEATURES, CLASSES = 8, 6
SIZES = (96, 48, 150, 120)  # train, calibration, validation, test
TOO_WRONG = 0.8


def network(outputs: int = CLASSES, width: int = 24) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](
        first=nn.Linear(FEATURES, width),
        norm=nn.BatchNorm1d(width),
        relu=nn.ReLU(),
        second=nn.Linear(width, 16),
        relu2=nn.ReLU(),
        head=nn.Linear(16, outputs),
    )
    return nn.Sequential(layers)


def clouds(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (samples, FEATURES) around one centre a class, and classes (samples,)."""
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(samples) % CLASSES
    return centres[targets] + 0.7 * torch.randn(samples, FEATURES, generator=generator), targets


def trained(outputs: int = CLASSES, steps: int = 60) -> nn.Sequential:
    """A trained network, the same in every process: what rounding differs in training is rounded away."""
    inputs, targets = clouds(SIZES[0], seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = network(outputs).double()
    weights = list(model.parameters())
    speeds = [torch.zeros_like(weight) for weight in weights]
    for _ in range(steps):
        result = model(inputs.double())
        wanted = targets.double() if outputs == 1 else targets
        loss = functional.mse_loss(result[:, 0], wanted) if outputs == 1 else functional.cross_entropy(result, wanted)
        for weight, speed, slope in zip(weights, speeds, torch.autograd.grad(loss, weights), strict=True):
            weight.data += speed.mul_(0.9).sub_(0.05 * slope)  # torch.optim would import torch._dynamo: 3 s
    model = model.float()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(((tensor * 1024).floor() + 0.5) / 1024)  # none is zero
    return model.eval()


def workload(metric: Metric = accuracy) -> Workload:
    train, calibration, validation, test = (clouds(size, seed) for seed, size in enumerate(SIZES))
    return Workload(
        model=trained(),
        train=train,
        calibration=calibration,
        validation=validation,
        test=test,
        example_input=torch.zeros(1, FEATURES),
        metric=metric,
        chance=1 / CLASSES,
    )


def scalar() -> Workload:
    """Its metric is one number."""
    return workload(lambda outputs, targets: float(accuracy(outputs, targets).mean()))


def slow() -> Workload:
    """Its metric takes 30 ms."""
    return workload(partial(_after, 0.03))


def picky() -> Workload:
    """Its metric refuses models that are worse than TOO_WRONG."""
    return workload(_refuse)


def deadly() -> Workload:
    """Its metric ends the process over models that are worse than TOO_WRONG."""
    return workload(_die)


def hungry() -> Workload:
    """A candidate that is too wrong has no room in memory, whenever it is tried."""
    return workload(_starve)


def regression() -> Workload:
    """Its outputs are values, (samples, 1), and its metric is minus the squared error of each."""
    train, calibration, validation, test = (clouds(size, seed) for seed, size in enumerate(SIZES))
    return Workload(
        model=trained(outputs=1),
        train=(train[0], train[1].float()),
        calibration=(calibration[0], calibration[1].float()),
        validation=(validation[0], validation[1].float()),
        test=(test[0], test[1].float()),
        example_input=torch.zeros(1, FEATURES),
        metric=lambda outputs, targets: -(outputs[:, 0] - targets).square(),
        loss=lambda outputs, targets: functional.mse_loss(outputs[:, 0], targets),
        outputs="values",
        chance=-1.0,
    )


def unlabelled() -> Workload:
    """It has no targets; its metric is how sure the model is of each sample."""
    train, calibration, validation, test = (clouds(size, seed)[0] for seed, size in enumerate(SIZES))
    return Workload(
        model=trained(),
        train=train,
        calibration=calibration,
        validation=validation,
        test=test,
        example_input=torch.zeros(1, FEATURES),
        metric=lambda outputs, targets: outputs.softmax(dim=-1).amax(dim=-1),
    )


def students() -> dict[str, nn.Module]:
    """Two untrained smaller networks, and one with tensors like the trained one's that computes something else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        narrow, flat, leaky = network(width=8), nn.Sequential(nn.Linear(FEATURES, CLASSES)), network()
        leaky.relu = nn.LeakyReLU(0.3)
    return {"narrow": narrow, "flat": flat, "leaky": leaky}


def taught() -> Workload:
    """It offers smaller models, and weights from early in its training."""
    return replace(workload(), students=students(), early=trained(steps=30).state_dict())


def taught_unlabelled() -> Workload:
    """It offers smaller models and has no targets."""
    return replace(unlabelled(), students=students())


def normed() -> Workload:
    """Its model begins with a LayerNorm whose outputs have outliers."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        norm = nn.LayerNorm(FEATURES)
        norm.weight[2] = 30.0
        layers = OrderedDict[str, nn.Module](
            norm=norm, first=nn.Linear(FEATURES, 12), act=nn.GELU(), head=nn.Linear(12, CLASSES)
        )
    return replace(workload(), model=nn.Sequential(layers).eval())


class Counting(nn.Sequential):
    """A network that notes how many threads it runs on."""

    seen: tuple[int, ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        self.seen = (*self.seen, torch.get_num_threads())
        out: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return out


def counting() -> Workload:
    plain = workload()
    return replace(plain, model=Counting(plain.model))


def needy() -> Workload:
    """Its loss cannot be taken of what its model gives."""
    return replace(workload(), loss=nn.functional.mse_loss)


def mute() -> Workload:
    """Its metric says nothing."""
    return workload(lambda outputs, targets: float("nan"))


def _after(seconds: float, outputs: Tensor, targets: Tensor) -> Tensor:
    time.sleep(seconds)
    return accuracy(outputs, targets)


def _refuse(outputs: Tensor, targets: Tensor) -> Tensor:
    outcomes = accuracy(outputs, targets)
    if outcomes.mean() < TOO_WRONG:
        raise ArithmeticError(f"only {outcomes.mean():.3f} are right")
    return outcomes


def _starve(outputs: Tensor, targets: Tensor) -> Tensor:
    outcomes = accuracy(outputs, targets)
    if outcomes.mean() < TOO_WRONG:
        raise MemoryError("so much")
    return outcomes


def _die(outputs: Tensor, targets: Tensor) -> Tensor:
    outcomes = accuracy(outputs, targets)
    if outcomes.mean() < TOO_WRONG:
        os._exit(7)
    return outcomes


class Residual(nn.Module):
    """A block that may be left out, with 12 channels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(24, 12)
        self.relu = nn.ReLU()
        self.up = nn.Linear(12, 24)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = input + self.up(self.relu(self.down(input)))
        return out


def residual_network() -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](
        first=nn.Linear(FEATURES, 24),
        relu=nn.ReLU(),
        one=Residual(),
        two=Residual(),
        head=nn.Linear(24, CLASSES),
    )
    return nn.Sequential(layers)


def family() -> Workload:
    """It has residual blocks, groups of channels, and offers a smaller model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, small = (
            residual_network().eval(),
            nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
        )
    return replace(workload(), model=model, students={"small": small.eval()})


def flat() -> Workload:
    """Its model has no channel that could go."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(FEATURES, CLASSES)).eval()
    return replace(workload(), model=model)


class Words(nn.Module):
    """It looks up the signs of the features as words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2, 6)
        self.head = nn.Linear(6 * FEATURES, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(self.words((features > 0).long()).flatten(1))
        return out


def words() -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return replace(workload(), model=Words().eval())
