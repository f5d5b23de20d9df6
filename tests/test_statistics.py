"""Statistics of sites: against explicit unfolding, the layers' own outputs, and autograd sample by sample."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from compress.columns import columns, given, user, why_none
from compress.inputs import Inputs, call, count, take
from compress.sites import Site, find_sites
from compress.statistics import MOST_INPUTS, collect
from spaces.errors import WorkloadError
from tests.models import MODELS, digest, random_loss, random_tensor, subject

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (6, 5)),
    "linear of sequences": (lambda: nn.Linear(5, 4), (6, 3, 2, 5)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (6, 3, 7, 8)),
    "oblong": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), (6, 3, 7, 8)),
    "same": (lambda: nn.Conv2d(3, 4, (3, 4), padding="same", dilation=(1, 2)), (6, 3, 7, 8)),
    "valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (6, 3, 7, 8)),
    "reflecting": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (6, 3, 7, 8)),
    "circular and same": (lambda: nn.Conv2d(3, 4, 2, padding="same", padding_mode="circular"), (6, 3, 7, 8)),
    "replicating": (lambda: nn.Conv1d(3, 4, 3, padding=(2,), padding_mode="replicate"), (6, 3, 7)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (6, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4, stride=2), (6, 4, 9)),
    "three axes": (lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=(0, 1, 1)), (6, 2, 4, 5, 3)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def layer_of(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval(), random_tensor(*shape) + 0.5


def only_site(model: nn.Module) -> Site:
    (site,) = find_sites(model)
    return site


def close(left: Tensor | None, right: Tensor, tolerance: float = 1e-5) -> bool:
    return left is not None and left.shape == right.shape and torch.allclose(left, right, rtol=1e-4, atol=tolerance)


@torch.no_grad()
def product(site: Site, weight: Tensor, laid_out: Tensor) -> Tensor:
    """Columns times rows, (samples, positions, channels)."""
    blocks = laid_out.shape[2]
    rows = site.rows(weight).reshape(blocks, -1, laid_out.shape[3])
    return torch.einsum("spbn,bcn->spbc", laid_out, rows).flatten(2)


class TestColumns:
    @every_layer
    def test_times_rows_they_are_the_output(self, name: str) -> None:
        layer, inputs = layer_of(name)
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        found = product(only_site(layer), weight, columns(layer, inputs)) + bias.detach()
        with torch.no_grad():
            out = layer(inputs)
        linear = isinstance(layer, nn.Linear)
        expected = out.reshape(len(out), -1, out.shape[-1]) if linear else out.flatten(2).transpose(1, 2)
        assert close(found, expected)

    @pytest.mark.parametrize("parameter", ["in_proj_weight", "out_proj.weight"])
    @pytest.mark.parametrize("kind", ["self", "cross"])
    def test_those_of_an_attention_are_what_its_projections_are_given(self, parameter: str, kind: str) -> None:
        attention = nn.MultiheadAttention(6, 2, batch_first=True).eval()
        query = random_tensor(3, 4, 6)
        key = query if kind == "self" else random_tensor(3, 4, 6, seed=1)
        with torch.no_grad():
            tensors = given(attention, parameter, ((query, key), {"value": key}))
            output = attention(query, key, key, need_weights=False)[0]
        if parameter == "out_proj.weight":
            assert close(attention.out_proj(tensors[0]).detach(), output.detach())
        else:
            assert [id(one) for one in tensors] == [id(query)] if kind == "self" else [id(query), id(key), id(key)]

    def test_projections_of_their_own_are_given_their_own_tensor(self) -> None:
        attention = nn.MultiheadAttention(6, 2, kdim=3, vdim=5, batch_first=True)
        three = random_tensor(2, 4, 6), random_tensor(2, 7, 3), random_tensor(2, 7, 5)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        assert [given(attention, name, (three, {}))[0] is one for name, one in zip(names, three, strict=True)]


class TestHessians:
    @every_layer
    @pytest.mark.parametrize("chunk", [2, 4, 100])
    def test_they_are_means_over_samples_and_positions(self, name: str, chunk: int) -> None:
        layer, inputs = layer_of(name)
        found = collect(layer, find_sites(layer), inputs, chunk)[only_site(layer).name]
        flat = columns(layer, inputs).flatten(0, 1).double()  # (samples * positions, blocks, n)
        assert close(found.hessian, (torch.einsum("pbm,pbn->bmn", flat, flat) / len(flat)).float())
        assert close(found.mean, flat.mean(dim=0).float())
        assert found.reason is None
        assert found.samples == len(inputs)

    def test_of_a_convolution_they_are_those_of_torchs_unfold(self) -> None:
        layer, inputs = layer_of("strided")
        patches = functional.unfold(inputs, 3, padding=1, stride=2)  # (samples, n, positions)
        flat = patches.transpose(1, 2).flatten(0, 1)
        assert close(
            collect(layer, find_sites(layer), inputs, 2)[only_site(layer).name].hessian,
            (flat.T @ flat / len(flat))[None],
        )

    def test_large_images_are_laid_out_a_few_at_a_time(self) -> None:
        layer, inputs = nn.Conv2d(1, 2, 5), random_tensor(3, 1, 500, 500)  # 6 million numbers an image
        found = collect(layer, find_sites(layer), inputs, 3, loss=random_loss)["weight"]
        patches = [functional.unfold(image[None], 5)[0] for image in inputs]
        assert close(
            found.hessian, torch.stack([one @ one.T / one.shape[1] for one in patches]).mean(dim=0)[None], 1e-4
        )
        fisher = one_by_one(layer, find_sites(layer), inputs)["weight"][1]
        assert close(found.fisher, fisher, tolerance=1e-3 * float(fisher.max()))

    def test_a_module_that_is_used_twice_adds_both_uses_up(self) -> None:
        given = subject("tied")
        sites = {site.name: site for site in find_sites(given.model)}
        found = collect(given.model, tuple(sites.values()), given.inputs, 100)["first"]
        model = given.model
        with torch.no_grad():
            first = model.get_submodule("embedding")(given.inputs).mean(dim=1)
            second = torch.relu(model.get_submodule("first")(first))
        both = torch.cat([first, second])
        assert close(found.hessian, (both.T @ both / len(both))[None])

    def test_an_attention_in_a_transformer_has_them_at_both_projections(self) -> None:
        given = subject("attention")
        found = collect(given.model, find_sites(given.model), given.inputs, 3)
        assert {name: one.hessian is None for name, one in found.items()} == {
            "embedding": True,
            "block.self_attn.in_proj_weight": False,
            "block.self_attn.out_proj": False,
            "block.linear1": False,
            "block.linear2": False,
            "head": False,
        }
        words = given.model.get_submodule("embedding")(given.inputs).detach().flatten(0, 1)
        assert close(found["block.self_attn.in_proj_weight"].hessian, (words.T @ words / len(words))[None])

    def test_padding_that_torch_would_cut_off_is_no_trouble(self) -> None:
        class Padded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(12, 8)
                self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

            def forward(self, words: Tensor) -> Tensor:
                encoded: Tensor = self.encoder(self.embedding(words), src_key_padding_mask=words == 0)
                return encoded

        model, words = Padded().eval(), torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]])
        found = collect(model, find_sites(model), words, 2, loss=random_loss)
        assert [name for name, one in found.items() if one.hessian is None] == ["embedding"]
        assert torch.backends.mha.get_fastpath_enabled()

    def test_where_there_is_none_the_reason_is_said(self) -> None:
        for name, words in (
            ("recurrent", {"lstm.weight_hh_l0": "stays inside LSTM", "embedding": "looked up"}),
            ("convolutions", {"5": "transposed"}),
            ("tied", {"embedding": "looked up"}),
        ):
            given = subject(name)
            found = collect(given.model, find_sites(given.model), given.inputs, 2)
            for site, word in words.items():
                assert found[site].hessian is None
                assert found[site].mean is None
                assert word in (found[site].reason or "")

    def test_a_recurrent_layer_has_one_where_its_input_comes_from_outside(self) -> None:
        given = subject("recurrent")
        found = collect(given.model, find_sites(given.model), given.inputs, 2)
        assert [name for name, one in found.items() if one.hessian is not None] == [
            "lstm.weight_ih_l0", "gru.weight_ih_l0", "gru.weight_ih_l0_reverse", "head",
        ]  # fmt: skip

    def test_a_layer_that_is_not_called_says_so(self) -> None:
        model = nn.ModuleDict({"used": nn.Linear(3, 3), "spare": nn.Linear(3, 3)})
        model.forward = model["used"].forward
        model["used"].register_forward_hook(lambda *_: None)
        found = collect(model, find_sites(model), random_tensor(4, 3), 2)["spare"]
        assert found.hessian is None
        assert "not called" in (found.reason or "")

    def test_one_of_too_many_columns_is_left_out_and_the_mean_stays(self) -> None:
        layer = nn.Linear(8193, 1)
        found = collect(layer, find_sites(layer), random_tensor(4, 8193), 2)["weight"]
        assert found.hessian is None
        assert "8193 weights a channel" in (found.reason or "")
        assert close(found.mean, random_tensor(4, 8193).mean(dim=0)[None])


class TestZeros:
    def test_behind_a_batchnorm_they_are_what_the_relu_makes_zero(self) -> None:
        model = subject("convolutions").model
        inputs = random_tensor(5, 2, 8, 8, seed=7)
        found = collect(model, find_sites(model), inputs, 2)
        with torch.no_grad():
            activated = torch.relu(model[1](model[0](inputs)))  # type: ignore[index]
        assert close(found["0"].zeros, (activated == 0).float().mean(dim=(0, 2, 3)))

    @pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True)])
    def test_without_a_norm_they_are_those_of_the_output(self, activation: nn.Module) -> None:
        first = nn.Linear(4, 6)
        model, inputs = nn.Sequential(first, activation, nn.Linear(6, 2)), random_tensor(7, 3, 4)
        expected = (first(inputs) <= 0).float().mean(dim=(0, 1))
        assert close(collect(model, find_sites(model), inputs, 4)["0"].zeros, expected)

    def test_layers_without_such_outputs_have_none(self) -> None:
        for name, site in (("recurrent", "lstm.weight_ih_l0"), ("attention", "embedding")):
            given = subject(name)
            assert collect(given.model, find_sites(given.model), given.inputs, 2)[site].zeros is None


class TestInputs:
    def test_few_values_are_all_there(self) -> None:
        layer, inputs = layer_of("strided")
        found = collect(layer, find_sites(layer), inputs, 2)[only_site(layer).name].inputs
        assert found is not None
        assert set(found.tolist()) == set(inputs.flatten().tolist())

    @pytest.mark.parametrize("chunk", [3, 10, 40])
    def test_of_many_there_are_some_with_the_extremes_the_same_every_time(self, chunk: int) -> None:
        layer, inputs = nn.Conv1d(1, 1, 1), random_tensor(40, 1, 5000)
        first, second = (collect(layer, find_sites(layer), inputs, chunk)["weight"].inputs for _ in range(2))
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)
        assert MOST_INPUTS * 0.9 < len(first) <= MOST_INPUTS
        assert (first.min(), first.max()) == (inputs.min(), inputs.max())
        assert float(first.mean()) == pytest.approx(float(inputs.mean()), abs=0.02)
        assert float(first.std()) == pytest.approx(float(inputs.std()), abs=0.02)

    def test_whole_numbers_have_none(self) -> None:
        given = subject("tied")
        assert collect(given.model, find_sites(given.model), given.inputs, 2)["embedding"].inputs is None


def one_by_one(model: nn.Module, sites: tuple[Site, ...], inputs: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
    """The definition: mean and mean square of the gradient of each sample's loss, (channels, n)."""
    parameters = {name: one.detach() for name, one in model.named_parameters(remove_duplicate=False)}
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    for i in range(count(inputs)):
        for site in sites:
            weight = parameters[site.parameter].clone().requires_grad_()
            swapped = {site.parameter: weight, **dict.fromkeys(site.tied, weight)}

            class Whole(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.model = model

                def forward(self) -> Tensor:
                    return call(self.model, take(inputs, slice(i, i + 1)))  # noqa: B023

            named = {f"model.{name}": one for name, one in swapped.items()}
            output = functional_call(Whole(), named, (), tie_weights=False)
            (gradient,) = torch.autograd.grad(random_loss(output, slice(i, i + 1)), weight)
            found[site.name].append(site.rows(gradient.float()))
    stacked = {name: torch.stack(one) for name, one in found.items()}
    return {name: (one.mean(dim=0), one.square().mean(dim=0)) for name, one in stacked.items()}


class TestGradients:
    @pytest.mark.parametrize("name", [name for name in MODELS if name != "bfloat16"])
    @pytest.mark.parametrize("chunk", [3, 100])
    def test_they_are_those_of_autograd_sample_by_sample(self, name: str, chunk: int) -> None:
        given = subject(name)
        sites = find_sites(given.model)
        found = collect(given.model, sites, given.inputs, chunk, loss=random_loss)
        for site, (mean, fisher) in one_by_one(given.model, sites, given.inputs).items():
            assert close(found[site].gradient, mean, tolerance=1e-4 * float(mean.abs().max()))
            assert close(found[site].fisher, fisher, tolerance=1e-4 * float(fisher.max()))

    @every_layer
    def test_those_of_every_kind_of_layer_are(self, name: str) -> None:
        layer, inputs = layer_of(name)
        sites = find_sites(layer)
        found = collect(layer, sites, inputs, 4, loss=random_loss)[sites[0].name]
        mean, fisher = one_by_one(layer, sites, inputs)[sites[0].name]
        assert close(found.gradient, mean, tolerance=1e-4 * float(mean.abs().max()))
        assert close(found.fisher, fisher, tolerance=1e-4 * float(fisher.max()))

    def test_an_axis_of_time_in_front_is_not_taken_for_that_of_samples(self) -> None:
        class Swapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 3)

            def forward(self, inputs: Tensor) -> Tensor:
                output: Tensor = self.linear(inputs.transpose(0, 1)).transpose(0, 1)
                return output

        model, inputs = Swapped(), random_tensor(5, 5, 4)
        sites = find_sites(model)
        found = collect(model, sites, inputs, 5, loss=random_loss)["linear"]
        assert close(found.fisher, one_by_one(model, sites, inputs)["linear"][1], tolerance=1e-3)

    def test_without_a_loss_there_are_none(self) -> None:
        layer, inputs = layer_of("linear")
        found = collect(layer, find_sites(layer), inputs, 3)["weight"]
        assert found.gradient is None
        assert found.fisher is None

    def test_a_loss_that_no_weight_reaches_is_refused(self) -> None:
        layer, inputs = layer_of("linear")
        with pytest.raises(WorkloadError, match="does not depend on the weights of any site"):
            collect(layer, find_sites(layer), inputs, 3, loss=lambda outputs, part: outputs.detach().sum())


class TestModel:
    @pytest.mark.parametrize("name", MODELS)
    def test_it_is_left_as_it_was(self, name: str) -> None:
        given = subject(name)
        first, *others = given.model.parameters()
        first.requires_grad_(False)
        first.grad = torch.ones_like(first)
        for i, module in enumerate(given.model.modules()):
            module.training = bool(i % 2)
        before = digest(given.model)
        collect(given.model, find_sites(given.model), given.inputs, 2, loss=random_loss)
        assert digest(given.model) == before
        assert torch.equal(first.grad, torch.ones_like(first))
        assert all(one.grad is None for one in others)
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in given.model.modules())

    def test_also_where_it_fails(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)).train()
        before = digest(model)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            collect(model, find_sites(model), random_tensor(4, 3), 2, loss=random_loss)
        assert digest(model) == before

    def test_the_model_is_run_in_evaluation_mode_with_the_same_draws(self) -> None:
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train()
        state = torch.get_rng_state()
        found = collect(model, find_sites(model), random_tensor(6, 4), 2)["1"]
        inputs = random_tensor(6, 4)
        assert close(found.hessian, (inputs.T @ inputs / 6)[None])
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("kind", [tuple, dict])
    def test_inputs_may_be_several(self, kind: type) -> None:
        class Sum(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 3)

            def forward(self, left: Tensor, right: Tensor) -> Tensor:
                output: Tensor = self.linear(input=left + right)
                return output

        left, right = random_tensor(6, 4), random_tensor(6, 4, seed=1)
        inputs: Inputs = (left, right) if kind is tuple else {"right": right, "left": left}
        both, model = left + right, Sum()
        found = collect(model, find_sites(model), inputs, 2, loss=random_loss)["linear"]
        assert close(found.hessian, (both.T @ both / 6)[None])
        assert found.fisher is not None


def test_a_parameters_user_is_the_module_that_is_called() -> None:
    model = subject("attention").model
    module, name = user(model, "block.self_attn.out_proj.weight")
    assert isinstance(module, nn.MultiheadAttention)
    assert name == "out_proj.weight"
    assert user(model, "head.weight") == (model.get_submodule("head"), "weight")
    assert why_none(*user(model, "head.weight")) is None
