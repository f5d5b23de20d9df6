"""Distillation: the soft loss against its formulas, and students that are trained as they will be stored."""

import copy
import math
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.apply import stitch
from compress.artifact import layout_of
from compress.calibration import reestimate_batchnorm
from compress.coding import CodedWeight
from compress.database import LayerDatabase, kept_mask
from compress.distillation import Lesson, OutputKind, Student, soft_loss
from compress.inputs import Inputs, outputs
from compress.quantization.uniform import top
from compress.sites import find_sites
from spaces.errors import CandidateError
from spaces.policy import Choice, Distillation, Float16, Float32, Uniform, Unstructured
from tests.models import MODELS, digest, output, random_tensor, subject, tokens

INPUTS = random_tensor(160, 8, seed=5)
SETTINGS = Distillation(temperature=4.0, alpha=0.5, learning_rate=1e-2, batch_size=32)
PRUNED = Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=3))
CHOICES = {
    "pruned to 3 bits": PRUNED,
    "2 bits": Choice(weights=Uniform(bits=2)),
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
    teacher = outputs(model, inputs, 64)
    return Lesson(inputs, teacher, teacher.argmax(dim=-1), functional.cross_entropy)


def student_of(model: nn.Module, choice: Choice = PRUNED) -> Student:
    sites = find_sites(model)
    database = LayerDatabase(model, sites)
    originals = {site.name: database.weight(site.name) for site in sites}
    kept = {name: kept_mask(weight, choice) for name, weight in originals.items()}
    coded = database.policy(dict.fromkeys(originals, choice))
    return Student(stitch(model, sites, coded), sites, originals, kept, coded)


def trained(
    model: nn.Module, choice: Choice = PRUNED, steps: tuple[int, ...] = (12,), seed: int = 0
) -> tuple[Student, dict[str, CodedWeight]]:
    student, generator = student_of(model, choice), torch.Generator().manual_seed(seed)
    for more in steps:
        student.train(lesson_of(model), SETTINGS, more, generator)
    return student, student.finish()


def bits_of(student: Student, coded: dict[str, CodedWeight]) -> list[bytes]:
    """Everything that was learned, as bytes."""
    tensors = [*student.model.state_dict().values(), *(one.values for one in coded.values())]
    return [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]


class TestSoftLoss:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
    def test_it_is_the_divergence_by_hand_times_the_squared_temperature(self, temperature: float) -> None:
        student, teacher = random_tensor(7, 5), random_tensor(7, 5, seed=1) * 2
        total = 0.0
        for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
            q = [math.exp(value / temperature) / sum(math.exp(z_j / temperature) for z_j in z) for value in z]
            p = [math.exp(value / temperature) / sum(math.exp(v_j / temperature) for v_j in v) for value in v]
            total += sum(p_i * (math.log(p_i) - math.log(q_i)) for p_i, q_i in zip(p, q, strict=True))
        found = float(soft_loss(student, teacher, temperature, "logits"))
        assert found == pytest.approx(temperature**2 * total / 7, rel=1e-4)

    def test_positions_count_as_samples(self) -> None:
        student, teacher = random_tensor(3, 4, 5), random_tensor(3, 4, 5, seed=1)
        flat = soft_loss(student.reshape(12, 5), teacher.reshape(12, 5), 2.0, "logits")
        assert float(soft_loss(student, teacher, 2.0, "logits")) == float(flat)

    def test_it_is_zero_for_the_teacher_and_positive_for_others(self) -> None:
        teacher = random_tensor(6, 5)
        assert float(soft_loss(teacher, teacher, 3.0, "logits")) == pytest.approx(0, abs=1e-6)
        assert float(soft_loss(teacher + 7, teacher, 3.0, "logits")) == pytest.approx(0, abs=1e-5)
        assert all(float(soft_loss(random_tensor(6, 5, seed=i), teacher, 3.0, "logits")) > 0 for i in range(1, 20))

    def test_values_are_compared_by_squared_error_at_any_temperature(self) -> None:
        student, teacher = random_tensor(6, 5), random_tensor(6, 5, seed=1)
        expected = float(((student - teacher) ** 2).mean())
        assert [float(soft_loss(student, teacher, t, "values")) for t in (1.0, 9.0)] == pytest.approx([expected] * 2)

    def gradient(self, z: Tensor, v: Tensor, temperature: float) -> Tensor:
        z = z.clone().requires_grad_()
        (found,) = torch.autograd.grad(soft_loss(z, v, temperature, "logits"), z)
        return found * z.shape[0]  # of the sum over samples

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
    def test_its_gradient_is_that_of_the_paper_times_the_squared_temperature(self, temperature: float) -> None:
        z, v = random_tensor(6, 5).double(), random_tensor(6, 5, seed=1).double()
        q, p = (z / temperature).softmax(-1), (v / temperature).softmax(-1)
        expected = temperature**2 * (q - p) / temperature  # eq. 2
        assert torch.allclose(self.gradient(z, v, temperature), expected, rtol=1e-6)

    def test_at_high_temperature_it_matches_logits(self) -> None:
        z, v = random_tensor(6, 5).double(), random_tensor(6, 5, seed=1).double()
        z, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
        assert torch.allclose(self.gradient(z, v, 1e4), (z - v) / 5, atol=2e-4)  # eq. 4, times T^2
        norms = [float(self.gradient(z, v, temperature).norm()) for temperature in (20, 100, 1000)]
        assert max(norms) / min(norms) < 1.1


class TestLearning:
    @pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
    def test_the_student_comes_nearer_to_the_teacher(self, choice: Choice) -> None:
        model = network()
        lesson, student = lesson_of(model), student_of(model, choice)

        def distance() -> float:
            return float(soft_loss(outputs(student.model, lesson.inputs, 64), lesson.teacher, 1.0, "logits"))

        before = distance()
        mean = student.train(lesson, SETTINGS, 60, torch.Generator().manual_seed(0))
        student.finish()
        assert distance() < 0.6 * before
        assert 0 < mean < 60

    def test_targets_alone_teach_where_alpha_is_zero_and_not_at_all_where_it_is_one(self) -> None:
        model = network()
        lesson, generator = lesson_of(model), torch.Generator().manual_seed(0)
        hard, soft = (SETTINGS.model_copy(update={"alpha": alpha}) for alpha in (0.0, 1.0))
        shuffled = replace(lesson, teacher=torch.flip(lesson.teacher, [0]))
        student = student_of(model)
        student.train(shuffled, hard, 60, generator)
        student.finish()
        assert lesson.targets is not None
        right = outputs(student.model, lesson.inputs, 64).argmax(-1).eq(lesson.targets)
        assert float(right.double().mean()) > 0.85
        found = []
        for targets in (lesson.targets, None):
            student = student_of(model)
            student.train(replace(lesson, targets=targets), soft, 10, torch.Generator().manual_seed(0))
            found.append(bits_of(student, student.finish()))
        assert found[0] == found[1]

    @pytest.mark.parametrize("name", MODELS)
    def test_every_kind_of_model_learns_and_is_stored_as_it_is(self, name: str, tmp_path: Path) -> None:
        one = subject(name)
        sites = find_sites(one.model)
        inputs = {
            "convolutions": random_tensor(32, 2, 8, 8) + 1,
            "buffers": random_tensor(32, 5),
            "bfloat16": random_tensor(32, 5).bfloat16(),
        }.get(name, tokens(32, 6))
        choice = Choice(weights=Uniform(bits=4))
        student, start = student_of(one.model, choice), student_of(one.model, choice).finish()
        before = digest(one.model)
        settings = SETTINGS.model_copy(update={"batch_size": 16})
        student.train(lesson_of(one.model, inputs), settings, 20, torch.Generator().manual_seed(0))
        coded = student.finish()
        for site in sites:
            assert not torch.equal(coded[site.name].values, start[site.name].values), f"{site.name} learned nothing"
        layout = layout_of(one.model, "mine:workload")
        (tmp_path / "model").write_bytes(layout.pack(student.model, coded))
        assert torch.equal(output(layout.unpack(tmp_path / "model"), one.inputs), output(student.model, one.inputs))
        assert digest(one.model) == before

    @pytest.mark.parametrize("form", ["tuple", "dict"])
    def test_inputs_come_in_every_form(self, form: str) -> None:
        model = network()
        inputs: Inputs = (INPUTS,) if form == "tuple" else {"input": INPUTS}
        student = student_of(model)
        student.train(lesson_of(model, inputs), SETTINGS, 12, torch.Generator().manual_seed(0))
        assert bits_of(student, student.finish()) == bits_of(*trained(model))


class TestStored:
    @pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
    def test_pruned_weights_stay_zero_and_codes_are_on_the_old_scales(self, choice: Choice) -> None:
        model = network()
        sites, start = find_sites(model), student_of(model, choice).finish()
        student, coded = trained(model, choice, (40,))
        for site in sites:
            new, old = coded[site.name], start[site.name]
            kept = site.rows(kept_mask(model.get_parameter(site.parameter), choice))
            assert not new.values[~kept].any()
            assert site.size - new.nonzero >= int((~kept).sum()), "-0.0 takes as many bytes as any other value"
            assert (new.kind, new.bits, new.exponent) == (old.kind, old.bits, old.exponent)
            assert new.values.dtype == old.values.dtype
            assert not torch.equal(new.values, old.values)
            if new.scales is not None and old.scales is not None:
                assert torch.equal(new.scales, old.scales)
                assert int(new.values.abs().max()) <= top(new.bits)
            assert torch.equal(student.model.get_parameter(site.parameter), site.weight(new.decode()))

    @pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
    def test_before_the_first_step_it_is_the_one_shot_model(self, choice: Choice) -> None:
        model = network()
        sites = find_sites(model)
        coded = LayerDatabase(model, sites).policy({site.name: choice for site in sites})
        student = student_of(model, choice)
        before = digest(student.model)
        again = student.finish()
        assert digest(student.model) == before
        assert all(torch.equal(again[name].values, one.values) for name, one in coded.items())

    def test_a_weight_that_was_clipped_stays_where_it_is_and_others_move(self) -> None:
        model = network()
        (first, _), choice = find_sites(model), Choice(weights=Uniform(bits=2))
        start = student_of(model, choice).finish()["0"]
        assert start.scales is not None
        clipped = first.rows(model.get_parameter("0.weight")).abs() > top(2) * start.scales
        _, coded = trained(model, choice, (200,))
        moved = coded["0"].values != start.values
        assert clipped.sum() > 40
        assert not moved[clipped].any()
        assert moved[~clipped].sum() > 40

    def test_a_channel_without_a_scale_stays_zero(self) -> None:
        model = network()
        with torch.no_grad():
            model.get_parameter("0.weight")[4] = 0
        _, coded = trained(model, Choice(weights=Uniform(bits=4)), (30,))
        assert not coded["0"].values[4].any()
        assert coded["0"].values.any(dim=1).sum() > 25

    def test_the_model_ends_in_evaluation_mode_without_hooks_and_with_the_same_parameters(self) -> None:
        student = student_of(network())
        names = {name: id(parameter) for name, parameter in student.model.named_parameters()}
        student.train(lesson_of(network()), SETTINGS, 3, torch.Generator())
        student.finish()
        assert {name: id(parameter) for name, parameter in student.model.named_parameters()} == names
        assert not any(module.training or module._forward_hooks for module in student.model.modules())


class TestSameBits:
    def test_the_same_seed_gives_the_same_student_and_another_seed_another(self) -> None:
        model = network(dropout=0.5)
        first = bits_of(*trained(model, seed=1))
        torch.rand(7)  # the global generator plays no part
        assert bits_of(*trained(model, seed=1)) == first
        assert bits_of(*trained(model, seed=2)) != first

    def test_a_rung_goes_on_where_the_last_one_ended(self) -> None:
        model = network(dropout=0.5)
        together = bits_of(*trained(model, steps=(9, 9)))
        student, generator = student_of(model), torch.Generator().manual_seed(0)
        for _ in range(2):
            student.train(lesson_of(model), SETTINGS, 9, generator)
            coded = student.finish()  # looking at a student does not change how it goes on
            copy.deepcopy(student.model)
            output(student.model, random_tensor(5, 8))
        assert bits_of(student, coded) == together
        assert together != bits_of(*trained(model, steps=(9,)))
        assert together != bits_of(*trained(model, steps=(18,)))  # the rate falls to zero in each rung

    @pytest.mark.parametrize("learning_rate", [1e-2, 1e30])
    def test_no_global_generator_moves(self, learning_rate: float) -> None:
        model, settings = network(dropout=0.5), SETTINGS.model_copy(update={"learning_rate": learning_rate})
        before = (torch.get_rng_state(), str(np.random.get_state()), random.getstate())
        with pytest.raises(CandidateError) if learning_rate > 1 else nullcontext():
            student_of(model).train(lesson_of(model), settings, 10, torch.Generator().manual_seed(0))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (str(np.random.get_state()), random.getstate()) == before[1:]

    @pytest.mark.parametrize("kind", ["logits", "values"])
    def test_a_rate_that_is_too_high_is_an_error_that_says_where(self, kind: OutputKind) -> None:
        model = network()
        lesson = replace(lesson_of(model), kind=kind)
        settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
        with pytest.raises(CandidateError, match=r"diverged at step \d+ of 50: the loss is (nan|inf)"):
            student_of(model).train(lesson, settings, 50, torch.Generator().manual_seed(0))

    def test_a_batch_larger_than_the_data_is_all_of_it(self) -> None:
        model, found = network(), []
        for size in (160, 1000):
            student = student_of(model)
            settings = SETTINGS.model_copy(update={"batch_size": size})
            student.train(lesson_of(model), settings, 5, torch.Generator().manual_seed(0))
            found.append(bits_of(student, student.finish()))
        assert found[0] == found[1]
