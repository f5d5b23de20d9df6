"""What every choice must keep, whatever its kind: inherited by the tests over kinds of choices."""

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from compress.apply import Applied, apply
from compress.artifact import Layout
from compress.coding import read
from compress.database import LayerDatabase
from compress.family import Family, Member
from compress.files import write_file
from compress.quantization.activations import takes_grid
from compress.restriction import Excerpt
from compress.sites import Site
from compress.statistics import collect
from spaces.errors import CandidateError
from spaces.policy import Choice, SemiStructured, Unstructured
from spaces.target import CodingName
from tests.models import MODELS, Subject, digest, output, random_loss, subject

CODING: CodingName = "packed"


@dataclass(frozen=True)
class Carried:
    """A model with a choice carried out at every site that it fits, and how it was."""

    member: Member
    database: LayerDatabase
    choices: dict[str, Choice]
    applied: Applied

    @property
    def layout(self) -> Layout:
        return self.member.whole.layout

    def pack(self) -> bytes:
        return self.layout.pack(self.applied.model, self.applied.coded)


def database_of(member: Member, one: Subject) -> LayerDatabase:
    """A layer database of a model, with statistics of its inputs and gradients of some loss."""
    return LayerDatabase(
        member.model,
        member.sites,
        lambda: collect(member.model, member.sites, one.inputs, 4, "cpu", random_loss),
        coding=member.coding,
    )


def fitting(member: Member, database: LayerDatabase, site: Site, choice: Choice, cut: Excerpt | None = None) -> Choice:
    """The choice, or what fits of it: what does not is refused with the site's name."""
    module = site.parameter.rpartition(".")[0]
    if choice.activations is not None and not (site.parameter.endswith("weight") and takes_grid(member.model, module)):
        choice = choice.model_copy(update={"activations": None})
    try:
        database.layer(site, choice, cut)
    except CandidateError as error:
        if f"site {site.name}: " not in str(error):
            raise
        return Choice()
    return choice


def carry_out(one: Subject, choice: Choice, coding: CodingName = CODING) -> Carried:
    """Compress every site of a model at a choice, in a database of its own."""
    member = Member(None, one.model, one.inputs, "contract:workload", coding)
    database = database_of(member, one)
    choices = {site.name: fitting(member, database, site, choice) for site in member.sites}
    return Carried(member, database, choices, apply(one.model, member.sites, choices, database))


@functools.cache
def carried_once(name: str, choice: Choice, coding: CodingName) -> Carried:
    """A choice carried out on one of MODELS: made once for all tests that only look at it."""
    return carry_out(subject(name), choice, coding)


class ChoiceContract:
    """What every choice keeps on every kind of model. A test class inherits it and supplies the fixture `choice`."""

    coding = CODING

    @pytest.fixture(params=MODELS)
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def one(self, name: str) -> Subject:
        return subject(name)

    @pytest.fixture
    def carried(self, name: str, choice: Choice) -> Carried:
        return carried_once(name, choice, self.coding)

    def test_bytes_predicted_are_bytes_written(self, carried: Carried, tmp_path: Path) -> None:
        costs = [carried.database.cost(site, carried.choices[site.name]).bytes for site in carried.member.sites]
        write_file(tmp_path / "model", carried.pack())
        assert (tmp_path / "model").stat().st_size == carried.layout.file_bytes(sum(costs))
        assert [line.bytes for line in carried.applied.report] == costs

    def test_decoding_what_was_encoded_gives_the_same_bits(self, carried: Carried) -> None:
        for site in carried.member.sites:
            coded = carried.applied.coded[site.name]
            record, payload = coded.write(self.coding)
            again, used = read(record, memoryview(payload), site.channels, site.size // site.channels)
            assert used == len(payload) == coded.payload_bytes(self.coding)
            assert torch.equal(again.decode().view(torch.int32), coded.decode().view(torch.int32))
            assert (again.values.dtype, again.inputs) == (coded.values.dtype, coded.inputs)

    def test_the_model_in_the_file_is_the_one_that_was_scored(
        self, one: Subject, carried: Carried, tmp_path: Path
    ) -> None:
        write_file(tmp_path / "model", carried.pack())
        read_back = Family({None: carried.member}).load(tmp_path / "model")
        assert torch.equal(output(read_back, one.inputs), output(carried.applied.model, one.inputs))
        assert not any(module.training for module in read_back.modules())

    def test_carrying_it_out_again_gives_the_same_file_and_leaves_the_model_as_it_was(
        self, one: Subject, choice: Choice, carried: Carried
    ) -> None:
        before = digest(one.model)
        again = carry_out(one, choice, self.coding)
        assert digest(one.model) == before
        assert again.pack() == carried.pack()
        assert again.applied.report == carried.applied.report

    def test_as_many_weights_are_zero_as_the_choice_says(self, carried: Carried) -> None:
        for site, line in zip(carried.member.sites, carried.applied.report, strict=True):
            coded, choice = carried.applied.coded[site.name], carried.choices[site.name]
            share = {Unstructured: choice.ratio, SemiStructured: _left_out(choice)}.get(type(choice.prune), 0.0)
            assert site.size - coded.nonzero >= round(share * site.size)
            assert line.sparsity == pytest.approx(1 - int((coded.decode() != 0).sum()) / site.size)
            kept = carried.applied.layers[site.name].kept
            if kept is not None:
                assert not coded.decode()[~kept].any()


def _left_out(choice: Choice) -> float:
    return 1 - choice.prune.n / choice.prune.m if isinstance(choice.prune, SemiStructured) else 0.0
