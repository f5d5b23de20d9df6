"""A front to look at: the table, the picture and the page."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from search.front import Front, front
from search.plot import plot, table
from spaces.errors import ConfigError
from tests.studies import write_made_up


@pytest.fixture
def found(tmp_path: Path) -> Front:
    return front("made-up", write_made_up(tmp_path))


class TestDrawn:
    def test_a_picture(self, found: Front, tmp_path: Path) -> None:
        plot(found, tmp_path / "plots" / "front.png")
        plot(found, tmp_path / "both.PNG", against=replace(found, study="yours"))
        one, both = imread(tmp_path / "plots" / "front.png"), imread(tmp_path / "both.PNG")
        assert one.shape == both.shape
        assert one.shape[1] >= 1200
        assert one.std() > 0.05
        assert (one != both).any()

    def test_a_page_that_needs_nothing_else(self, found: Front, tmp_path: Path) -> None:
        path = tmp_path / "front.html"
        plot(found, path, against=replace(found, study="yours"))
        page = path.read_text(encoding="utf-8")
        assert "<script src" not in page
        for text in ("size of the packed file (kB, log)", "front of made-up", "front of yours", "uniform policies"):
            assert text in page
        assert "120,000 bytes, 6.7x smaller" in page

    def test_fronts_of_one_point_and_against_an_empty_one_can_be_drawn(self, found: Front, tmp_path: Path) -> None:
        single = replace(found, points=found.points[:1], complete=found.points[:1], uniform=())
        plot(single, tmp_path / "one.png", against=replace(found, points=(), complete=(), uniform=()))
        plot(single, tmp_path / "one.html")

    def test_other_suffixes_and_bad_folders_are_refused(self, found: Front, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"front\.svg, allowed a file that ends in \.png or \.html"):
            plot(found, tmp_path / "front.svg")
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be written"):
            plot(found, tmp_path / "file" / "front.png")

    def test_a_table_that_fits_a_terminal(self, found: Front) -> None:
        console = Console(width=80, record=True, file=StringIO())
        console.print(table(found))
        lines = console.export_text().splitlines()
        marked = [line for line in lines if line.rstrip().endswith("knee")]
        assert [line.split()[0] for line in marked] == [str(found.knee and found.knee.trial)]
        assert any(line.split()[:6] == ["3", "120,000", "6.7x", "0.9700", "0.950-0.990", "0.9600"] for line in lines)
        assert any(line.split()[:2] == ["float", "800,000"] for line in lines)
