"""Small models whose channels hang together in different ways, with inputs for them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.inputs import Inputs
from compress.pruning.channels import find_groups
from compress.structure import ChannelGroup
from objectives.workloads.resnet import ResNet
from tests.models import random_tensor, tokens


class Dense(nn.Module):
    """Each layer reads all earlier ones, as in DenseNet; the norm stands before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 10, 14))
        self.layers = nn.ModuleList(nn.Conv2d(n, 4, 3, padding=1) for n in (6, 10))
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            parts.append(layer(torch.relu(norm(torch.cat(parts, dim=1)))))
        logits: Tensor = self.head(torch.relu(self.norms[2](torch.cat(parts, dim=1))).mean(dim=(2, 3)))
        return logits


class Inverted(nn.Module):
    """An inverted residual block, as in MobileNet: wide, depthwise, with a squeeze-and-excite gate, narrow again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(12, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.depthwise(self.expand(x)))
        out: Tensor = x + self.project(y * self.gate(y))
        return out


class Mobile(nn.Sequential):
    """Two inverted residual blocks."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), Inverted(8), Inverted(8),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip


class Grouped(nn.Sequential):
    """Grouped convolutions, a GroupNorm, a PReLU, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8),
            nn.Conv2d(8, 12, 3, groups=4, padding=1), nn.PReLU(), nn.Conv2d(12, 16, 1), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Conv2d(16, 8, 1), nn.Tanh(), nn.ConvTranspose2d(8, 6, 2, groups=2),
            nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip


class LeNet(nn.Sequential):
    """Convolutions whose 3x3 positions all become inputs of a linear layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10), nn.ReLU(), nn.Linear(10, 3)
        )


class PreNorm(nn.Module):
    """A transformer block with the norms inside the residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """A block with the norms inside and torch's own with them outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 12)
        self.blocks = nn.ModuleList(
            [PreNorm(), nn.TransformerEncoderLayer(12, 3, dim_feedforward=16, batch_first=True)]
        )
        self.head = nn.Linear(12, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


class Plain(nn.Module):
    """An attention without any norm around: its inputs and outputs are channels like others."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words).transpose(0, 1)
        logits: Tensor = self.head(self.attention(x, x, x)[0].mean(dim=0))
        return logits


class Bert(nn.Module):
    """An attention written by hand, as in BERT: q, k and v are linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all_head_size = 4, 3, 12
        self.embedding = nn.Embedding(12, 10)
        self.q, self.k, self.v = nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(10, 12)
        self.out = nn.Linear(12, 10)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        mixed = torch.softmax(q @ k.transpose(2, 3) / 3**0.5, dim=-1) @ v
        y = mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.all_head_size)
        logits: Tensor = self.head(self.norm(x + self.out(y)).mean(dim=1))
        return logits


class Fused(nn.Module):
    """An attention whose q, k and v are one linear layer, and a gated linear unit behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 3, 4
        self.embedding = nn.Embedding(12, 8)
        self.qkv = nn.Linear(8, 36)
        self.proj = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.gated, self.back = nn.Linear(8, 20), nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        q, k, v = self.qkv(x).reshape(*words.shape, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm(x + self.proj(y))
        value, gate = self.gated(x).chunk(2, dim=-1)
        logits: Tensor = self.head((x + self.back(value * torch.sigmoid(gate))).mean(dim=1))
        return logits


class Recurrent(nn.Module):
    """A linear layer and a recurrent one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 5)
        self.inner = nn.Linear(5, 6)
        self.lstm = nn.LSTM(6, 7, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, 3)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(torch.relu(self.inner(self.embedding(words))))[0][:, -1])
        return logits


class Shuffled(nn.Module):
    """Channels are shuffled between two grouped convolutions, as in ShuffleNet: torch-pruning does not see that."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = y.view(len(y), 2, -1, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        logits: Tensor = self.head(torch.relu(self.second(y)).mean(dim=(2, 3)))
        return logits


def _images() -> Tensor:
    return random_tensor(2, 3, 8, 8)


def _words() -> Tensor:
    return tokens(2, 6)


SHAPES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "resnet": (lambda: ResNet(blocks=2, width=4, classes=3, in_channels=3), _images),
    "dense": (Dense, _images),
    "mobile": (Mobile, _images),
    "grouped": (Grouped, _images),
    "lenet": (LeNet, _images),
    "transformer": (Transformer, _words),
    "plain": (Plain, _words),
    "bert": (Bert, _words),
    "fused": (Fused, _words),
    "recurrent": (Recurrent, _words),
    "shuffled": (Shuffled, _images),
}


@dataclass(frozen=True)
class Shape:
    """A float model in evaluation mode, and a batch it takes."""

    model: nn.Module
    inputs: Inputs


def shape(name: str) -> Shape:
    """One of SHAPES, the same every time; its norms are not those of a new model."""
    make, inputs = SHAPES[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make().eval()
        for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape) * (0.5 if "var" in tensor_name else 0.3))
        return Shape(model, inputs())


@functools.cache
def groups_of(name: str) -> tuple[ChannelGroup, ...]:
    """The channel groups of one of SHAPES."""
    one = shape(name)
    return find_groups(one.model, one.inputs)[0]
