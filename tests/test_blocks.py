"""Which blocks are residual, and attentions with fewer heads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pruning.blocks import Dropped, find_blocks
from compress.pruning.heads import FewerHeads
from objectives.workloads.resnet import ResNet
from tests.models import digest, random_tensor, subject
from tests.shapes import shape


class Residual(nn.Module):
    """Adds what is inside to its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


def test_blocks_of_a_residual_network_are_those_whose_way_around_is_the_identity() -> None:
    model = ResNet().eval()
    before = digest(model)
    assert find_blocks(model, torch.zeros(1, 1, 28, 28)) == ("layers.0", "layers.1", "layers.3", "layers.5")
    assert digest(model) == before


def test_transformer_blocks_with_norms_inside_and_outside_are_residual() -> None:
    one = shape("transformer")
    assert find_blocks(one.model, one.inputs) == ("blocks.0", "blocks.1")


def test_a_block_with_a_gate_in_it_is_found_and_the_gate_is_not() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.layer(x))

    model = nn.Sequential(nn.Linear(3, 4), Residual(nn.Sequential(nn.Linear(4, 4), Gate())), nn.Linear(4, 2)).eval()
    assert find_blocks(model, torch.zeros(2, 3)) == ("1",)
    one = shape("mobile")
    assert find_blocks(one.model, one.inputs) == ("1", "2")


@pytest.mark.parametrize("name", ["lenet", "dense", "grouped", "recurrent", "bert"])
def test_models_without_residual_blocks_have_none(name: str) -> None:
    one = shape(name)
    assert find_blocks(one.model, one.inputs) == ()


def test_a_plain_sequence_of_equal_shapes_is_none() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2)).eval()
    assert find_blocks(model, torch.ones(3, 4)) == ()


def test_of_blocks_within_blocks_the_innermost_are_taken() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4),
        nn.Sequential(Residual(nn.Sequential(nn.Linear(4, 4))), Residual(nn.Sequential(nn.Linear(4, 4)))),
        Residual(nn.Sequential(Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh())))),
    ).eval()
    assert find_blocks(model, torch.ones(2, 3)) == ("1.0", "1.1", "2.inner.0")


def test_a_block_that_the_model_cannot_do_without_is_left_out() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Residual(nn.Linear(4, 4)), Residual(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.first, Residual)
            out: Tensor = self.second(self.first(x))
            return out

    assert find_blocks(Asking().eval(), torch.ones(2, 4)) == ("second",)


@pytest.mark.parametrize("name", ["convolutions", "recurrent", "attention", "tied", "buffers", "bfloat16"])
def test_awkward_models_are_answered_for(name: str) -> None:
    one = subject(name)
    before = digest(one.model)
    assert find_blocks(one.model, one.inputs) == (("block",) if name == "attention" else ())
    assert digest(one.model) == before


def test_a_dropped_block_returns_its_first_argument() -> None:
    x = random_tensor(2, 3)
    assert Dropped()(x, None, mask=x) is x


def _whole(**settings: Any) -> nn.MultiheadAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(12, 3, **settings).eval()
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.4)
    return attention


def _inputs(batch_first: bool, width: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = random_tensor(2, 5, 12), random_tensor(2, 7, width, seed=1), random_tensor(2, 7, width, seed=2)
    return (query, key, value) if batch_first else (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))


_PADDING = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
_FUTURE = torch.ones(5, 7, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True}, {"kdim": 6, "vdim": 6},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "named",
    [
        {}, {"key_padding_mask": _PADDING}, {"attn_mask": _FUTURE}, {"need_weights": False},
        {"key_padding_mask": _PADDING, "attn_mask": _FUTURE, "average_attn_weights": False},
        {"attn_mask": torch.zeros(5, 7).masked_fill(_FUTURE, -3.0)},
    ],
)  # fmt: skip
def test_an_attention_with_all_its_heads_is_torchs_own(settings: dict[str, Any], named: dict[str, Any]) -> None:
    whole, same = _whole(**settings), _whole(**settings)
    FewerHeads.take(same)
    inputs = _inputs(settings.get("batch_first", False), settings.get("kdim", 12))
    with torch.no_grad():
        wanted, weights = whole(*inputs, **named)
        got, shown = same(*inputs, **named)
    torch.testing.assert_close(got, wanted)
    if weights is None:
        assert shown is None
    else:
        torch.testing.assert_close(shown, weights)


def test_one_sample_without_a_batch_is_taken() -> None:
    whole, same = _whole(), _whole()
    FewerHeads.take(same)
    x = random_tensor(5, 12)
    with torch.no_grad():
        wanted, got = whole(x, x, x, _PADDING[1, :5]), same(x, x, x, _PADDING[1, :5])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_one_mask_per_head_is_refused() -> None:
    same = _whole(batch_first=True)
    FewerHeads.take(same)
    x = random_tensor(1, 5, 12)
    with pytest.raises(ValueError, match="per head"):
        same(x, x, x, attn_mask=torch.zeros(3, 5, 5))


def test_torchs_fused_layer_leaves_an_attention_with_fewer_heads_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(12, 2, dim_feedforward=8, batch_first=True)
        encoder, fused = (nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval() for _ in range(2))
    for module in encoder.modules():
        if isinstance(module, nn.MultiheadAttention):
            FewerHeads.take(module)
    x = random_tensor(2, 7, 12)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), fused(x))
        seen = ~_PADDING
        got, wanted = (model(x, src_key_padding_mask=_PADDING) for model in (encoder, fused))
        torch.testing.assert_close(got[seen], wanted[seen])
