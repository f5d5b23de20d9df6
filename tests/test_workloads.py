"""The workloads that ship: their data are split cleanly, their weights load and are as good as they say."""

import gzip
import hashlib
import importlib.util
import pickle
import re
import sys
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from objectives.seeds import seed_of
from objectives.splits import SPLITS
from objectives.workload import LoadedWorkload, load_workload
from objectives.workloads import Splits, animals, digits, stratified_split, train
from objectives.workloads.resnet import ResNet, trained
from spaces.errors import WorkloadError

SIZES = {digits: (797, 200, 400, 400), animals: (6000, 500, 1500, 2000)}
needs_animals = pytest.mark.skipif(
    importlib.util.find_spec("animal_mnist") is None, reason=f"animal-mnist is missing: {animals.INSTALL}"
)
both = pytest.mark.parametrize(
    "module", [pytest.param(digits, id="digits"), pytest.param(animals, id="animals", marks=needs_animals)]
)


@cache
def load(module: ModuleType) -> LoadedWorkload:
    return load_workload(f"{module.__name__}:workload")


@cache
def parts(module: ModuleType) -> Splits:
    splits: Splits = module.splits()
    return splits


def digests(images: Tensor) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in images.numpy()]


class TestResNet:
    def test_it_has_the_parameters_of_resnet_14(self) -> None:
        assert sum(weight.numel() for weight in ResNet(blocks=2, width=16).parameters()) == 174_970

    def test_its_layers_have_readable_names(self) -> None:
        names = dict(ResNet().named_modules())
        assert {"stem.conv", "stem.bn", "layers.0.conv1", "layers.0.bn1", "head"} <= set(names)
        ways = [name for name in names if name.endswith("shortcut.conv")]
        assert ways == ["layers.2.shortcut.conv", "layers.4.shortcut.conv"]

    @pytest.mark.parametrize(("blocks", "width", "classes", "channels"), [(1, 4, 3, 1), (3, 8, 10, 3)])
    def test_images_become_logits(self, blocks: int, width: int, classes: int, channels: int) -> None:
        model = ResNet(blocks, width, classes, channels)
        assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 6 * blocks + 3
        assert model(torch.zeros(2, channels, 8, 12)).shape == (2, classes)

    def test_each_stage_halves_the_image_and_doubles_the_channels(self) -> None:
        model = ResNet().eval()
        stem = model.stem(torch.zeros(1, 1, 28, 28))
        shapes = [tuple(model.layers[:n](stem).shape) for n in (2, 4, 6)]
        assert shapes == [(1, 16, 28, 28), (1, 32, 14, 14), (1, 64, 7, 7)]

    def test_a_size_below_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="blocks is 0"):
            ResNet(blocks=0)


class TestSplit:
    def test_identical_images_stay_together_and_sizes_are_exact(self) -> None:
        images = [bytes([index // 2]) for index in range(80)]  # 40 pairs
        labels = [image[0] % 2 for image in images]
        first, second = stratified_split(images, labels, (30, 50), seed=3)
        assert (len(first), len(second)) == (30, 50)
        assert sorted(first + second) == list(range(80))
        assert not {images[i] for i in first} & {images[i] for i in second}
        assert abs(sum(labels[i] for i in first) - 15) <= 2

    def test_another_seed_is_another_split(self) -> None:
        images = [bytes([index]) for index in range(40)]
        given = [stratified_split(images, [0] * 40, (20, 20), seed=seed) for seed in (0, 1, 0)]
        assert given[0] == given[2] != given[1]

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must be equal"):
            stratified_split([b"a", b"b"], [0, 0], (1, 2), seed=0)
        with pytest.raises(ValueError, match="no part of sizes"):
            stratified_split([b"a", b"a"], [0, 0], (1, 1), seed=0)


@both
class TestData:
    def test_sizes_types_and_ranges(self, module: ModuleType) -> None:
        example = load(module).workload.example_input
        assert isinstance(example, Tensor)
        for (inputs, targets), size in zip(parts(module), SIZES[module], strict=True):
            assert inputs.shape == (size, *example.shape[1:])
            assert targets.shape == (size,)
            assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
            assert inputs.is_contiguous()
            assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)

    def test_no_image_is_in_two_parts(self, module: ModuleType) -> None:
        seen = [set(digests(inputs)) for inputs, _ in parts(module)]
        assert all(not a & b for a, b in combinations(seen, 2))

    def test_every_class_has_its_share(self, module: ModuleType) -> None:
        splits = parts(module)
        counts = torch.stack([torch.bincount(targets, minlength=10) for _, targets in splits])  # (4, 10)
        share = counts.sum(dim=0) / counts.sum()
        expected = torch.tensor(SIZES[module])[:, None] * share
        assert (counts - expected).abs().max() < 2

    def test_two_calls_give_the_same(self, module: ModuleType) -> None:
        for one, other in zip(parts(module), module.splits(), strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_digits_are_all_of_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pairs = zip(images.astype("u1"), labels, strict=True)
    theirs = Counter((image.tobytes(), int(label)) for image, label in pairs)
    ours = Counter(
        ((image * 16).to(torch.uint8).numpy().tobytes(), int(label))
        for inputs, targets in digits.splits()
        for image, label in zip(inputs, targets, strict=True)
    )
    assert ours == theirs
    assert max(ours.values()) == 1


@needs_animals
def test_animals_have_the_stated_number_of_equal_images() -> None:
    count = Counter(digest for inputs, _ in parts(animals) for digest in digests(inputs))
    assert sum(count.values()) == 10_000
    assert Counter(count.values()) == {1: 10_000 - 568, 2: 284}


class TestWeights:
    @pytest.mark.parametrize("path", [digits.WEIGHTS, animals.WEIGHTS], ids=["digits", "animals"])
    def test_they_are_small_and_load_strictly(self, path: Path) -> None:
        assert path.stat().st_size < 1_000_000
        before = torch.get_rng_state()
        model = trained(path)
        assert torch.equal(torch.get_rng_state(), before)
        assert not model.training
        stored = load_file(path)
        assert set(stored) == set(ResNet().state_dict())
        assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())

    def test_digits_are_recognised(self) -> None:
        assert train.accuracy(load(digits).model, parts(digits).test) >= 0.98

    @needs_animals
    def test_animals_are_recognised(self) -> None:
        assert train.accuracy(load(animals).model, parts(animals).validation) >= 0.975


@both
class TestWorkload:
    def test_it_passes_the_door_with_every_split_and_site(self, module: ModuleType) -> None:
        loaded = load(module)
        assert len(loaded.sites) == 16  # 15 convolutions, 2 of them in shortcuts, and the head
        for name, (inputs, targets) in zip(SPLITS, parts(module), strict=True):
            split = loaded.splits[name]
            assert isinstance(split.inputs, Tensor)
            assert split.targets is not None
            if name == "validation":  # in the racing order
                order = torch.Generator().manual_seed(seed_of(0, "validation order"))
                at = torch.randperm(len(targets), generator=order)
                inputs, targets = inputs[at], targets[at]
            assert torch.equal(split.inputs, inputs)
            assert torch.equal(split.targets, targets)

    def test_its_metric_is_the_share_of_right_answers(self, module: ModuleType) -> None:
        loaded = load(module)
        inputs, targets = parts(module).calibration
        with torch.no_grad():
            outcomes = torch.as_tensor(loaded.workload.metric(loaded.model(inputs), targets))
        assert outcomes.shape == targets.shape
        measured = train.accuracy(loaded.model, (inputs, targets))
        assert outcomes.double().mean().item() == pytest.approx(measured)

    def test_licence_and_chance_are_stated(self, module: ModuleType) -> None:
        workload = load(module).workload
        assert "Apache-2.0" in workload.licence
        assert workload.chance == 0.1


class TestMissingData:
    def test_a_missing_package_names_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "animal_mnist", None)  # Python's own way to say: not installed
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(WorkloadError, match=re.escape(animals.INSTALL)):
            animals.splits()
        with pytest.raises(WorkloadError, match="pip install scikit-learn"):
            digits.splits()

    @pytest.mark.parametrize("damage", ["missing", "no gzip", "cut", "zeros"])
    def test_other_files_are_refused(self, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "animal_mnist" / "data" / "Animal_MNIST"
        folder.mkdir(parents=True)
        (tmp_path / "animal_mnist" / "__init__.py").write_text("raise RuntimeError('imported')")
        zeros = gzip.compress(pickle.dumps(np.zeros((10_000, 28, 28), "u1"), protocol=4), 1)
        files = {"no gzip": b"no gzip", "cut": zeros[:-100], "zeros": zeros}
        if damage in files:
            (folder / "animal_data_version_3.gz").write_bytes(files[damage])
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(WorkloadError, match="SHA-256" if damage == "zeros" else "cannot be read"):
            animals.splits()


class TestReadArray:
    ARRAY = np.arange(3 * 10 * 10, dtype="u1").reshape(3, 10, 10)

    @pytest.mark.parametrize(("dtype", "shape"), [("|u1", (3, 10, 10)), ("<i8", (300,)), ("<i8", (300, 2))])
    def test_it_reads_what_numpy_writes(self, dtype: str, shape: tuple[int, ...]) -> None:
        array = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
        given = animals.read_array(pickle.dumps(array, protocol=4), dtype, shape)
        assert given.dtype == array.dtype
        assert given.flags.writeable
        np.testing.assert_array_equal(given, array)

    OTHERS = (ARRAY.astype("<i8"), ARRAY[:2], ARRAY.reshape(3, 100), ARRAY.copy("F"), ARRAY.astype(object))

    @pytest.mark.parametrize(
        "value", [*OTHERS, ARRAY.tobytes(), [ARRAY], len, None], ids=lambda value: type(value).__name__
    )
    def test_another_value_is_refused(self, value: object) -> None:
        with pytest.raises(WorkloadError, match=r"something other than one \|u1 array"):
            animals.read_array(pickle.dumps(value, protocol=4), "|u1", (3, 10, 10))

    def test_a_call_is_refused_and_not_made(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (tmp_path / "sprung",)

        raw = pickle.dumps(Trap(), protocol=4)
        with pytest.raises(WorkloadError, match="it was not unpickled"):
            animals.read_array(raw, "|u1", (3, 10, 10))
        whole = pickle.dumps(self.ARRAY, protocol=4)
        with pytest.raises(WorkloadError, match="it was not unpickled"):
            animals.read_array(whole[:-1] + raw[2:], "|u1", (3, 10, 10))
        assert not (tmp_path / "sprung").exists()
        pickle.loads(raw)  # the trap is a real one
        assert (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("damage", ["cut", "longer", "empty", "text"])
    def test_a_damaged_file_is_refused(self, damage: str) -> None:
        whole = pickle.dumps(self.ARRAY, protocol=4)
        raw = {"cut": whole[:-20], "longer": whole + b"x", "empty": b"", "text": b"\xff no pickle"}[damage]
        with pytest.raises(WorkloadError):
            animals.read_array(raw, "|u1", (3, 10, 10))


class TestTraining:
    RECIPE = train.Recipe(epochs=2, shift=1, turn=10, zoom=0.1, mirror=True, batch=32, learning_rate=0.05)

    def test_the_same_recipe_gives_the_same_weights(self) -> None:
        inputs, targets = digits.splits().calibration
        models = [ResNet(blocks=1, width=4) for _ in range(2)]
        for model in models:
            train.fit(model, (inputs, targets), self.RECIPE)
        one, other = (model.state_dict() for model in models)
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_augmentation_without_amounts_changes_nothing(self) -> None:
        images = digits.splits().calibration[0]
        still = train.Recipe(epochs=1, shift=0, turn=0, zoom=0, mirror=False)
        given = train.augment(images, still, torch.Generator().manual_seed(0))
        torch.testing.assert_close(given, images, atol=1e-5, rtol=0)

    def test_mirroring_swaps_left_and_right_of_some(self) -> None:
        images = digits.splits().calibration[0]
        flip = train.Recipe(epochs=1, shift=0, turn=0, zoom=0, mirror=True)
        given = train.augment(images, flip, torch.Generator().manual_seed(0))
        same = (given - images).abs().amax(dim=(1, 2, 3)) < 1e-5
        swapped = (given - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
        assert (same | swapped).all()
        assert 60 < swapped.sum() < 140

    def test_it_writes_a_file_that_loads(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "made" / "digits.safetensors"
        train.main(["digits", "--epochs", "1", "--out", str(out)])
        assert train.accuracy(trained(out), digits.splits().train) > 0.1
        assert "test: 0." in capsys.readouterr().out

    def test_no_epochs_are_refused(self) -> None:
        with pytest.raises(SystemExit, match="2"):
            train.main(["digits", "--epochs", "0"])
