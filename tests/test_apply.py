"""Carrying a policy out: the contract over every kind of choice, what is reported, and what is refused."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from compress.apply import Applied, SiteReport, apply, stitch
from compress.coding import CodedWeight
from compress.database import LayerDatabase
from compress.quantization.activations import fake_quantize, input_grids
from compress.sites import find_sites
from compress.statistics import SiteStatistics, collect
from spaces.errors import CandidateError
from spaces.policy import (
    Choice,
    Codebook,
    DynamicActivations,
    Float16,
    Float32,
    NoPruning,
    Prune,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Weights,
)
from tests.contracts import ChoiceContract
from tests.models import MODELS, digest, output, random_loss, random_tensor, subject

pruning = pytest.mark.parametrize(
    "prune", [pytest.param(NoPruning(), id="dense"), pytest.param(Unstructured(ratio=0.6), id="pruned")]
)
OF_KIND: dict[str, Weights] = {
    "3-bit tensor": Uniform(bits=3, scale_per="tensor"),
    "4-bit asymmetric": Uniform(bits=4, symmetric=False),
    "3-bit groups": Uniform(bits=3, scale_per="group", group_size=3),
    "8-bit asymmetric groups": Uniform(bits=8, scale_per="group", group_size=2, symmetric=False),
    "adaround": Uniform(bits=3, rounding="adaround"),
    "gptq": Uniform(bits=3, rounding="gptq"),
    "1-bit codebook": Codebook(bits=1),
    "3-bit fisher codebook": Codebook(bits=3, fisher=True),
    "gptq codebook": Codebook(bits=2, rounding="gptq"),
}
PRUNED: dict[str, Prune] = {
    "threshold": Threshold(value=0.2),
    "2:4": SemiStructured(n=2, m=4),
    "1:3 wanda": SemiStructured(n=1, m=3, criterion="wanda"),
    "random": Unstructured(ratio=0.5, criterion="random"),
    "taylor": Unstructured(ratio=0.5, criterion="taylor"),
    "apoz": Unstructured(ratio=0.5, criterion="apoz"),
    "wanda": Unstructured(ratio=0.5, criterion="wanda"),
    "hessian": Unstructured(ratio=0.5, criterion="hessian"),
}


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
@pytest.mark.parametrize("bits", [2, 5, 8])
class TestUniform(ChoiceContract):
    @pytest.fixture
    def choice(self, prune: Prune, bits: int) -> Choice:
        return Choice(prune=prune, weights=Uniform(bits=bits))


@pytest.mark.parametrize("weights", OF_KIND.values(), ids=OF_KIND)
class TestOtherWeights(ChoiceContract):
    @pytest.fixture
    def choice(self, weights: Weights) -> Choice:
        return Choice(prune=Unstructured(ratio=0.4), weights=weights)


@pytest.mark.parametrize("other", PRUNED.values(), ids=PRUNED)
class TestOtherPruning(ChoiceContract):
    @pytest.fixture
    def choice(self, other: Prune) -> Choice:
        return Choice(prune=other, weights=Uniform(bits=4))


@pytest.mark.parametrize("activations", [StaticActivations(bits=6), DynamicActivations(bits=8)], ids=lambda a: a.kind)
class TestActivations(ChoiceContract):
    @pytest.fixture
    def choice(self, activations: StaticActivations | DynamicActivations) -> Choice:
        return Choice(weights=Uniform(bits=4), activations=activations)


@pytest.mark.parametrize("weights", [Float16(), Uniform(bits=3), Codebook(bits=4)], ids=lambda w: w.kind)
class TestEntropyCoded(ChoiceContract):
    coding = "entropy"

    @pytest.fixture
    def choice(self, weights: Weights) -> Choice:
        return Choice(prune=Unstructured(ratio=0.6), weights=weights)


class TestAlmostEverythingPruned(ChoiceContract):
    @pytest.fixture
    def choice(self) -> Choice:
        return Choice(prune=Unstructured(ratio=0.9999), weights=Uniform(bits=4))


def nothing_known(model: nn.Module) -> LayerDatabase:
    sites = find_sites(model)
    return LayerDatabase(model, sites, lambda: {site.name: SiteStatistics(samples=0) for site in sites})


def coded_of(model: nn.Module, choice: Choice) -> dict[str, CodedWeight]:
    database = nothing_known(model)
    return {site.name: database.layer(site, choice).coded for site in find_sites(model)}


class TestStitch:
    @pytest.mark.parametrize("name", MODELS)
    def test_the_weights_are_the_decoded_ones_and_all_else_is_the_same(self, name: str) -> None:
        model = subject(name).model
        sites, coded = find_sites(model), coded_of(model, Choice(weights=Uniform(bits=3)))
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
        new = stitch(one.model, find_sites(one.model), coded_of(one.model, Choice()))
        assert torch.equal(output(new, one.inputs), output(one.model, one.inputs))

    def test_the_new_model_shares_no_memory_with_the_old_one(self) -> None:
        model = subject("convolutions").model
        new = stitch(model, find_sites(model), coded_of(model, Choice()))
        before = digest(model)
        with torch.no_grad():
            for tensor in new.state_dict().values():
                tensor.zero_()
        assert digest(model) == before

    def test_a_model_in_training_mode_stays_there_and_the_new_one_is_in_evaluation_mode(self) -> None:
        model = copy.deepcopy(subject("convolutions").model).train()
        new = stitch(model, find_sites(model), coded_of(model, Choice()))
        assert model.training
        assert not new.training

    def test_a_site_without_coded_weight_is_never_skipped(self) -> None:
        model = subject("convolutions").model
        coded = coded_of(model, Choice())
        del coded["3"]
        before = digest(model)
        with pytest.raises(KeyError, match="3"):
            stitch(model, find_sites(model), coded)
        assert digest(model) == before

    def test_tied_weights_stay_tied(self) -> None:
        model = subject("tied").model
        new = stitch(model, find_sites(model), coded_of(model, Choice(weights=Uniform(bits=2))))
        assert new.get_parameter("head.weight") is new.get_parameter("embedding.weight")
        assert new.get_submodule("first") is new.get_submodule("second")


class TestReport:
    """A chain of two linear layers without bias, whose numbers can be computed by hand."""

    INPUTS = random_tensor(50, 6)

    @pytest.fixture
    def model(self) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
        with torch.no_grad():
            for i, weight in enumerate(model.parameters()):
                weight.copy_(random_tensor(*weight.shape, seed=i))
        return model.eval()

    def carried(self, model: nn.Sequential, choices: Mapping[str, Choice]) -> Applied:
        sites = find_sites(model)
        database = LayerDatabase(model, sites, lambda: collect(model, sites, self.INPUTS, 50, "cpu", random_loss))
        return apply(model, sites, choices, database)

    def test_it_says_what_was_done_and_what_that_costs(self, model: nn.Sequential) -> None:
        choices = {
            "0": Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)),
            "1": Choice(prune=SemiStructured(n=1, m=4), weights=Codebook(bits=2)),
        }
        first, second = self.carried(model, choices).report
        assert (first.site, second.site) == ("0", "1")
        assert (first.choice, second.choice) == (choices["0"], choices["1"])
        assert (second.sparsity, first.note, second.note) == (0.75, None, None)
        assert 0.5 <= first.sparsity < 0.6
        scales, bits = 8 * 2, 24 * 4  # at 50 % dense codes are as short as any other way
        assert first.bytes <= scales + 48 * 4 // 8
        assert first.bytes > scales + bits // 16
        assert second.bytes == 3 * 2 + 3 + 2  # three entries, a bitmap of 24, six codes of two values

    @pytest.mark.parametrize("bits", [2, 4])
    def test_the_error_is_that_of_the_output_on_calibration_data(self, model: nn.Sequential, bits: int) -> None:
        done = self.carried(model, dict.fromkeys(("0", "1"), Choice(weights=Uniform(bits=bits))))
        inputs = self.INPUTS.double()
        for line in done.report:
            weight = model.get_parameter(f"{line.site}.weight").detach().double()
            lost = inputs @ (weight - done.coded[line.site].decode().double()).T
            assert line.error == pytest.approx(
                float(lost.square().sum() / (inputs @ weight.T).square().sum()), rel=1e-4
            )
            inputs = inputs @ weight.T  # of the float model: that is what calibration sees

    def test_rounded_inputs_add_their_error_and_are_rounded_when_the_model_runs(self, model: nn.Sequential) -> None:
        plain = self.carried(model, {"0": Choice(), "1": Choice()}).report
        wished = Choice(activations=StaticActivations(bits=4, range="minmax"))
        done = self.carried(model, {"0": wished, "1": Choice()})
        grid = input_grids(done.model)["0"]
        seen = torch.cat([self.INPUTS.min()[None], self.INPUTS.max()[None], self.INPUTS.flatten()])  # what is kept
        lost = (fake_quantize(seen, grid).double() - seen.double()).square().sum()
        assert plain[0].error == 0.0
        assert done.report[0].error == pytest.approx(float(lost / seen.double().square().sum()), rel=1e-4)
        assert done.report[0].bytes == plain[0].bytes + 8  # the range
        rounded = output(model[0], fake_quantize(self.INPUTS, grid))
        assert torch.equal(output(done.model, self.INPUTS), output(model[1], rounded))

    def test_what_was_done_otherwise_is_noted(self, model: nn.Sequential) -> None:
        choice = Choice(prune=Unstructured(ratio=0.5, criterion="hessian"), weights=Uniform(bits=4))
        database = nothing_known(model)
        lines = apply(model, find_sites(model), dict.fromkeys(("0", "1"), choice), database).report
        assert all(line.note is not None and "magnitude" in line.note for line in lines)
        assert all(line.note is None for line in self.carried(model, dict.fromkeys(("0", "1"), choice)).report)

    def test_a_second_time_is_the_same(self, model: nn.Sequential) -> None:
        choices = dict.fromkeys(("0", "1"), Choice(prune=Unstructured(ratio=0.3), weights=Uniform(bits=3)))
        before = digest(model)
        first, second = self.carried(model, choices), self.carried(model, choices)
        assert first.report == second.report
        assert all(isinstance(line, SiteReport) for line in first.report)
        assert torch.equal(output(first.model, self.INPUTS), output(second.model, self.INPUTS))
        assert digest(model) == before


class TestRefusal:
    """A choice that does not fit is refused with site and numbers; it is never skipped."""

    @pytest.mark.parametrize(
        ("name", "site", "choice", "words"),
        [
            ("convolutions", "0", Choice(prune=SemiStructured(n=2, m=4)), r"site 0: 2:4 .* 18 weights, which 4 does"),
            (
                "convolutions",
                "3",
                Choice(weights=Uniform(bits=4, scale_per="group", group_size=2)),
                "site 3: group_size 2 does not divide its 9 weights a channel",
            ),
            ("recurrent", "embedding", Choice(activations=DynamicActivations(bits=8)), "site embedding: its input"),
            ("recurrent", "lstm.weight_ih_l0", Choice(activations=StaticActivations(bits=8)), "site lstm.*LSTM"),
            ("tied", "embedding", Choice(activations=StaticActivations(bits=8)), "site embedding: .*input"),
            (
                "attention",
                "embedding",
                Choice(prune=Unstructured(ratio=0.5, criterion="wanda")),
                "site embedding: criterion wanda needs a Hessian .*looked up",
            ),
            (
                "attention",
                "block.self_attn.in_proj_weight",
                Choice(prune=Unstructured(ratio=0.5, criterion="apoz")),
                "site block.self_attn.in_proj_weight: criterion apoz needs a share of zeros",
            ),
        ],
    )
    def test_site_and_numbers_are_named(self, name: str, site: str, choice: Choice, words: str) -> None:
        one = subject(name)
        sites, before = find_sites(one.model), digest(one.model)
        database = LayerDatabase(one.model, sites, lambda: collect(one.model, sites, one.inputs, 4))
        with pytest.raises(CandidateError, match=words):
            apply(
                one.model, sites, {other.name: choice if other.name == site else Choice() for other in sites}, database
            )
        assert digest(one.model) == before

    @pytest.mark.parametrize("criterion", ["taylor"])
    def test_what_gradients_decide_needs_gradients(self, criterion: str) -> None:
        one = subject("buffers")
        sites = find_sites(one.model)
        database = LayerDatabase(one.model, sites, lambda: collect(one.model, sites, one.inputs, 4))
        choice = Choice(prune=Unstructured(ratio=0.5, criterion="taylor"))
        with pytest.raises(CandidateError, match="site linear: criterion taylor needs a gradient"):
            apply(one.model, sites, {"linear": choice}, database)

    @pytest.mark.parametrize(("given", "odd"), [(("embedding", "first", "tail"), "tail"), (("embedding",), "first")])
    def test_a_site_too_many_or_too_few_is_named(self, given: tuple[str, ...], odd: str) -> None:
        model = subject("tied").model
        with pytest.raises(CandidateError, match=f"the policy's sites are not those of the model: {odd}"):
            apply(model, find_sites(model), dict.fromkeys(given, Choice()), nothing_known(model))
