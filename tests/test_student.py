"""Students that are trained as they will be stored: what stays, what moves, and the same bits from the same seed."""

import copy
import random
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.coding import CodedWeight, Kind
from compress.distillation import OutputKind, soft_loss
from compress.inputs import Inputs, outputs
from compress.quantization.activations import InputGrid, quantize_inputs
from compress.quantization.uniform import spread, top
from compress.training.teacher import AskedOutputs, WholeOutputs
from spaces.errors import CandidateError
from spaces.policy import Choice, Distillation, Uniform
from tests.models import MODELS, digest, output, random_tensor, subject, tokens
from tests.students import CHOICES, INPUTS, PRUNED, SETTINGS, bits_of, compressed, lesson_of, network, settings, trained

WAYS = {
    "as it was": SETTINGS,
    "learned grids": SETTINGS.model_copy(update={"grids": "learned"}),
    "dynamic masks": SETTINGS.model_copy(update={"masks": "dynamic"}),
    "gradual masks, learned grids": SETTINGS.model_copy(update={"masks": "gradual", "grids": "learned"}),
}


PAIRS = {f"{choice}, {way}": (CHOICES[choice], WAYS[way]) for choice in CHOICES for way in WAYS}
FEW = ("as it was", "gradual masks, learned grids")


def nudged(coded: CodedWeight) -> CodedWeight:
    """Every second weight has the next code or number towards zero."""
    values = coded.values.clone()
    some = values.reshape(-1)[::2]
    if coded.kind is Kind.CODEBOOK:
        some -= (some > 1).to(torch.uint8)
    elif coded.kind is Kind.UNIFORM:
        some -= some.sign()
    else:
        some /= 2
    return replace(coded, values=values)


class TestLearning:
    @pytest.mark.parametrize(("choice", "way"), PAIRS.values(), ids=PAIRS)
    def test_the_student_comes_nearer_to_the_teacher(self, choice: Choice, way: Distillation) -> None:
        model = network()
        lesson, student = lesson_of(model), compressed(model, choice).student(way)
        assert isinstance(lesson.teacher, WholeOutputs)
        teacher = lesson.teacher.outputs

        def distance() -> float:
            return float(soft_loss(outputs(student.model, lesson.inputs, 64), teacher, 1.0, "logits"))

        before = distance()
        mean = student.train(lesson, 40, torch.Generator().manual_seed(0))
        student.finish()
        assert distance() < 0.8 * before
        assert 0 < mean < 60

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    @pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
    def test_every_optimizer_and_schedule_learns(self, optimizer: str, schedule: str) -> None:
        model, rate = network(), 1e-2 if optimizer == "adam" else 3e-3
        student = compressed(model, PRUNED).student(
            settings(optimizer=optimizer, schedule=schedule, learning_rate=rate)
        )
        lesson = lesson_of(model)
        before = outputs(student.model, INPUTS, 64)
        student.train(lesson, 60, torch.Generator().manual_seed(0))
        student.finish()
        teacher, after = lesson.teacher.at(torch.arange(160)), outputs(student.model, INPUTS, 64)
        assert soft_loss(after, teacher, 1.0, "logits") < 0.7 * soft_loss(before, teacher, 1.0, "logits")

    def test_targets_alone_teach_where_alpha_is_zero_and_not_at_all_where_it_is_one(self) -> None:
        model = network()
        lesson, generator = lesson_of(model), torch.Generator().manual_seed(0)
        assert isinstance(lesson.teacher, WholeOutputs)
        assert lesson.targets is not None
        shuffled = replace(lesson, teacher=WholeOutputs(torch.flip(lesson.teacher.outputs, [0])))
        student = compressed(model, PRUNED).student(settings(alpha=0.0))
        student.train(shuffled, 60, generator)
        student.finish()
        right = outputs(student.model, lesson.inputs, 64).argmax(-1).eq(lesson.targets)
        assert float(right.double().mean()) > 0.85
        found = []
        for targets in (lesson.targets, None):
            student = compressed(model, PRUNED).student(settings(alpha=1.0))
            student.train(replace(lesson, targets=targets), 10, torch.Generator().manual_seed(0))
            found.append(bits_of(student, student.finish()))
        assert found[0] == found[1]

    def test_without_labels_the_teacher_s_answers_teach(self) -> None:
        model = network()
        lesson = replace(lesson_of(model), targets=None, hard=None)
        student = compressed(model, PRUNED).student(settings(alpha=0.0))
        student.train(lesson, 60, torch.Generator().manual_seed(0))
        student.finish()
        right = outputs(student.model, INPUTS, 64).argmax(-1) == lesson.teacher.at(torch.arange(160)).argmax(-1)
        assert float(right.double().mean()) > 0.85

    def test_a_teacher_that_is_asked_anew_teaches_the_same(self) -> None:
        model = network(dropout=0.5)
        found: list[Tensor] = []
        for asked in (False, True):
            lesson = lesson_of(model)
            lesson = replace(lesson, teacher=AskedOutputs(model, INPUTS, 64)) if asked else lesson
            student = compressed(model, PRUNED).student()
            student.train(lesson, 12, torch.Generator().manual_seed(0))
            student.finish()
            found.append(output(student.model, INPUTS))
        assert torch.allclose(found[0], found[1], atol=0.05)

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("way", ["as it was", "gradual masks, learned grids"])
    def test_every_kind_of_model_learns_and_is_stored_as_it_is(self, name: str, way: str) -> None:
        one = subject(name)
        inputs = {
            "convolutions": random_tensor(32, 2, 8, 8) + 1,
            "buffers": random_tensor(32, 5),
            "bfloat16": random_tensor(32, 5).bfloat16(),
        }.get(name, tokens(32, 6))
        start = compressed(one.model, Choice(weights=Uniform(bits=4)))
        before = digest(one.model)
        student = start.student(WAYS[way].model_copy(update={"batch_size": 16}))
        student.train(lesson_of(one.model, inputs), 20, torch.Generator().manual_seed(0))
        coded = student.finish()
        for site in start.sites:
            assert not torch.equal(coded[site.name].values, start.coded[site.name].values), f"{site.name} learned none"
            weight = student.model.get_parameter(site.parameter)
            assert torch.equal(weight, site.weight(coded[site.name].decode()).to(weight.dtype))
        assert digest(one.model) == before

    @pytest.mark.parametrize("form", ["tuple", "dict"])
    def test_inputs_come_in_every_form(self, form: str) -> None:
        model = network()
        inputs: Inputs = (INPUTS,) if form == "tuple" else {"input": INPUTS}
        student = compressed(model, PRUNED).student()
        student.train(lesson_of(model, inputs), 12, torch.Generator().manual_seed(0))
        assert bits_of(student, student.finish()) == bits_of(*trained(model))


class TestStored:
    @pytest.mark.parametrize(("choice", "way"), PAIRS.values(), ids=PAIRS)
    def test_what_is_trained_is_what_is_stored(self, choice: Choice, way: Distillation) -> None:
        """Pruned weights are zero, as many as the policy says; codes are within their bits; files hold every number."""
        model = network()
        start = compressed(model, choice)
        student, coded = trained(model, choice, (18,), settings=way)
        for site in start.sites:
            new, old, kept = coded[site.name], start.coded[site.name], site.rows(start.kept[site.name])
            assert (new.kind, new.bits, new.inputs) == (old.kind, old.bits, old.inputs)
            assert new.values.dtype == old.values.dtype
            assert new.nonzero <= int(kept.sum()), "-0.0 takes as many bytes as any other value"
            assert not torch.equal(new.values, old.values)
            if way.masks == "static":
                assert not new.values[~kept].any()
            if new.grid is not None and old.grid is not None:
                exact = (new.grid.step * 2.0**-new.grid.exponent).half().float() * 2.0**new.grid.exponent
                assert torch.equal(exact, new.grid.step)
                if way.masks == "static":
                    assert torch.equal(new.grid.step, old.grid.step) == (way.grids == "fixed")
                lowest = new.grid.step.new_tensor(-top(new.bits)) if new.grid.low is None else new.grid.low
                low, highest = spread(lowest.expand_as(new.grid.step), new.values.shape[1]), 2**new.bits - 1
                assert bool(((low <= new.values) & (new.values <= low + highest)).all())
            if new.entries is not None and old.entries is not None:
                exact = (new.entries * 2.0**-new.exponent).half().float() * 2.0**new.exponent
                assert torch.equal(exact, new.entries)
                assert bool((new.entries.diff() >= 0).all())
                if way.masks == "static":
                    assert torch.equal(new.entries, old.entries) == (way.grids == "fixed")
            assert len(new.write()[1]) == new.payload_bytes()
            assert torch.equal(student.model.get_parameter(site.parameter), site.weight(new.decode()))

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    @pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
    def test_before_the_first_step_it_is_the_one_shot_model(self, choice: Choice, way: Distillation) -> None:
        start = compressed(network(), choice)
        student = start.student(way)
        before = digest(student.model)
        again = student.finish()
        assert digest(student.model) == before
        assert all(torch.equal(again[name].values, one.values) for name, one in start.coded.items())

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    @pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
    def test_codes_that_are_not_the_nearest_are_where_it_starts(self, choice: Choice, way: Distillation) -> None:
        """Error-compensated weights are not the float ones rounded: training starts from what is stored."""
        start = compressed(network(), choice)
        start = replace(start, coded={name: nudged(one) for name, one in start.coded.items()})
        again = start.student(way).finish()
        for name, one in start.coded.items():
            assert torch.equal(again[name].decode(), one.decode())

    def test_a_weight_that_was_clipped_stays_where_it_is_and_others_move(self) -> None:
        model, choice = network(), Choice(weights=Uniform(bits=2))
        start = compressed(model, choice)
        old = start.coded["0"]
        assert old.grid is not None
        clipped = start.sites[0].rows(start.originals["0"]).abs() > top(2) * old.grid.step
        _, coded = trained(model, choice, (200,))
        moved = coded["0"].values != old.values
        assert clipped.sum() > 40
        assert not moved[clipped].any()
        assert moved[~clipped].sum() > 40

    @pytest.mark.parametrize("grids", ["fixed", "learned"])
    def test_a_channel_without_a_step_stays_zero(self, grids: str) -> None:
        model = network()
        with torch.no_grad():
            model.get_parameter("0.weight")[4] = 0
        _, coded = trained(model, Choice(weights=Uniform(bits=4)), (30,), settings=settings(grids=grids))
        assert not coded["0"].values[4].any()
        assert coded["0"].values.any(dim=1).sum() > 25

    def test_rounded_activations_are_trained_with_and_stay(self) -> None:
        model, grid = network(), InputGrid(bits=4, low=-3.0, high=3.0)
        start = compressed(model, PRUNED)
        start = replace(start, coded={name: replace(one, inputs=grid) for name, one in start.coded.items()})
        student = start.student()
        student.train(lesson_of(model), 12, torch.Generator().manual_seed(0))
        coded = student.finish()
        assert all(one.inputs == grid for one in coded.values())
        plain = compressed(model, PRUNED).student()
        plain.model.load_state_dict(student.model.state_dict())
        quantize_inputs(plain.model, dict.fromkeys(coded, grid))
        assert torch.equal(output(plain.model, INPUTS), output(student.model, INPUTS))

    def test_the_model_ends_in_evaluation_mode_without_hooks_and_with_the_same_parameters(self) -> None:
        student = compressed(network(), PRUNED).student(settings(features=1.0))
        names = {name: id(parameter) for name, parameter in student.model.named_parameters()}
        student.train(lesson_of(network()), 3, torch.Generator())
        student.finish()
        assert {name: id(parameter) for name, parameter in student.model.named_parameters()} == names
        assert not any(module.training or module._forward_hooks for module in student.model.modules())


class TestSameBits:
    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    def test_the_same_seed_gives_the_same_student_and_another_seed_another(self, way: Distillation) -> None:
        model = network(dropout=0.5)
        first = bits_of(*trained(model, seed=1, settings=way))
        torch.rand(7)  # the global generator plays no part
        assert bits_of(*trained(model, seed=1, settings=way)) == first
        assert bits_of(*trained(model, seed=2, settings=way)) != first

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    def test_a_rung_goes_on_where_the_last_one_ended(self, way: Distillation) -> None:
        model = network(dropout=0.5)
        together = bits_of(*trained(model, steps=(9, 9), settings=way))
        student, generator = compressed(model, PRUNED).student(way), torch.Generator().manual_seed(0)
        for _ in range(2):
            student.train(lesson_of(model), 9, generator)
            coded = student.finish()  # looking at a student does not change how it goes on
            copy.deepcopy(student.model)
            output(student.model, random_tensor(5, 8))
        assert bits_of(student, coded) == together
        assert together != bits_of(*trained(model, steps=(9,), settings=way))
        assert together != bits_of(*trained(model, steps=(18,), settings=way))  # the rate falls to zero in each rung

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    @pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
    def test_another_one_goes_on_from_its_state(self, choice: Choice, way: Distillation) -> None:
        model, lesson = network(dropout=0.5), lesson_of(network())
        one, other = compressed(model, choice).student(way), compressed(model, choice).student(way)
        generator, later = torch.Generator().manual_seed(0), torch.Generator()
        one.train(lesson, 9, generator)
        one.finish()
        state = one.state()
        later.set_state(generator.get_state())
        one.train(lesson, 18, generator)  # the state stays what it was
        other.restore(state)
        other.train(lesson, 18, later)
        assert bits_of(other, other.finish()) == bits_of(one, one.finish())
        assert torch.equal(later.get_state(), generator.get_state())

    def test_a_state_of_another_student_is_refused(self) -> None:
        student = compressed(network(), PRUNED).student()
        with pytest.raises(ValueError, match="state is that of another student"):
            student.restore(compressed(network(), CHOICES["codebook"]).student().state())

    @pytest.mark.parametrize("learning_rate", [1e-2, 1e30])
    def test_no_global_generator_moves(self, learning_rate: float) -> None:
        model = network(dropout=0.5)
        student, lesson = compressed(model, PRUNED).student(settings(learning_rate=learning_rate)), lesson_of(model)
        before = (torch.get_rng_state(), str(np.random.get_state()), random.getstate())
        with pytest.raises(CandidateError) if learning_rate > 1 else nullcontext():
            student.train(lesson, 10, torch.Generator().manual_seed(0))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (str(np.random.get_state()), random.getstate()) == before[1:]

    @pytest.mark.parametrize("kind", ["logits", "values"])
    def test_a_rate_that_is_too_high_is_an_error_that_says_where(self, kind: OutputKind) -> None:
        model = network()
        student = compressed(model, PRUNED).student(settings(learning_rate=1e30))
        with pytest.raises(CandidateError, match=r"diverged at step \d+ of 50: the loss is (nan|inf)"):
            student.train(replace(lesson_of(model), kind=kind), 50, torch.Generator().manual_seed(0))

    def test_a_batch_larger_than_the_data_is_all_of_it(self) -> None:
        model, found = network(), []
        for size in (160, 1000):
            student = compressed(model, PRUNED).student(settings(batch_size=size))
            student.train(lesson_of(model), 5, torch.Generator().manual_seed(0))
            found.append(bits_of(student, student.finish()))
        assert found[0] == found[1]
