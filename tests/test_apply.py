"""Carrying a policy out: the contract over every kind of choice, and what stitching refuses."""

import copy

import pytest
import torch
from torch import nn

from compress.apply import stitch
from compress.coding import CodedWeight
from compress.database import LayerDatabase
from compress.sites import find_sites
from spaces.policy import Choice, Float16, Float32, NoPruning, Prune, Uniform, Unstructured
from tests.contracts import ChoiceContract
from tests.models import MODELS, digest, output, subject

pruning = pytest.mark.parametrize(
    "prune", [pytest.param(NoPruning(), id="dense"), pytest.param(Unstructured(ratio=0.6), id="pruned")]
)


@pruning
class TestFloat32(ChoiceContract):
    @pytest.fixture
    def choice(self, prune: Prune) -> Choice:
        return Choice(prune=prune, weights=Float32())


@pruning
class TestFloat16(ChoiceContract):
    @pytest.fixture
    def choice(self, prune: Prune) -> Choice:
        return Choice(prune=prune, weights=Float16())


@pruning
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
class TestUniform(ChoiceContract):
    @pytest.fixture
    def choice(self, prune: Prune, bits: int) -> Choice:
        return Choice(prune=prune, weights=Uniform(bits=bits))


class TestAlmostEverythingPruned(ChoiceContract):
    @pytest.fixture
    def choice(self) -> Choice:
        return Choice(prune=Unstructured(ratio=0.9999), weights=Uniform(bits=4))


class TestStitch:
    @staticmethod
    def coded(model: nn.Module, choice: Choice) -> dict[str, CodedWeight]:
        sites = find_sites(model)
        return LayerDatabase(model, sites).policy({site.name: choice for site in sites})

    @pytest.mark.parametrize("name", MODELS)
    def test_the_weights_are_the_decoded_ones_and_all_else_is_the_same(self, name: str) -> None:
        model = subject(name).model
        sites, coded = find_sites(model), self.coded(model, Choice(weights=Uniform(bits=3)))
        new = stitch(model, sites, coded)
        at = {site.parameter: site for site in sites}
        at |= {tied: site for site in sites for tied in site.tied}
        old = model.state_dict()
        for key, tensor in new.state_dict().items():
            expected = old[key]
            if key in at:
                expected = at[key].weight(coded[at[key].name].decode()).to(tensor.dtype)
            assert torch.equal(tensor, expected), key

    @pytest.mark.parametrize("name", sorted(set(MODELS) - {"bfloat16"}))
    def test_unpruned_float32_is_the_model_itself(self, name: str) -> None:
        one = subject(name)
        new = stitch(one.model, find_sites(one.model), self.coded(one.model, Choice()))
        assert torch.equal(output(new, one.inputs), output(one.model, one.inputs))

    def test_the_new_model_shares_no_memory_with_the_old_one(self) -> None:
        model = subject("convolutions").model
        new = stitch(model, find_sites(model), self.coded(model, Choice()))
        before = digest(model)
        with torch.no_grad():
            for tensor in new.state_dict().values():
                tensor.zero_()
        assert digest(model) == before

    def test_a_model_in_training_mode_stays_there_and_the_new_one_is_in_evaluation_mode(self) -> None:
        model = copy.deepcopy(subject("convolutions").model).train()
        new = stitch(model, find_sites(model), self.coded(model, Choice()))
        assert model.training
        assert not new.training

    def test_a_site_without_coded_weight_is_never_skipped(self) -> None:
        model = subject("convolutions").model
        coded = self.coded(model, Choice())
        del coded["3"]
        before = digest(model)
        with pytest.raises(KeyError, match="3"):
            stitch(model, find_sites(model), coded)
        assert digest(model) == before

    def test_tied_weights_stay_tied(self) -> None:
        model = subject("tied").model
        new = stitch(model, find_sites(model), self.coded(model, Choice(weights=Uniform(bits=2))))
        assert new.get_parameter("head.weight") is new.get_parameter("embedding.weight")
        assert new.get_submodule("first") is new.get_submodule("second")
