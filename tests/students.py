"""Small students of a small float model, for tests of training."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.apply import stitch
from compress.calibration import reestimate_batchnorm
from compress.coding import CodedWeight
from compress.compressing import compress_layer
from compress.inputs import Inputs
from compress.sites import Site, find_sites
from compress.statistics import SiteStatistics
from compress.training.lesson import Lesson
from compress.training.student import Student
from compress.training.teacher import WholeOutputs, teach
from spaces.policy import Choice, Codebook, Distillation, Float16, Float32, SemiStructured, Uniform, Unstructured
from tests.models import random_tensor

INPUTS = random_tensor(160, 8, seed=5)
SETTINGS = Distillation(temperature=4.0, alpha=0.5, learning_rate=1e-2, batch_size=32)
PRUNED = Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=3))
CHOICES = {
    "pruned to 3 bits": PRUNED,
    "2 bits": Choice(weights=Uniform(bits=2)),
    "asymmetric groups": Choice(
        prune=Unstructured(ratio=0.5), weights=Uniform(bits=3, scale_per="group", group_size=4, symmetric=False)
    ),
    "one step": Choice(prune=SemiStructured(n=1, m=4), weights=Uniform(bits=4, scale_per="tensor")),
    "codebook": Choice(prune=Unstructured(ratio=0.6), weights=Codebook(bits=2)),
    "pruned float16": Choice(prune=Unstructured(ratio=0.7), weights=Float16()),
    "pruned float32": Choice(prune=Unstructured(ratio=0.7), weights=Float32()),
}


def network(dropout: float = 0.0) -> nn.Module:
    """A float model of which every choice above loses something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4)]
        model = nn.Sequential(*layers)
    with torch.no_grad():
        model.get_parameter("4.weight").mul_(8)  # outputs that are sure of something
    reestimate_batchnorm(model, INPUTS, 160)
    return model.eval()


def lesson_of(model: nn.Module, inputs: Inputs = INPUTS) -> Lesson:
    """The model's own answers as targets."""
    teacher = teach(model, inputs, 64)
    assert isinstance(teacher, WholeOutputs)
    return Lesson(inputs, teacher, teacher.outputs.argmax(dim=-1), functional.cross_entropy, model=model)


def settings(**changes: object) -> Distillation:
    """The settings above with changes."""
    return Distillation.model_validate(SETTINGS.model_dump() | changes)


@dataclass(frozen=True)
class Compressed:
    """A model compressed at one choice everywhere, as a student starts from it."""

    model: nn.Module
    sites: tuple[Site, ...]
    choice: Choice
    originals: dict[str, Tensor]
    kept: dict[str, Tensor]
    coded: dict[str, CodedWeight]

    def student(self, settings: Distillation = SETTINGS, early: dict[str, Tensor] | None = None) -> Student:
        """A student, on a model of its own."""
        prune = dict.fromkeys(self.originals, self.choice.prune)
        model = stitch(self.model, self.sites, self.coded)
        return Student(model, self.sites, self.originals, self.kept, self.coded, settings, prune, early)


def compressed(model: nn.Module, choice: Choice) -> Compressed:
    """Compress a model at one choice everywhere."""
    sites = find_sites(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    originals = {site.name: parameters[site.parameter].detach() for site in sites}
    kept, coded = {}, {}
    for site in sites:
        nothing = SiteStatistics(samples=0)
        (layer,) = compress_layer(site, originals[site.name], [choice], nothing, "packed")
        coded[site.name] = layer.coded
        every = torch.ones(site.shape, dtype=torch.bool)
        kept[site.name] = every if layer.kept is None else site.weight(layer.kept)
    return Compressed(model, sites, choice, originals, kept, coded)


def trained(
    model: nn.Module,
    choice: Choice = PRUNED,
    steps: tuple[int, ...] = (12,),
    seed: int = 0,
    settings: Distillation = SETTINGS,
) -> tuple[Student, dict[str, CodedWeight]]:
    """A student that has learned for some rungs, and its coded weights."""
    student, generator = compressed(model, choice).student(settings), torch.Generator().manual_seed(seed)
    for more in steps:
        student.train(lesson_of(model), more, generator)
    return student, student.finish()


def bits_of(student: Student, coded: dict[str, CodedWeight]) -> list[bytes]:
    """Everything that was learned, as bytes."""
    tensors = [*student.model.state_dict().values(), *(one.values for one in coded.values())]
    tensors += [one.grid.step for one in coded.values() if one.grid is not None]
    tensors += [one.entries for one in coded.values() if one.entries is not None]
    return [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
