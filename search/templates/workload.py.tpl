"""The workload of $name.yaml: a small CNN that reads digits. It runs as it is: replace its parts by yours."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from slimfront import Workload

WEIGHTS = Path(__file__).with_suffix(".safetensors")  # made on first use; delete it to train again
SIZES = (797, 200, 400, 400)  # images for training, calibration, validation and test


def build() -> nn.Module:
    """Replace: your model. Every Conv, Linear, Embedding and recurrent weight in it may be compressed."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def data() -> list[tuple[Tensor, Tensor]]:
    """Replace: your data, as four pairs (inputs, targets), torch Datasets or DataLoaders that do not shuffle.

    No sample may be in two of them: what was chosen on validation is judged on a test that it never saw.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)  # (1797, 1, 8, 8) in 0..1
    labels = torch.tensor(digits.target, dtype=torch.int64)  # (1797,) in 0..9
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # always the same
    return [(images[part], labels[part]) for part in order.split(SIZES)]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Replace: your metric, one outcome per sample or one number for all of them. Higher is better."""
    return outputs.argmax(dim=1) == targets


def train(images: Tensor, labels: Tensor, epochs: int = 12) -> nn.Module:
    """Replace: load the weights that you have. This trains for a few seconds, the same way every time."""
    with torch.random.fork_rng(devices=[]):  # leaves the random numbers of others alone
        torch.manual_seed(0)
        model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    """The model with its weights, which every process reads from the same file."""
    if not WEIGHTS.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # with more, the last bits of the weights depend on the cores
        try:
            model = train(images, labels)
        finally:
            torch.set_num_threads(threads)
        unfinished = WEIGHTS.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_bytes(save(model.state_dict()))
        os.replace(unfinished, WEIGHTS)  # whoever looks sees all of the file or none
    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    return model


def workload() -> Workload:
    """What $name.yaml names: the model, its data and its metric."""
    training, calibration, validation, test = data()
    return Workload(
        model=trained(*training),
        train=training,  # promising candidates are trained on it for a few steps, under the model's eyes
        calibration=calibration,  # what layers are compressed, and BatchNorm statistics taken, on
        validation=validation,  # what candidates are compared on
        test=test,  # held back until the end, for the front alone
        example_input=torch.zeros(1, 1, 8, 8),  # one batch of any size, for counting multiply-accumulates
        metric=accuracy,
        chance=0.1,  # the accuracy of guessing: where the plots begin
    )
