"""Sites: which weights of which modules are found, under which names, and their rows."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from compress.sites import Site, find_sites
from spaces.errors import WorkloadError
from tests.models import MODELS, random_tensor, subject


def found(model: nn.Module) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(site.name, site.parameter, site.shape, site.channel_axis) for site in find_sites(model)]


class TestKinds:
    @pytest.mark.parametrize(
        ("module", "shape", "axis"),
        [
            (nn.Conv1d(2, 3, 5), (3, 2, 5), 0),
            (nn.Conv2d(2, 4, (5, 6), groups=2), (4, 1, 5, 6), 0),
            (nn.Conv3d(2, 3, 2), (3, 2, 2, 2, 2), 0),
            (nn.ConvTranspose1d(2, 3, 5), (2, 3, 5), 1),
            (nn.ConvTranspose2d(4, 6, 5, groups=2), (4, 3, 5, 5), 1),
            (nn.ConvTranspose3d(2, 3, 2), (2, 3, 2, 2, 2), 1),
            (nn.Linear(2, 3), (3, 2), 0),
            (nn.Embedding(7, 3), (7, 3), 0),
            (nn.EmbeddingBag(7, 3), (7, 3), 0),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
    )
    def test_a_module_with_one_weight_has_its_name(self, module: nn.Module, shape: tuple[int, ...], axis: int) -> None:
        assert found(nn.Sequential(nn.ReLU(), module)) == [("1", "1.weight", shape, axis)]
        assert found(module) == [("weight", "weight", shape, axis)]

    @pytest.mark.parametrize(
        ("module", "weights"),
        [
            (nn.RNN(2, 3), {"weight_ih_l0": (3, 2), "weight_hh_l0": (3, 3)}),
            (
                nn.LSTM(2, 3, num_layers=2, proj_size=1),
                {
                    "weight_ih_l0": (12, 2),
                    "weight_hh_l0": (12, 1),
                    "weight_hr_l0": (1, 3),
                    "weight_ih_l1": (12, 1),
                    "weight_hh_l1": (12, 1),
                    "weight_hr_l1": (1, 3),
                },
            ),
            (
                nn.GRU(2, 3, bidirectional=True),
                {
                    "weight_ih_l0": (9, 2),
                    "weight_hh_l0": (9, 3),
                    "weight_ih_l0_reverse": (9, 2),
                    "weight_hh_l0_reverse": (9, 3),
                },
            ),
            (nn.GRUCell(2, 3), {"weight_ih": (9, 2), "weight_hh": (9, 3)}),
        ],
        ids=["RNN", "LSTM", "GRU", "GRUCell"],
    )
    def test_a_recurrent_module_has_a_site_for_each_weight(
        self, module: nn.Module, weights: dict[str, tuple[int, ...]]
    ) -> None:
        expected = [(f"0.{name}", f"0.{name}", shape, 0) for name, shape in weights.items()]
        assert found(nn.Sequential(module)) == expected

    def test_attention_has_its_projections(self) -> None:
        joint = found(nn.Sequential(nn.MultiheadAttention(4, 2)))
        assert joint == [
            ("0.in_proj_weight", "0.in_proj_weight", (12, 4), 0),
            ("0.out_proj", "0.out_proj.weight", (4, 4), 0),
        ]
        apart = found(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))
        assert apart == [
            ("q_proj_weight", "q_proj_weight", (4, 4), 0),
            ("k_proj_weight", "k_proj_weight", (4, 3), 0),
            ("v_proj_weight", "v_proj_weight", (4, 5), 0),
            ("out_proj", "out_proj.weight", (4, 4), 0),
        ]

    def test_norms_biases_and_other_parameters_are_none(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(3), nn.LayerNorm(3), nn.PReLU(), nn.Bilinear(2, 2, 3), nn.Linear(3, 1))
        assert [site.name for site in find_sites(model)] == ["4"]

    @pytest.mark.parametrize("name", MODELS)
    def test_sites_are_in_model_order_and_named_once(self, name: str) -> None:
        model = subject(name).model
        sites = find_sites(model)
        order = [key for key, _ in model.named_parameters(remove_duplicate=False)]
        places = [order.index(site.parameter) for site in sites]
        assert places == sorted(places)
        assert len({site.name for site in sites}) == len({site.parameter for site in sites}) == len(sites)

    def test_a_model_without_a_site_is_refused(self) -> None:
        empty = nn.Linear(2, 3)
        empty.weight = nn.Parameter(torch.zeros(0, 2))
        for model in (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), empty, nn.Linear(2, 2, dtype=torch.cfloat)):
            with pytest.raises(WorkloadError, match="nothing to compress"):
                find_sites(model)


class TestTied:
    def test_a_tied_weight_is_one_site_that_knows_its_other_names(self) -> None:
        sites = find_sites(subject("tied").model)
        assert sites == (
            Site("embedding", "embedding.weight", (12, 6), 0, ("head.weight",)),
            Site("first", "first.weight", (6, 6), 0, ("second.weight",)),
        )

    def test_three_names_are_one_site_too(self) -> None:
        layer = nn.Linear(3, 3)
        (site,) = find_sites(nn.Sequential(layer, layer, nn.Sequential(layer)))
        assert (site.name, site.tied) == ("0", ("1.weight", "2.0.weight"))

    def test_equal_weights_are_not_tied(self) -> None:
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.load_state_dict(first.state_dict())
        assert [site.tied for site in find_sites(nn.Sequential(first, second))] == [(), ()]


class TestParametrized:
    """A weight that is computed from others is kept nowhere, so it is no site."""

    def test_a_parametrized_weight_is_none(self) -> None:
        normed = parametrizations.weight_norm(nn.Linear(3, 3))
        spectral = parametrizations.spectral_norm(nn.Conv2d(2, 2, 3))
        assert [site.name for site in find_sites(nn.Sequential(normed, nn.Linear(3, 2), spectral))] == ["1"]
        with pytest.raises(WorkloadError):
            find_sites(normed)

    def test_of_a_recurrent_module_only_the_parametrized_weight_is_none(self) -> None:
        class Double(nn.Module):
            def forward(self, weight: torch.Tensor) -> torch.Tensor:
                return 2 * weight

        lstm = nn.LSTM(2, 3)
        parametrize.register_parametrization(lstm, "weight_hh_l0", Double())
        assert [site.name for site in find_sites(lstm)] == ["weight_ih_l0"]

    def test_neither_is_one_that_the_older_hooks_compute(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # weight_norm says that it is deprecated
            lstm = nn.utils.weight_norm(nn.LSTM(2, 3), "weight_hh_l0")
            normed = nn.utils.weight_norm(nn.Linear(3, 3))
        assert [site.name for site in find_sites(nn.Sequential(lstm, normed))] == ["0.weight_ih_l0"]


class TestRows:
    @pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 3, 4), (3, 1, 2, 5), (2, 3, 4, 5, 2)], ids=str)
    def test_a_row_is_a_channel_and_weight_is_the_inverse(self, shape: tuple[int, ...]) -> None:
        weight = random_tensor(*shape)
        for axis in range(len(shape)):
            site = Site("a", "a.weight", shape, axis)
            rows = site.rows(weight)
            assert rows.shape == (site.channels, site.size // site.channels)
            assert rows.is_contiguous()
            for channel in range(site.channels):
                assert torch.equal(rows[channel], weight.select(axis, channel).reshape(-1))
            again = site.weight(rows)
            assert torch.equal(again, weight)
            assert again.is_contiguous()

    def test_a_channel_of_each_kind_feeds_one_output(self) -> None:
        for module in (nn.Conv2d(2, 3, 3, bias=False), nn.ConvTranspose2d(2, 3, 3, bias=False)):
            (site,) = find_sites(module)
            rows = site.rows(module.weight.detach()).clone()
            rows[1] = 0
            with torch.no_grad():
                module.weight.copy_(site.weight(rows))
                output = module(random_tensor(1, 2, 5, 5))
            assert [bool(output[0, channel].any()) for channel in range(3)] == [True, False, True]
