"""A front to look at: the table, the picture and the page."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from search.front import Front, front
from search.plot import NOISE_LABEL, STOPPED_LABEL, plot, table
from spaces.errors import ConfigError
from tests.studies import write_made_up


@pytest.fixture
def found(tmp_path: Path) -> Front:
    return front("made-up", write_made_up(tmp_path))


def with_marks(found: Front) -> Front:
    """The same, compared on the test split: two of four members are within noise of a smaller one."""
    points = [
        replace(one, test_accuracy_ci95=(0.94, 0.98), within_noise_of={4: 2, 3: 4}.get(one.trial))
        for one in found.points
    ]
    return replace(found, points=tuple(points), compared=True)


def printed(found: Front, columns: int) -> list[str]:
    console = Console(width=columns, record=True, file=StringIO())
    console.print(table(found, columns))
    return console.export_text().splitlines()


def figure_of(page: Path) -> str:
    """The part of a page that is this figure, without the library."""
    text = page.read_text(encoding="utf-8")
    return text[text.rindex("Plotly.newPlot") :]


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
        single = replace(found, points=found.points[:1], complete=found.complete[:1], uniform=())
        plot(single, tmp_path / "one.png", against=replace(found, points=(), complete=(), uniform=()))
        plot(single, tmp_path / "one.html")

    def test_members_within_noise_are_hollow_and_stopped_candidates_are_named(
        self, found: Front, tmp_path: Path
    ) -> None:
        stopped = replace(found.complete[0], trial=9, origin="sampler", stopped=True)
        marked = replace(with_marks(found), complete=(*found.complete, stopped))
        for name, one in (("plain", found), ("marked", marked)):
            plot(one, tmp_path / f"{name}.png")
            plot(one, tmp_path / f"{name}.html")
        pictures = [imread(tmp_path / f"{name}.png") for name in ("plain", "marked")]
        assert (pictures[0] != pictures[1]).any()
        plain, page = (figure_of(tmp_path / f"{name}.html") for name in ("plain", "marked"))
        for text in (NOISE_LABEL, STOPPED_LABEL, "on test within noise of the smaller trial 4", "0.940-0.980"):
            assert text in page
            assert text not in plain
        assert '"symbol":["circle","circle-open","circle","circle-open"]' in page
        assert '"symbol":["circle","circle","circle","circle"]' in plain
        assert '"arrayminus":[0.0,0.0,0.0,' in page  # of trial 3 alone the interval is known

    def test_other_suffixes_and_bad_folders_are_refused(self, found: Front, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"front\.svg, allowed a file that ends in \.png or \.html"):
            plot(found, tmp_path / "front.svg")
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be written"):
            plot(found, tmp_path / "file" / "front.png")

    @pytest.mark.parametrize("columns", [80, 100])
    def test_a_table_that_fits_a_terminal(self, found: Front, columns: int) -> None:
        marked = with_marks(found)
        lines = printed(marked, columns)
        assert [line.split()[0] for line in lines if line.rstrip().endswith("knee")] == ["3"]
        wide = ["0.940-0.980"] if columns == 100 else []
        assert any(line.split()[4:] == ["0.950-0.990", "0.9600", *wide, "1", "k", "0", "~4", "knee"] for line in lines)
        assert any(line.split()[:4] == ["3", "120,000", "6.7x", "0.9700"] for line in lines)
        assert any(line.split()[:2] == ["float", "800,000"] for line in lines)
        assert [line.split()[0] for line in lines if "~" in line] == ["4", "3"]
        assert not any("…" in line for line in lines)

    @pytest.mark.parametrize(("columns", "trial", "size"), [(100, 1000, 123_456_789), (80, 100, 1_234_567)])
    def test_large_models_fit(self, found: Front, columns: int, trial: int, size: int) -> None:
        points = [
            replace(one, trial=trial + at, bytes=size + at, within_noise_of=trial, macs=12.3e6)
            for at, one in enumerate(with_marks(found).points)
        ]
        lines = printed(replace(found, points=tuple(points), float=replace(found.float, bytes=2 * size)), columns)
        assert not any("…" in line for line in lines)
        assert max(len(line.rstrip()) for line in lines) <= columns
