"""What the teacher answers: whole outputs bit for bit, the largest logits within a bound, or asked anew."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.inputs import outputs
from compress.training.teacher import (
    FEWEST_LOGITS,
    AskedOutputs,
    LargestLogits,
    TeacherOutputs,
    WholeOutputs,
    largest,
    teach,
)
from tests.models import digest, random_tensor, subject, tokens

INPUTS = random_tensor(50, 6, seed=1)
INDEX = torch.tensor([3, 49, 0, 3])


def classifier(classes: int = 40) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, classes)).eval()


def bytes_of(found: TeacherOutputs) -> int:
    values = [getattr(found, field.name) for field in dataclasses.fields(found)]  # type: ignore[arg-type]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


class TestTeach:
    @pytest.mark.parametrize("bound", [None, 50 * 40 * 4])
    def test_whole_outputs_are_those_of_the_model_bit_for_bit(self, bound: int | None) -> None:
        model = classifier()
        found = teach(model, INPUTS, 16, cache_bytes=bound)
        assert isinstance(found, WholeOutputs)
        assert torch.equal(found.at(INDEX), outputs(model, INPUTS, 16)[INDEX])

    def test_a_model_that_draws_in_evaluation_draws_the_same(self) -> None:
        class Noisy(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + torch.rand_like(x)

        expected = outputs(Noisy(), INPUTS, 16)
        torch.rand(3)
        assert torch.equal(teach(Noisy(), INPUTS, 16).at(torch.arange(50)), expected)

    @pytest.mark.parametrize("bound", [50 * 40 * 4 - 1, 50 * (4 + 6 * FEWEST_LOGITS)])
    def test_below_that_the_largest_logits_take_no_more_bytes_than_allowed(self, bound: int) -> None:
        model = classifier()
        found = teach(model, INPUTS, 16, cache_bytes=bound)
        assert isinstance(found, LargestLogits)
        assert FEWEST_LOGITS <= found.values.shape[-1] < 40
        assert bound - 50 * 6 < bytes_of(found) <= bound
        assert torch.equal(found.at(INDEX).argmax(-1), outputs(model, INPUTS, 16)[INDEX].argmax(-1))

    @pytest.mark.parametrize("kind", ["logits", "values"])
    def test_what_has_no_room_or_is_no_logits_is_asked_anew(self, kind: str) -> None:
        model = classifier()
        bound = 50 * (4 + 6 * FEWEST_LOGITS) - (kind == "logits")
        found = teach(model, INPUTS, 16, kind="values" if kind == "values" else "logits", cache_bytes=bound)
        assert isinstance(found, AskedOutputs)
        assert torch.allclose(found.at(INDEX), outputs(model, INPUTS, 16)[INDEX], atol=1e-6)
        assert torch.equal(found.at(torch.arange(50)), outputs(model, INPUTS, 16))

    def test_outputs_without_classes_are_asked_anew(self) -> None:
        class Sum(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.sum(dim=1)

        found = teach(Sum(), INPUTS, 16, cache_bytes=10)
        assert isinstance(found, AskedOutputs)
        assert found.at(INDEX).shape == (4,)

    @pytest.mark.parametrize("name", ["attention", "tied"])
    def test_the_model_and_the_global_generator_are_left_alone(self, name: str) -> None:
        model, words = subject(name).model, tokens(9, 6)
        before, state = digest(model), torch.get_rng_state()
        found = teach(model, words, 4, cache_bytes=0)
        found.at(torch.tensor([1]))
        assert digest(model) == before
        assert torch.equal(torch.get_rng_state(), state)


class TestLargestLogits:
    def test_positions_are_kept_apart(self) -> None:
        logits = random_tensor(5, 3, 40) * 3
        found = largest(logits, 10).at(torch.tensor([4, 1]))
        assert found.shape == (2, 3, 40)
        assert torch.equal(found[0, 2], largest(logits[4:5, 2], 10).at(torch.tensor([0]))[0])

    def test_the_kept_classes_have_their_probabilities_and_the_others_share_what_is_left(self) -> None:
        logits = random_tensor(20, 60) * 3
        exact, found = logits.double().softmax(-1), largest(logits, 12).at(torch.arange(20)).double().softmax(-1)
        top = exact.topk(12, dim=-1)
        assert torch.allclose(found.gather(-1, top.indices), top.values, atol=1e-6)
        rest = found.scatter(-1, top.indices, -1.0)
        expected = (1 - top.values.sum(-1)) / 48
        assert torch.allclose(rest[rest >= 0].reshape(20, 48), expected[:, None].expand(20, 48), atol=1e-6)

    def test_its_divergence_is_that_of_the_rest_alone_and_falls_with_k(self) -> None:
        logits = random_tensor(200, 60, seed=4) * 3
        exact = logits.double().log_softmax(-1)
        found = []
        for k in (8, 16, 32, 59):
            kept = largest(logits, k).at(torch.arange(200)).double().log_softmax(-1)
            divergence = functional.kl_div(kept, exact, reduction="none", log_target=True).sum(-1)
            rest = exact.exp().sort(dim=-1).values[:, : 60 - k]
            mass = rest.sum(-1, keepdim=True)  # KL = mass x KL(rest || evenly spread)
            by_hand = (rest * (rest / mass * (60 - k)).log()).sum(-1)
            assert torch.allclose(divergence, by_hand, atol=1e-6)
            found.append(float(divergence.mean()))
        assert found == sorted(found, reverse=True)
        assert found[0] < 0.12
        assert found[1] < found[0] / 3
        assert found[-1] == pytest.approx(0, abs=1e-6)

    def test_small_probabilities_do_not_drown(self) -> None:
        logits = torch.cat([torch.tensor([[30.0, 29.0]]), torch.linspace(-20, -10, 8)[None]], dim=1)
        found = largest(logits, 2).at(torch.tensor([0]))
        assert float(found[0, 2:].double().logsumexp(0)) == pytest.approx(float(logits[0, 2:].double().logsumexp(0)))

    def test_more_classes_than_int16_holds(self) -> None:
        logits = random_tensor(2, 40_000)
        assert torch.equal(largest(logits, 8).at(torch.arange(2)).argmax(-1), logits.argmax(-1))
