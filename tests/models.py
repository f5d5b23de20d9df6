"""Small models to compress, one of each kind that is awkward, with inputs for them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.inputs import Inputs, call


@dataclass(frozen=True)
class Subject:
    """A float model in evaluation mode, and a batch it takes."""

    model: nn.Module
    inputs: Inputs


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers below 12."""
    return torch.randint(12, shape, generator=torch.Generator().manual_seed(seed))


class Convolutions(nn.Sequential):
    """Convolutions of three kinds with BatchNorm, whose statistics are not those of a new layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.BatchNorm2d(6),
            nn.ConvTranspose2d(6, 4, 2, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        with torch.no_grad():
            self(random_tensor(16, 2, 8, 8, seed=1) + 1)


class Recurrent(nn.Module):
    """An embedding, two LSTM layers, a GRU cell's kind of weights, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 5)
        self.lstm = nn.LSTM(5, 7, num_layers=2, batch_first=True)
        self.gru = nn.GRU(7, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(words))
        states, _ = self.gru(states)
        logits: Tensor = self.head(states.mean(dim=1))
        return logits


class Attention(nn.Module):
    """An embedding, a transformer block with dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.embedding(words)).mean(dim=1))
        return logits


class Tied(nn.Module):
    """A head that is the embedding, and a module that is used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.second(torch.relu(self.first(self.embedding(words).mean(dim=1))))
        logits: Tensor = self.head(hidden)
        return logits


class Buffers(nn.Module):
    """Buffers of every awkward type: float64, integers, booleans, a scalar, complex, none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.register_buffer("shift", torch.linspace(-1, 1, 4, dtype=torch.float64))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float16))
        self.register_buffer("phase", torch.tensor([1 + 2j, -3j]))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("absent", None)
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        moved = self.linear(features).double() + self.get_buffer("shift")
        moved = torch.where(self.get_buffer("mask"), moved[:, self.get_buffer("order")], 0.0)
        return moved * self.get_buffer("scalar") + self.get_buffer("phase").abs().sum()


def brain_floats() -> nn.Module:
    """A bfloat16 model."""
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)).bfloat16()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "convolutions": (Convolutions, lambda: random_tensor(4, 2, 8, 8)),
    "recurrent": (Recurrent, lambda: tokens(4, 6)),
    "attention": (Attention, lambda: tokens(4, 6)),
    "tied": (Tied, lambda: tokens(4, 6)),
    "buffers": (Buffers, lambda: random_tensor(4, 5)),
    "bfloat16": (brain_floats, lambda: random_tensor(4, 5).bfloat16()),
}


def subject(name: str) -> Subject:
    """One of MODELS, the same every time."""
    make, inputs = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Subject(make().eval(), inputs())


def digest(model: nn.Module) -> str:
    """Of everything a model holds: names, shapes, types, bytes, and modes."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad} {id(tensor)}".encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        found.update(f"{name} {type(module)} {module.training} {len(module._forward_hooks)}".encode())
    return found.hexdigest()


def random_loss(out: Tensor, samples: slice) -> Tensor:
    """A loss of some outputs that no two of them have the same share in: a sum over samples."""
    return (out.float() * random_tensor(*out.shape[1:], seed=3)).square().sum()


@torch.no_grad()
def output(one: nn.Module, inputs: Inputs) -> Tensor:
    """What a model returns for a batch."""
    return call(one, inputs)
