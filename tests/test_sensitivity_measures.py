"""What a change of weights is predicted to cost: against the definitions, and against what it really costs."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.distillation import OutputKind, soft_loss
from compress.gradients import Gradient
from compress.inputs import call, count
from compress.sensitivity import direction, fisher_loss, gradient_loss, slopes
from compress.sites import Site, find_sites
from compress.statistics import collect
from tests.models import MODELS, digest, output, random_tensor, subject

CHUNK = 3


def signs(classes: int) -> list[Tensor]:
    return [torch.tensor(one) for one in itertools.product([-1.0, 1.0], repeat=classes)]


class TestDirection:
    def test_of_logits_its_mean_product_is_the_fisher_matrix(self) -> None:
        out = torch.tensor([0.3, -1.0, 2.0, 0.0])
        p = out.softmax(dim=0)
        drawn = [direction(out, "logits", one) for one in signs(4)]
        mean = torch.stack([v[:, None] * v for v in drawn]).mean(dim=0)
        assert torch.allclose(mean, p.diag() - p[:, None] * p, atol=1e-6)

    def test_that_is_the_second_derivative_of_the_loss(self) -> None:
        out = random_tensor(1, 3, 4)
        hessian: Tensor = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            lambda student: soft_loss(student, out, 1.0, "logits"), out.clone()
        ).reshape(12, 12)
        drawn = [direction(out[0], "logits", one.reshape(3, 4)).flatten() for one in signs(12)]
        assert torch.allclose(torch.stack([v[:, None] * v for v in drawn]).mean(dim=0), hessian, atol=1e-5)

    def test_so_it_is_for_values(self) -> None:
        out = random_tensor(1, 2, 3)
        hessian: Tensor = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            lambda student: soft_loss(student, out, 1.0, "values"), out.clone()
        ).reshape(6, 6)
        drawn = [direction(out[0], "values", one.reshape(2, 3)).flatten() for one in signs(6)]
        assert torch.allclose(torch.stack([v[:, None] * v for v in drawn]).mean(dim=0), hessian, atol=1e-6)


def of_site(model: nn.Module, inputs: Tensor, kind: OutputKind, name: str, seed: int = 0) -> tuple[Gradient, Tensor]:
    """The slopes of a site and the Hessian of its inputs."""
    sites = find_sites(model)
    hessian = collect(model, sites, inputs, CHUNK)[name].hessian
    assert hessian is not None
    return slopes(model, sites, inputs, kind, CHUNK, seed=seed)[name], hessian


def change_of(site: Site, size: float, seed: int = 1) -> Tensor:
    return size * random_tensor(site.channels, site.size // site.channels, seed=seed)


def really(model: nn.Module, site: Site, change: Tensor, inputs: Tensor, kind: OutputKind) -> float:
    """What the loss is with a changed weight."""
    before = output(model, inputs)
    weight = dict(model.named_parameters())[site.parameter]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(site.weight(change))
        after = output(model, inputs)
        weight.copy_(kept)
    return float(soft_loss(after.double(), before.double(), 1.0, kind))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (7, 5)),
    "linear with positions": (lambda: nn.Linear(5, 4), (7, 6, 5)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (7, 3, 8, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (7, 4, 6, 6)),
    "sequence": (lambda: nn.Conv1d(3, 4, 2, dilation=2), (7, 3, 9)),
}


class TestConstantGradients:
    """Values that are a layer's own output: each has the same squared gradient, so the factors are independent."""

    @pytest.mark.parametrize("name", LAYERS)
    def test_gradient_times_difference_is_the_error(self, name: str) -> None:
        model, inputs = nn.Sequential(LAYERS[name][0]()), random_tensor(*LAYERS[name][1])
        site = find_sites(model)[0]
        slope, hessian = of_site(model, inputs, "values", "0")
        change = change_of(site, 0.3)
        found = gradient_loss(change, slope, hessian)
        assert found == pytest.approx(really(model, site, change, inputs, "values"), rel=1e-4)

    def test_a_layer_used_twice_counts_both_uses(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one = nn.Linear(5, 4)

            def forward(self, inputs: Tensor) -> Tensor:
                return torch.cat([self.one(inputs), self.one(inputs.flip(1))], dim=1)

        model, inputs = Twice(), random_tensor(7, 5)
        site = find_sites(model)[0]
        slope, hessian = of_site(model, inputs, "values", "one")
        change = change_of(site, 0.3)
        found = gradient_loss(change, slope, hessian)
        assert found == pytest.approx(really(model, site, change, inputs, "values"), rel=1e-4)

    def test_fisher_is_the_error_of_one_weight(self) -> None:
        model, inputs = nn.Sequential(nn.Linear(5, 4)), random_tensor(7, 5)
        site = find_sites(model)[0]
        slope, _ = of_site(model, inputs, "values", "0")
        change = torch.zeros(4, 5)
        change[2, 3] = 0.7
        found = fisher_loss(change, slope)
        assert found == pytest.approx(really(model, site, change, inputs, "values"), rel=1e-5)


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A classifier with the layer to look at in front."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        if name == "linear":
            model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
            return model.eval(), random_tensor(60, 6)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 5))
        return model.eval(), random_tensor(60, 2, 5, 5)


@pytest.mark.parametrize("name", ["linear", "convolution"])
class TestClassifier:
    def test_fisher_is_the_diagonal_of_the_gauss_newton_matrix(self, name: str) -> None:
        model, inputs = small(name)
        sites = find_sites(model)[:1]
        site = sites[0]
        drawn = [slopes(model, sites, inputs, "logits", 60, seed=seed)["0"].fisher for seed in range(60)]
        found = torch.stack(drawn).mean(dim=0)
        weight = dict(model.named_parameters())[site.parameter]
        exact = torch.zeros(site.channels, site.size // site.channels)
        for i in range(count(inputs)):
            out = call(model, inputs[i : i + 1])[0]
            p = out.detach().softmax(dim=0)
            rows = [site.rows(torch.autograd.grad(one, weight, retain_graph=True)[0]).flatten() for one in out]
            jacobian = torch.stack(rows)
            curved = (p.diag() - p[:, None] * p) @ jacobian
            exact += (jacobian * curved).sum(dim=0).reshape_as(exact) / count(inputs)
        assert float((found - exact).norm() / exact.norm()) < 0.1

    def test_gradient_times_difference_is_near_the_score_that_is_not_factorised(self, name: str) -> None:
        model, inputs = small(name)
        site, seed = find_sites(model)[0], 0
        slope, hessian = of_site(model, inputs, "logits", "0", seed)
        change = change_of(site, 0.1)
        seen: list[Tensor] = []
        before = call(model[0], inputs)  # type: ignore[index]
        hidden = before.detach().requires_grad_()
        out = call(model[1:], hidden)  # type: ignore[index]
        for draw in range(20):
            generator = torch.Generator().manual_seed(draw)
            drawn = torch.randint(2, out.shape, generator=generator).float() * 2 - 1
            v = torch.stack([direction(row, "logits", one) for row, one in zip(out.detach(), drawn, strict=True)])
            seen.append(torch.autograd.grad((out * v).sum(), hidden, retain_graph=True)[0].square())
        layer = model[0]  # type: ignore[index]
        kept = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight += site.weight(change)
            difference = layer(inputs) - before
            layer.weight.copy_(kept)
        direct = float((torch.stack(seen).mean(0) * difference.square()).sum()) / count(inputs) / 2
        assert gradient_loss(change, slope, hessian) == pytest.approx(direct, rel=0.35)

    def test_both_say_roughly_what_a_small_change_costs(self, name: str) -> None:
        model, inputs = small(name)
        site = find_sites(model)[0]
        slope, hessian = of_site(model, inputs, "logits", "0")
        costs, fishers, gradients = [], [], []
        for seed in range(30):
            change = change_of(site, 0.02, seed)
            costs.append(really(model, site, change, inputs, "logits"))
            fishers.append(fisher_loss(change, slope))
            gradients.append(gradient_loss(change, slope, hessian))
        mean = sum(costs) / len(costs)
        assert sum(fishers) / len(costs) == pytest.approx(mean, rel=0.35)
        assert sum(gradients) / len(costs) == pytest.approx(mean, rel=0.5)


class TestSlopes:
    @pytest.mark.parametrize("name", ["convolutions", "attention", "tied"])
    def test_they_do_not_depend_on_the_chunk(self, name: str) -> None:
        given = subject(name)
        sites = find_sites(given.model)
        few, all_ = (slopes(given.model, sites, given.inputs, "logits", chunk) for chunk in (1, 100))
        for site in sites:
            one, other = few[site.name], all_[site.name]
            assert torch.allclose(one.fisher, other.fisher, rtol=1e-3, atol=1e-7)
            assert (one.outputs is None) == (other.outputs is None)
            if one.outputs is not None and other.outputs is not None:
                assert torch.allclose(one.outputs, other.outputs, rtol=1e-3, atol=1e-7)

    @pytest.mark.parametrize("name", MODELS)
    def test_the_model_is_left_as_it_was(self, name: str) -> None:
        given = subject(name)
        for i, module in enumerate(given.model.modules()):
            module.training = bool(i % 2)
        before = digest(given.model)
        slopes(given.model, find_sites(given.model), given.inputs, "values", 2)
        assert digest(given.model) == before
        assert all(one.grad is None for one in given.model.parameters())
        assert not any(m._forward_hooks or m._backward_hooks for m in given.model.modules())

    def test_where_it_fails_no_hook_is_left(self) -> None:
        class Failing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.calls = nn.Linear(3, 3), 0

            def forward(self, inputs: Tensor) -> Tensor:
                self.calls += 1
                if self.calls > 2:
                    raise ArithmeticError("enough")
                out: Tensor = self.one(inputs)
                return out

        model = Failing()
        with pytest.raises(ArithmeticError, match="enough"):
            slopes(model, find_sites(model), random_tensor(6, 3), "values", 2)
        assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())

    def test_they_depend_on_the_seed(self) -> None:
        model, inputs = small("linear")
        sites = find_sites(model)
        first, again, other = (slopes(model, sites, inputs, "logits", 20, seed=seed)["0"] for seed in (0, 0, 1))
        assert torch.equal(first.fisher, again.fisher)
        assert not torch.equal(first.fisher, other.fisher)


class TestWhatIsNotSeen:
    def test_gradients_inside_of_recurrent_layers_and_embeddings_are_not(self) -> None:
        given = subject("recurrent")
        found = slopes(given.model, find_sites(given.model), given.inputs, "logits", 2)
        assert {name for name, one in found.items() if one.outputs is not None} == {"head"}
        assert all(float(one.fisher.sum()) > 0 for one in found.values())

    def test_an_attentions_output_projection_is_seen_and_its_input_projection_is_not(self) -> None:
        given = subject("attention")
        found = slopes(given.model, find_sites(given.model), given.inputs, "logits", 2)
        assert found["block.self_attn.in_proj_weight"].outputs is None
        own = found["block.self_attn.out_proj"].outputs
        assert own is not None
        assert float(own.sum()) > 0

    def test_then_the_loss_is_not_a_number(self) -> None:
        seen = Gradient(torch.zeros(2, 3), torch.ones(2, 3), 4, torch.ones(2))
        unseen = Gradient(torch.zeros(2, 3), torch.ones(2, 3), 4)
        change, hessian = torch.ones(2, 3), torch.eye(3)[None]
        assert gradient_loss(change, seen, hessian) == 3.0
        assert math.isnan(gradient_loss(change, seen, None))
        assert math.isnan(gradient_loss(change, unseen, hessian))
        assert fisher_loss(change, unseen) == 3.0


def test_no_change_costs_nothing() -> None:
    model, inputs = small("linear")
    slope, hessian = of_site(model, inputs, "logits", "0")
    assert fisher_loss(torch.zeros(8, 6), slope) == 0.0
    assert gradient_loss(torch.zeros(8, 6), slope, hessian) == 0.0


def test_the_projection_of_an_attention_has_the_gradient_of_its_output() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.attention(inputs, inputs, inputs)[0]
            return out

    model, inputs = Alone().eval(), random_tensor(6, 3, 4)
    site = next(one for one in find_sites(model) if one.name == "attention.out_proj")
    slope, hessian = of_site(model, inputs, "values", site.name)
    change = change_of(site, 0.2)
    weight = attention.out_proj.weight
    before = output(model, inputs)
    with torch.no_grad():
        weight += change
    error = float(functional.mse_loss(output(model, inputs), before))
    assert gradient_loss(change, slope, hessian) == pytest.approx(error, rel=1e-4)
