"""What every test gets: no store or cache of the user's, and one Ray for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("SLIMFRONT_STORAGE", raising=False)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray with room for six workers, which launches use and leave running; it takes 9 s to start."""
    from search.config import Config
    from search.pool import start_ray, stop_ray

    started = start_ray(Config(study="any", workload="any:any", workers=6))
    yield
    if started:
        stop_ray()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny search that nothing disturbed: what every other run of it must equal."""
    from search.loop import launch
    from tests.searches import tiny

    folder = tmp_path_factory.mktemp("undisturbed")
    assert not launch(tiny(folder)).interrupted
    return folder


@pytest.fixture(scope="session")
def undisturbed_front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with our own sampler."""
    from search.loop import launch
    from tests.searches import FRONT, tiny

    folder = tmp_path_factory.mktemp("undisturbed-front")
    assert not launch(tiny(folder, sampler=FRONT)).interrupted
    return folder
