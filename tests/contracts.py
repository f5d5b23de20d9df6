"""What every choice must keep, whatever its kind: inherited by the tests over kinds of choices."""

from pathlib import Path

import pytest
import torch

from compress.apply import stitch
from compress.artifact import Layout, layout_of
from compress.coding import CodedWeight, read
from compress.database import LayerDatabase
from compress.files import write_file
from spaces.policy import Choice
from tests.models import MODELS, Subject, digest, output, subject


def carry_out(one: Subject, choice: Choice) -> tuple[Layout, dict[str, CodedWeight]]:
    """Compress every site of a model at a choice, in a database of its own."""
    layout = layout_of(one.model, "contract:workload")
    database = LayerDatabase(one.model, layout.sites)
    return layout, database.policy({site.name: choice for site in layout.sites})


class ChoiceContract:
    """What every choice keeps on every kind of model. A test class inherits it and supplies the fixture `choice`."""

    @pytest.fixture(params=MODELS)
    def one(self, request: pytest.FixtureRequest) -> Subject:
        return subject(request.param)

    def test_bytes_predicted_are_bytes_written(self, one: Subject, choice: Choice, tmp_path: Path) -> None:
        layout, coded = carry_out(one, choice)
        database = LayerDatabase(one.model, layout.sites)
        predicted = layout.file_bytes(sum(database.cost(site.name, choice).bytes for site in layout.sites))
        write_file(tmp_path / "model", layout.pack(stitch(one.model, layout.sites, coded), coded))
        assert (tmp_path / "model").stat().st_size == predicted

    def test_decoding_what_was_encoded_gives_the_same_bits(self, one: Subject, choice: Choice) -> None:
        layout, coded = carry_out(one, choice)
        for site in layout.sites:
            record, payload = coded[site.name].write()
            again, used = read(record, memoryview(payload), site.channels, site.size // site.channels)
            assert used == len(payload) == coded[site.name].payload_bytes
            assert torch.equal(again.decode().view(torch.int32), coded[site.name].decode().view(torch.int32))
            assert again.values.dtype == coded[site.name].values.dtype

    def test_the_model_in_the_file_is_the_one_that_was_scored(
        self, one: Subject, choice: Choice, tmp_path: Path
    ) -> None:
        layout, coded = carry_out(one, choice)
        scored = stitch(one.model, layout.sites, coded)
        write_file(tmp_path / "model", layout.pack(scored, coded))
        read_back = layout.unpack(tmp_path / "model")
        assert torch.equal(output(read_back, one.inputs), output(scored, one.inputs))
        assert not any(module.training for module in read_back.modules())

    def test_carrying_it_out_again_gives_the_same_file(self, one: Subject, choice: Choice) -> None:
        layout, coded = carry_out(one, choice)
        first = layout.pack(stitch(one.model, layout.sites, coded), coded)
        again, coded_again = carry_out(one, choice)
        assert again.pack(stitch(one.model, again.sites, coded_again), coded_again) == first

    def test_the_model_that_came_in_is_untouched(self, one: Subject, choice: Choice) -> None:
        before = digest(one.model)
        layout, coded = carry_out(one, choice)
        layout.pack(stitch(one.model, layout.sites, coded), coded)
        assert digest(one.model) == before

    def test_as_many_weights_are_zero_as_the_choice_says(self, one: Subject, choice: Choice) -> None:
        layout, coded = carry_out(one, choice)
        for site in layout.sites:
            assert site.size - coded[site.name].nonzero >= round(choice.ratio * site.size)
