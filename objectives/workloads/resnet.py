"""Residual networks for small images, He et al. 2016 (arXiv:1512.03385), section 4.2."""

from pathlib import Path

import torch
from torch import Tensor, nn

from objectives.workloads.filled import filled


class ConvNorm(nn.Module):
    """A convolution without bias and the batch normalisation behind it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride)); `kernel` is odd."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised convolution of x, (n, outputs, h', w')."""
        y: Tensor = self.bn(self.conv(x))
        return y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a way around them; the way is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + shortcut(x)), (n, outputs, h', w'), eqs. 1 and 2."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network of three stages, each half as large and twice as wide as the one before.

    With two blocks a stage it has 14 layers, and 174,970 parameters for one input channel and ten classes.

    >>> ResNet()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, blocks: int = 2, width: int = 16, classes: int = 10, in_channels: int = 1) -> None:
        """Build it with random weights.

        Args:
            blocks: blocks in each of the three stages, at least 1.
            width: channels of the first stage, at least 1.
            classes: outputs of the head, at least 1.
            in_channels: channels of the input, at least 1.

        Raises:
            ValueError: a number is smaller than 1.
        """
        super().__init__()
        sizes = {"blocks": blocks, "width": width, "classes": classes, "in_channels": in_channels}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        self.stem = ConvNorm(in_channels, width, 3)
        layers: list[BasicBlock] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(blocks):
                layers.append(BasicBlock(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, in_channels, h, w)."""
        y = self.layers(torch.relu(self.stem(x)))  # (n, 4 * width, h / 4, w / 4)
        logits: Tensor = self.head(y.mean(dim=(2, 3)))
        return logits


def trained(path: Path) -> ResNet:
    """Return the default `ResNet` in evaluation mode with weights copied out of a safetensors file.

    It draws no random numbers: the model is built without storage and then filled from the file.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the names or the shapes in the file are not those of the model.
    """
    return filled(ResNet, path)
