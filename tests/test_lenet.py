"""The lenet workload: LeNet-300-100 on the animals, whose training images are moved by exact amounts."""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from objectives.workload import LoadedWorkload, load_workload
from objectives.workloads import Splits, animals, digits, lenet, train
from objectives.workloads.resnet import ResNet
from search.config import load_config

CONFIG = Path(__file__).parent.parent / "configs" / "lenet.yaml"
needs_animals = pytest.mark.skipif(
    importlib.util.find_spec("animal_mnist") is None, reason=f"animal-mnist is missing: {animals.INSTALL}"
)


@cache
def load() -> LoadedWorkload:
    return load_workload("objectives.workloads.lenet:workload")


@cache
def parts() -> Splits:
    return lenet.splits()


def digests(images: Tensor) -> set[bytes]:
    return {hashlib.sha256(image.tobytes()).digest() for image in images.numpy()}


class TestLeNet:
    def test_it_has_the_parameters_of_lenet_300_100(self) -> None:
        shapes = [tuple(weight.shape) for weight in lenet.LeNet().parameters()]
        assert shapes == [(300, 784), (300,), (100, 300), (100,), (10, 100), (10,)]
        assert sum(weight.numel() for weight in lenet.LeNet().parameters()) == 266_610

    def test_it_is_three_affine_maps_with_rectifiers_between(self) -> None:
        model, images = lenet.LeNet(), torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        x = images.reshape(4, 784)
        for layer in (model.fc1, model.fc2):
            x = (x @ layer.weight.T + layer.bias).clamp(min=0)
        torch.testing.assert_close(model(images), x @ model.fc3.weight.T + model.fc3.bias)


class TestMoved:
    def test_ten_copies_are_each_pixel_where_it_should_be(self) -> None:
        images = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
        copies = lenet.moved(images).reshape(10, 3, 4, 5)
        for copy, given in enumerate(copies):
            down, right = lenet.SHIFTS[copy % 5]
            for y in range(4):
                for x in range(5):
                    across = 4 - x if copy >= 5 else x
                    inside = 0 <= y - down < 4 and 0 <= across - right < 5
                    expected = images[:, 0, y - down, across - right] if inside else torch.zeros(3)
                    assert torch.equal(given[:, y, x], expected)

    def test_the_first_are_the_images_and_they_are_not_changed(self) -> None:
        images = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
        before = images.clone()
        copies = lenet.moved(images)
        assert torch.equal(copies[:3], images)
        copies.zero_()
        assert torch.equal(images, before)


@needs_animals
class TestData:
    def test_training_images_are_the_animals_moved_and_the_other_parts_are_theirs(self) -> None:
        train_part, *others = parts()
        theirs, *their_others = animals.splits()
        assert train_part[0].shape == (60_000, 1, 28, 28)
        assert train_part[0].is_contiguous()
        assert torch.equal(train_part[0], lenet.moved(theirs[0]))
        assert torch.equal(train_part[1].reshape(10, 6000), theirs[1].expand(10, 6000))
        for (inputs, targets), (their_inputs, their_targets) in zip(others, their_others, strict=True):
            assert torch.equal(inputs, their_inputs)
            assert torch.equal(targets, their_targets)

    def test_no_moved_image_is_one_that_it_is_judged_by(self) -> None:
        seen = digests(parts().train[0])
        assert not any(seen & digests(inputs) for inputs, _ in (parts().calibration, parts().validation, parts().test))


class TestWeights:
    def test_they_are_small_and_load_strictly(self) -> None:
        assert lenet.WEIGHTS.stat().st_size < 3_000_000
        before = torch.get_rng_state()
        model = lenet.trained(lenet.WEIGHTS)
        assert torch.equal(torch.get_rng_state(), before)
        assert not model.training
        stored = load_file(lenet.WEIGHTS)
        assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())

    @needs_animals
    def test_animals_are_recognised(self) -> None:
        assert train.accuracy(load().model, parts().validation) >= 0.96


@needs_animals
def test_it_passes_the_door_with_three_sites() -> None:
    loaded = load()
    assert [site.name for site in loaded.sites] == ["fc1", "fc2", "fc3"]
    assert loaded.workload.chance == 0.1
    assert "Apache-2.0" in loaded.workload.licence


def test_its_config_searches_it() -> None:
    config = load_config(CONFIG)
    assert config.workload_entry() == "objectives.workloads.lenet:workload"
    assert config.resolved_coding() == "entropy"


class TestPenalty:
    def test_l1_makes_weights_zero_and_its_absence_none(self) -> None:
        shares = []
        for l1 in (0.0, 1e-2):
            model = ResNet(blocks=1, width=4)
            train.fit(
                model,
                digits.splits().calibration,
                train.Recipe(epochs=2, shift=0, turn=0, zoom=0, mirror=False, batch=32, learning_rate=0.05, l1=l1),
            )
            weights = torch.cat([weight.flatten() for weight in model.parameters() if weight.dim() > 1])
            shares.append(float((weights == 0).float().mean()))
        assert shares[0] == 0
        assert shares[1] > 0.1
