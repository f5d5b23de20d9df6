"""The digits workload: 1,797 digits of 8x8 pixels that come with scikit-learn, and a ResNet-14."""

from pathlib import Path

import torch

from objectives.workload import Workload
from objectives.workloads import Splits, stratified_split
from objectives.workloads.resnet import trained
from spaces.errors import WorkloadError

WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"
SIZES = (797, 200, 400, 400)  # train, calibration, validation, test
SEED = 0
LICENCE = (
    "Data: Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, UCI Machine Learning "
    "Repository, 1998; CC BY 4.0), the copy of its test set in scikit-learn (BSD-3-Clause); "
    "weights: Apache-2.0."
)


def splits() -> Splits:
    """Return train (797), calibration (200), validation (400) and test (400), disjoint, stratified and fixed.

    Images are float32 (n, 1, 8, 8) in 0..1 (the data's 0..16 divided by 16), targets int64 (n,) in 0..9. No
    two of the images are equal.

    Raises:
        WorkloadError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise WorkloadError(
            "the digits workload reads its images from scikit-learn, which is not installed: "
            "run `pip install scikit-learn`"
        ) from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).div(16).unsqueeze(1)  # (1797, 1, 8, 8)
    targets = torch.tensor(data.target, dtype=torch.int64)
    keys = [image.tobytes() for image in data.images.astype("u1")]
    parts = stratified_split(keys, targets.tolist(), SIZES, seed=SEED)
    return Splits(*((images[part], targets[part]) for part in parts))


def workload() -> Workload:
    """Return the digits workload; its model is loaded from the weights that `train.py` wrote.

    Raises:
        WorkloadError: scikit-learn is not installed.
    """
    data = splits()
    return Workload(
        model=trained(WEIGHTS),
        train=data.train,
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        example_input=torch.zeros(1, 1, 8, 8),
        chance=0.1,
        licence=LICENCE,
    )
