"""Models of the workloads that ship, filled from their weights files."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def filled(build: Callable[[], _Model], path: Path) -> _Model:
    """What `build` gives, in evaluation mode, with weights copied out of a safetensors file.

    It draws no random numbers: the model is built without storage and then filled from the file.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the names or the shapes in the file are not those of the model.
    """
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu").load_state_dict(load_file(path), strict=True)
    return model.eval()
