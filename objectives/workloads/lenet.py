"""The lenet workload: LeNet-300-100, LeCun et al. 1998 (doi:10.1109/5.726791), on the images of `animals`.

It is the network of Deep Compression's first experiment (Han et al. 2016, arXiv:1510.00149, table 2).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from objectives.workload import Workload
from objectives.workloads import Splits, animals
from objectives.workloads.filled import filled

WEIGHTS = Path(__file__).parent / "weights" / "lenet.safetensors"
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # pixels down and to the right


class LeNet(nn.Module):
    """Two hidden layers of 300 and 100 rectified units, without batch normalisation: 266,610 parameters.

    >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, 10) of images (n, 1, 28, 28)."""
        y = torch.relu(self.fc1(x.flatten(start_dim=1)))
        logits: Tensor = self.fc3(torch.relu(self.fc2(y)))
        return logits


def trained(path: Path) -> LeNet:
    """Return a `LeNet` in evaluation mode with weights copied out of a safetensors file; it draws no random numbers.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the names or the shapes in the file are not those of the model.
    """
    return filled(LeNet, path)


def moved(images: Tensor) -> Tensor:
    """Return ten copies of images (n, 1, h, w), one behind the other: (10 n, 1, h, w), the first n as they were.

    Each is at its place or one pixel to one of four sides, and that once more mirrored. What is moved in is 0. Copies
    that were turned or scaled would differ from machine to machine in their last bits, and so would the data's hash.
    """
    _, _, height, width = images.shape
    wide = nn.functional.pad(images, (1, 1, 1, 1))
    shifted = [wide[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width] for down, right in SHIFTS]
    return torch.cat([*shifted, *(copy.flip(3) for copy in shifted)])


def splits() -> Splits:
    """Return the parts of `animals`, its 6,000 training images as 60,000: ten moved copies of each.

    A student is trained on these and no others, and a network without convolutions soon knows 6,000 images by heart.

    Raises:
        WorkloadError: animal-mnist 0.4 is not installed, or its files are not the published ones.
    """
    train, *others = animals.splits()
    return Splits((moved(train[0]), train[1].repeat(2 * len(SHIFTS))), *others)


def workload() -> Workload:
    """Return the lenet workload; its model is loaded from the weights that `train.py` wrote.

    Raises:
        WorkloadError: animal-mnist 0.4 is not installed, or its files are not the published ones.
    """
    data = splits()
    return Workload(
        model=trained(WEIGHTS),
        train=data.train,
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        example_input=torch.zeros(1, 1, 28, 28),
        chance=0.1,
        licence=animals.LICENCE,
    )
