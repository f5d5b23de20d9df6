"""The installed package: its names belong to nobody else, and the wheel holds all that an import needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("spaces", "compress", "objectives", "search", "slimfront")


def other_owners() -> list[str]:
    """One sentence, with the fix, for every distribution that installs a name of ours."""
    owners = packages_distributions()
    return [
        f"the distribution {owner!r} installs a top-level `{name}`, as Slimfront does, and one hides "
        f"the other: `pip uninstall {owner}`, or give Slimfront an environment of its own, as `make` does"
        for name in NAMES
        for owner in sorted(set(owners.get(name, ())) - {"slimfront"})
    ]


def test_nobody_else_owns_our_names() -> None:
    assert not (found := other_owners()), "\n".join(found)


def test_another_owner_is_named_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "astronaut-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: astronaut\nVersion: 1.0\n")
    (info / "RECORD").write_text("spaces/__init__.py,,\nastronaut-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(tmp_path)

    (found,) = other_owners()

    assert "'astronaut' installs a top-level `spaces`" in found
    assert "pip uninstall astronaut" in found


def run_python(*arguments: str, folder: Path) -> str:
    """What this Python prints for these arguments in this folder."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of(*names: str, first: Path | None, folder: Path) -> list[Path]:
    """Where a Python started in `folder` finds these modules, when `first` comes first on its path."""
    look = (
        "import importlib, sys; sys.path[:0] = filter(None, [sys.argv[1]])\n"
        "for name in sys.argv[2:]: print(importlib.import_module(name).__file__)"
    )
    return [Path(line) for line in run_python("-c", look, str(first or ""), *names, folder=folder).splitlines()]


def test_our_names_are_all_found_in_one_place(tmp_path: Path) -> None:
    slimfront, *packages = files_of("slimfront", *NAMES[:4], first=None, folder=tmp_path)

    assert {file.parent.parent for file in packages} == {slimfront.parent}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run_python("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), folder=ROOT)
    (built,) = folder.glob("slimfront-*.whl")
    return built


def test_the_wheel_holds_our_names_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {Path(name).parts[0].removesuffix(".py") for name in archive.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == set(NAMES)


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    ours = {
        path.relative_to(ROOT).as_posix()
        for name in NAMES[:4]
        for path in (ROOT / name).rglob("*")
        if path.suffix in {".py", ".typed", ".safetensors", ".tpl"}
    }
    with zipfile.ZipFile(wheel) as archive:
        missing = ours - set(archive.namelist())

    assert any(name.startswith("objectives/workloads/weights/") for name in ours), "no workload weights to pack"
    assert not missing


def test_the_wheel_is_imported_from_where_it_was_unpacked(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)

    seen = files_of(*NAMES, "search.cli", first=target, folder=elsewhere)

    assert len(seen) == len(NAMES) + 1
    assert all(file.is_relative_to(target) for file in seen), seen
