"""Layers compressed by the driver and by Ray workers cost what they cost in one process."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.layer import Cost
from objectives.score import Scorer
from search.candidates import Prepared, build_here, check, prepare
from search.config import Config
from search.config_sections import DistillationConfig, SamplerConfig, SpaceConfig
from search.crew import Crew
from search.pool import RayPool
from search.tasks import LayerTask
from spaces.choice import Choice, SemiStructured
from spaces.errors import CandidateError, StudyError
from spaces.policy import Policy
from tests.searches import tiny


def family(folder: Path, **changed: Any) -> Config:
    """A search over channels, blocks and a student, whose layers are compressed on a worker."""
    settings: dict[str, Any] = {
        "workload": "tests.tiny:family",
        "space": SpaceConfig(bits=(3, 6), ratios=(0.0, 0.5), channels=(0.5,), blocks=True, rules=()),
        "distillation": DistillationConfig(steps=(3,), student_steps=3),
        "sampler": SamplerConfig(uniform=4, predicted=8),
        "workers": 1,
    }
    return tiny(folder, **{**settings, **changed})


def started() -> "Future[bool]":
    """Ray, that someone else has started."""
    done: Future[bool] = Future()
    done.set_result(False)
    return done


class Late(Future[bool]):
    """Ray that is there once it was asked after a number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times
        self.set_result(False)

    def done(self) -> bool:
        self.left -= 1
        return self.left < 0


class Waiting(Crew):
    """A crew whose workers are ready before its first task."""

    def pool(self, scorer: Scorer) -> RayPool:
        pool = super().pool(scorer)
        while not pool.is_ready():
            time.sleep(0.01)
        return pool


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """What one process prepares."""
    return prepare(family(tmp_path_factory.mktemp("alone")))


def bits(prepared: Prepared) -> list[tuple[str, bytes, bytes]]:
    """The tables of a sampler: bytes and losses of the choices of each site."""
    return [(s.name, s.bytes.tobytes(), s.losses.tobytes()) for table in prepared.tables for s in table.sites]


@pytest.fixture
def crews() -> Iterator[list[Crew]]:
    """Those that are to be closed."""
    made: list[Crew] = []
    yield made
    for one in made:
        one.close()


@pytest.mark.usefixtures("local_ray")
class TestBuild:
    @pytest.mark.parametrize("by_driver", [0, 5], ids=["by workers alone", "partly by the driver"])
    def test_it_is_prepared_as_in_one_process(
        self, by_driver: int, alone: Prepared, crews: list[Crew], tmp_path: Path
    ) -> None:
        config = family(tmp_path)
        crew = Waiting(config, Late(by_driver))
        crews.append(crew)
        here: list[int] = []

        def build(scorer: Scorer, tasks: Sequence[LayerTask]) -> list[list[Cost]]:
            costs = crew.build(scorer, [Noted(task, here) for task in tasks])
            assert repr(costs) == repr(build_here(alone.scorer, tasks))  # to the last bit, and NaN where it is NaN
            return costs

        prepared = prepare(config, build=build)
        assert here == list(range(by_driver))
        assert prepared.first == alone.first
        assert prepared.smallest_bytes == alone.smallest_bytes
        assert prepared.sensitivities == alone.sensitivities
        assert bits(prepared) == bits(alone)

    def test_costs_are_the_same_where_nothing_is_kept_on_disk(
        self, alone: Prepared, crews: list[Crew], tmp_path: Path
    ) -> None:
        config = family(tmp_path)
        checked = check(config)
        scorer = Scorer(checked.loaded, replace(checked.evaluation, max_bytes=0), alone.teacher)
        crews.append(Waiting(config, started()))
        own = checked.space.sites[:2]
        tasks = [LayerTask(i, Policy(sites={}), site.name, site.choices()) for i, site in enumerate(own)]
        assert crews[-1].build(scorer, tasks) == build_here(alone.scorer, tasks)
        assert not (tmp_path / "cache" / "layers").exists()

    def test_a_choice_that_does_not_fit_is_said_with_the_workers_words(
        self, alone: Prepared, crews: list[Crew], tmp_path: Path
    ) -> None:
        choice = Choice(prune=SemiStructured(n=3, m=16))  # first has 8 weights a channel
        tasks = [
            LayerTask(0, Policy(sites={}), "one.up", (Choice(),)),
            LayerTask(1, Policy(sites={}), "first", (Choice(), choice)),
        ]
        with pytest.raises(CandidateError) as here:
            build_here(alone.scorer, tasks)
        assert "site first" in str(here.value)
        crews.append(Waiting(family(tmp_path), started()))
        with pytest.raises(CandidateError) as there:
            crews[-1].build(alone.scorer, tasks)
        assert str(there.value) == str(here.value)

    def test_nothing_to_do_is_done_at_once(self, alone: Prepared, crews: list[Crew], tmp_path: Path) -> None:
        crews.append(Crew(family(tmp_path), started()))
        before = time.monotonic()
        assert crews[-1].build(alone.scorer, []) == []
        assert time.monotonic() - before < 1


class TestFailures:
    def test_a_ray_that_does_not_start_is_an_error_of_the_study(self, alone: Prepared, tmp_path: Path) -> None:
        failed: Future[bool] = Future()
        failed.set_exception(StudyError("Ray does not start: no reason"))
        crew = Crew(family(tmp_path), failed)
        task = LayerTask(0, Policy(sites={}), "first", (Choice(),))
        with pytest.raises(StudyError, match="Ray does not start"):
            crew.build(alone.scorer, [task])
        crew.close()


class Noted(LayerTask):
    """Says so when the driver runs it; what is sent to a worker notes it there."""

    def __init__(self, task: LayerTask, here: list[int]) -> None:
        super().__init__(task.number, task.policy, task.site, task.choices, task.sensing)
        object.__setattr__(self, "here", here)

    def run(self, scorer: Scorer) -> list[Cost]:
        here: list[int] = self.__dict__["here"]
        here.append(self.number)
        return super().run(scorer)
