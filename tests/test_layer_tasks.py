"""A layer to be compressed: in batches, and whose error it is when it fails."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from compress.layer import Cost
from objectives.score import Scorer
from objectives.workload import load_workload
from search import candidates, tasks
from search.candidates import Compressing, build_here
from search.tasks import RETRIES, LayerTask, LocalPool
from spaces.choice import Choice, SemiStructured, Uniform, Unstructured
from spaces.errors import CandidateError, RetryableError
from spaces.policy import Policy
from tests.scoring import evaluation, scorer_of

CHOICES = (
    Choice(),
    Choice(weights=Uniform(bits=3, rounding="gptq")),
    Choice(prune=Unstructured(ratio=0.5, criterion="hessian"), weights=Uniform(bits=3)),
    Choice(prune=Unstructured(ratio=0.5, criterion="hessian"), weights=Uniform(bits=3, rounding="adaround")),
    Choice(prune=Unstructured(ratio=0.5, criterion="hessian"), weights=Uniform(bits=3, rounding="gptq")),
)
FAILURES: dict[str, tuple[Callable[[], Exception], type[Exception], str]] = {
    "memory": (lambda: MemoryError("too much"), RetryableError, "site second: out of memory: too much"),
    "the device's memory": (lambda: torch.OutOfMemoryError("full"), RetryableError, "site second: out of memory: full"),
    "disk": (lambda: OSError("no space left"), RetryableError, "site second: OSError: no space left"),
    "its own": (lambda: CandidateError("does not fit"), CandidateError, "^does not fit$"),
    "retryable": (lambda: RetryableError("lost"), RetryableError, "^lost$"),
    "anything": (lambda: RuntimeError("LAPACK"), CandidateError, "^site second: RuntimeError: LAPACK$"),
}
every_failure = pytest.mark.parametrize("failure", FAILURES)


@dataclass(frozen=True)
class Failing(LayerTask):
    """Fails a number of times before it works."""

    error: Callable[[], Exception] = RuntimeError
    times: int = 100
    begun: tuple[list[None], ...] = ()

    def _costs(self, scorer: Scorer) -> list[Cost]:
        self.begun[0].append(None)
        if len(self.begun[0]) <= self.times:
            raise self.error()
        return super()._costs(scorer)


def failing(error: Callable[[], Exception], times: int = 100) -> Failing:
    return Failing(0, Policy(sites={}), "second", CHOICES, None, error, times, ([],))


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    return scorer_of(load_workload("tests.tiny:workload"), evaluation(tmp_path))


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.tasks.PAUSES", (0.01,) * RETRIES)


@pytest.mark.usefixtures("_short_pauses")
class TestFailures:
    @every_failure
    def test_an_error_says_whose_it_is(self, failure: str, scorer: Scorer) -> None:
        error, kind, words = FAILURES[failure]
        with pytest.raises(kind, match=words):
            failing(error).run(scorer)

    @every_failure
    def test_the_driver_tries_again_what_may_work_then_and_says_why_it_did_not(
        self, failure: str, scorer: Scorer
    ) -> None:
        error, kind, words = FAILURES[failure]
        task = failing(error)
        with pytest.raises(CandidateError, match=words.strip("^$")) as caught:
            build_here(scorer, [task])
        again = kind is RetryableError
        assert len(task.begun[0]) == (RETRIES + 1 if again else 1)
        assert str(caught.value).startswith(f"failed {RETRIES + 1} times, the last time: ") == again

    def test_a_further_try_that_works_is_as_good_as_the_first(self, scorer: Scorer) -> None:
        task, plain = failing(MemoryError, RETRIES), LayerTask(0, Policy(sites={}), "second", CHOICES)
        assert build_here(scorer, [task]) == build_here(scorer, [plain])

    def test_a_pool_gives_the_same_words(self, scorer: Scorer, tmp_path: Path) -> None:
        pool = LocalPool(scorer, tmp_path)
        pool.submit(failing(lambda: RuntimeError("LAPACK")))
        (result,) = pool.collect(1)
        assert (result.error, result.costs) == ("site second: RuntimeError: LAPACK", None)

    def test_a_choice_that_does_not_fit_is_the_candidates_error(self, scorer: Scorer) -> None:
        task = LayerTask(0, Policy(sites={}), "first", (Choice(prune=SemiStructured(n=3, m=16)),))
        with pytest.raises(CandidateError, match="site first"):
            build_here(scorer, [task])


@pytest.mark.parametrize("most", [1, 2, 4])
def test_costs_do_not_depend_on_the_batches(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_workload("tests.tiny:workload")
    task = LayerTask(0, Policy(sites={}), "second", CHOICES)
    together = task.run(scorer_of(loaded, evaluation(tmp_path / "together")))
    (site,) = (one for one in loaded.sites if one.name == "second")
    monkeypatch.setattr(tasks, "BATCH", most * site.size)
    assert task.run(scorer_of(loaded, evaluation(tmp_path / "parts"))) == together
    assert len(set(together)) == len(CHOICES)


def test_how_far_it_is_is_said_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Compressing(300)
    for done in range(1, 200):
        progress.show(done)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(candidates, "QUIET_SECONDS", 0.05)
    time.sleep(0.06)
    progress.show(200)
    progress.show(201)
    assert capsys.readouterr().err == "compressed 200 of 300 sites at each choice\n"
