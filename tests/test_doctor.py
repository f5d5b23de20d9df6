"""`slimfront doctor`: it finds what is broken, says the fix, and writes nothing."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search import doctor
from search.cli import app
from search.doctor import Finding
from tests.studies import write_made_up


def install(folder: Path, name: str, version: str, files: str = "") -> None:
    """Put a distribution's metadata where Python looks for it first."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(files)


def named(found: list[Finding], name: str) -> Finding:
    (one,) = [finding for finding in found if finding.name == name]
    return one


@pytest.mark.slow
def test_a_machine_that_passes_the_tests_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert [one for one in found["findings"] if one["state"] == "broken"] == []
    assert (result.exit_code, found["ok"]) == (0, True)
    names = {one["name"] for one in found["findings"]}
    assert {"Python", "slimfront", "torch", "optuna", "device", "cores", "memory", "cache", "store", "Ray"} <= names
    assert list(tmp_path.iterdir()) == []


def test_installed_packages_are_within_their_ranges() -> None:
    found = list(doctor.packages())
    assert [one for one in found if one.state == "broken"] == []
    assert named(found, "torch").found.startswith("2.")
    assert not any("dev" in one.name for one in found)


def test_a_version_out_of_range_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "typer", "0.1.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = named(list(doctor.packages()), "typer")
    assert found.state == "broken"
    assert found.found.startswith("0.1.0, and Slimfront needs ")
    assert found.fix.startswith("pip install 'typer")


def test_another_owner_of_our_names_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "astronaut", "1.0", "spaces/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = doctor.other_owners()
    assert (found.name, found.state) == ("package spaces", "broken")
    assert "pip uninstall astronaut" in found.fix


class TestCache:
    def test_its_folder_is_not_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "a" / "b"))
        found = doctor.cache()
        assert found.state in ("ok", "note")  # a note says that the disk is nearly full
        assert str(tmp_path / "a" / "b") in found.found
        assert list(tmp_path.iterdir()) == []

    def test_one_that_cannot_be_written_is_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "file" / "cache"))
        found = doctor.cache()
        assert found.state == "broken"
        assert "$SLIMFRONT_CACHE" in found.fix


class TestStore:
    def test_one_with_a_study_answers(self, tmp_path: Path) -> None:
        found = doctor.store(write_made_up(tmp_path))
        assert found.state == "ok"
        assert "studies: 1" in found.found

    def test_one_that_is_not_there_yet_is_not_made(self, tmp_path: Path) -> None:
        found = doctor.store(f"sqlite:///{tmp_path}/new.db")
        assert found.state == "ok"
        assert "no such file yet" in found.found
        assert list(tmp_path.iterdir()) == []

    def test_an_empty_file_stays_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty.db").touch()
        assert doctor.store(f"sqlite:///{tmp_path}/empty.db").state == "ok"
        assert (tmp_path / "empty.db").stat().st_size == 0

    def test_another_programs_file_is_broken(self, tmp_path: Path) -> None:
        (tmp_path / "notes.db").write_text("Dear diary, this is no database at all.")
        assert doctor.store(f"sqlite:///{tmp_path}/notes.db").state == "broken"

    def test_a_server_that_does_not_answer_is_broken_and_the_password_hidden(self) -> None:
        found = doctor.store("postgresql://ann:s3cret@127.0.0.1:1/slimfront")
        assert found.state == "broken"
        assert "ann:***@" in found.found
        assert "s3cret" not in found.found + found.fix
