"""Multiply-accumulates against numbers counted by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.inputs import Inputs
from compress.sites import find_sites
from objectives.compute import dense_macs, policy_macs


def macs(model: nn.Module, example: Inputs) -> dict[str, float]:
    return dense_macs(model, find_sites(model), example)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(8, 4), (8,), 32),
        (nn.Linear(8, 4), (5, 8), 5 * 32),  # at every position of a sequence
        (nn.Conv1d(3, 5, 4), (3, 10), 5 * 3 * 4 * 7),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 6), 8 * 3 * 9 * 36),
        (nn.Conv2d(3, 8, 3, padding=1, stride=2), (3, 6, 6), 8 * 3 * 9 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 6, 6), 8 * 9 * 36),  # depthwise: one channel each
        (nn.Conv2d(8, 4, 1, groups=2), (8, 6, 6), 4 * 4 * 36),
        (nn.Conv2d(2, 2, 3, dilation=2), (2, 7, 7), 2 * 2 * 9 * 9),
        (nn.Conv3d(2, 3, 2), (2, 3, 3, 3), 3 * 2 * 8 * 8),
        (nn.ConvTranspose1d(4, 2, 3), (4, 5), 4 * 2 * 3 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 6 * 4 * 25),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 5), 4 * 3 * 4 * 25),
    ],
    ids=str,
)
def test_a_layer(layer: nn.Module, shape: tuple[int, ...], expected: int, batch: int) -> None:
    assert list(macs(layer, torch.zeros(batch, *shape)).values()) == [expected]


class Recurrent(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out


@pytest.mark.parametrize("batch", [1, 3])
def test_an_lstm_uses_each_weight_once_a_step(batch: int) -> None:
    found = macs(Recurrent(num_layers=2, bidirectional=True), torch.zeros(batch, 7, 4))
    steps, gates = 7, 4 * 6
    inputs = {"l0": 4, "l1": 12}  # the second layer sees both directions
    expected = {
        f"rnn.weight_{kind}_{layer}{way}": steps * gates * (width if kind == "ih" else 6)
        for layer, width in inputs.items()
        for way in ("", "_reverse")
        for kind in ("ih", "hh")
    }
    assert found == expected


def test_cells_count_once_a_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.cell(x, self.cell(x))
            return out

    assert macs(Twice(), torch.zeros(2, 4)) == {"cell.weight_ih": 2 * 18 * 4, "cell.weight_hh": 2 * 18 * 6}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(tokens))
        return out


def test_an_embedding_costs_none_but_its_tied_head_does() -> None:
    assert macs(Tied(), torch.zeros(2, 5, dtype=torch.long)) == {"table": 5 * 44}
    alone = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2))
    assert macs(alone, torch.zeros(2, 5, dtype=torch.long)) == {"0": 0, "1": 5 * 8}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x)[0]
        return out


def test_attention_counts_its_projections_in_and_out() -> None:
    found = macs(Attention(), torch.zeros(2, 5, 8))
    assert found == {"attention.in_proj_weight": 5 * 24 * 8, "attention.out_proj": 5 * 8 * 8}


def test_a_transformer_layer_counts_all_of_its_weights() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, batch_first=True)
    assert sum(macs(layer, torch.zeros(2, 5, 8)).values()) == 5 * (24 * 8 + 8 * 8 + 2 * 8 * 12)


def test_a_layer_that_is_used_twice_counts_twice_and_an_unused_one_none() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.used(self.used(a)) + b
            return out

    example = (torch.zeros(3, 4), torch.zeros(3, 4))
    assert macs(Model(), example) == {"used": 32, "unused": 0}
    assert macs(Model(), {"b": example[1], "a": example[0]}) == {"used": 32, "unused": 0}


def test_counting_leaves_no_hook_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    macs(model, torch.zeros(1, 4))
    with pytest.raises(RuntimeError):
        macs(model, torch.zeros(1, 5))
    assert all(not module._forward_hooks for module in model.modules())


def test_a_policy_counts_its_share_of_nonzero_weights() -> None:
    assert policy_macs({"a": 100.0, "b": 40.0}, {"a": 0.25, "b": 1.0}) == 65.0
