"""Packed files that were lost: which ones are, and that scoring a policy again gives the same file."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from compress.files import artifact_path
from objectives.judging import FixedJudge
from objectives.score import Scorer
from objectives.workload import load_workload
from search.front import Point
from search.restoring import lost, restore
from search.tasks import LocalPool, ScoreTask
from spaces.policy import Policy
from tests.scoring import coarse, evaluation, policy, scorer_of

POLICIES: Mapping[int, Policy] = {2: coarse(), 5: policy(2), 7: policy(3)}
REACHED = {2: 0, 5: 1, 7: 2}  # rungs


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the packed files of three policies."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def scorer(kept: Path) -> Scorer:
    return scorer_of(load_workload("tests.tiny:workload"), evaluation(kept))


@pytest.fixture(scope="module")
def points(scorer: Scorer, kept: Path) -> dict[int, Point]:
    return {trial: point(scorer, kept, trial) for trial in POLICIES}


def point(scorer: Scorer, cache: Path, trial: int) -> Point:
    pool = LocalPool(scorer, cache)
    pool.submit(ScoreTask(trial, POLICIES[trial], FixedJudge(REACHED[trial])))
    (result,) = pool.collect(1.0)
    score = result.score
    assert score is not None
    return Point(
        trial=trial,
        bytes=score.bytes,
        accuracy=score.accuracy,
        accuracy_ci95=score.ci95,
        test_accuracy=None,
        macs=score.macs,
        rung=score.rung,
        rungs=(),
        origin="sampler",
        artifact=score.artifact,
    )


def files(cache: Path, points: Mapping[int, Point]) -> dict[int, bytes]:
    return {trial: artifact_path(cache, one.artifact or "").read_bytes() for trial, one in points.items()}


def test_lost_are_those_that_should_be_there_and_are_not(kept: Path, points: dict[int, Point], tmp_path: Path) -> None:
    assert [points[trial].rung for trial in POLICIES] == list(REACHED.values())
    assert lost(points.values(), kept) == {}
    assert lost(points.values(), tmp_path / "nowhere") == points
    shutil.copytree(kept, tmp_path / "some")
    artifact_path(tmp_path / "some", points[5].artifact or "").unlink()
    never_kept = replace(points[2], trial=3, artifact=None)
    assert lost([*points.values(), never_kept, points[5]], tmp_path / "some") == {5: points[5]}


def test_they_are_made_again_bit_by_bit(scorer: Scorer, kept: Path, points: dict[int, Point], tmp_path: Path) -> None:
    said = list[str]()
    cache = tmp_path / "anew"
    again = Scorer(scorer.loaded, replace(scorer.evaluation, cache=cache), scorer.teacher)  # no layer is kept either
    assert restore(points, POLICIES, LocalPool(again, cache), said.append)
    assert files(cache, points) == files(kept, points)
    assert lost(points.values(), cache) == {}
    assert said == ["3 packed files are not in the cache folder any more: making them again"]


def test_nothing_lost_is_nothing_said_nor_scored(scorer: Scorer, tmp_path: Path) -> None:
    said = list[str]()
    assert restore({}, {}, LocalPool(scorer, tmp_path / "none"), said.append)
    assert (said, list(tmp_path.iterdir())) == ([], [])


def test_who_wants_it_to_end_waits_for_one_at_most(scorer: Scorer, points: dict[int, Point], tmp_path: Path) -> None:
    asked = iter([False, True])
    assert not restore(points, POLICIES, LocalPool(scorer, tmp_path), lambda words: None, lambda: next(asked))
    assert list(lost(points.values(), tmp_path)) == [5, 7]


def test_one_that_comes_out_otherwise_is_named_and_the_others_are_made(
    scorer: Scorer, kept: Path, points: dict[int, Point], tmp_path: Path
) -> None:
    """As on another kind of machine; here another policy is scored in its place."""
    said = list[str]()
    restore(points, {**POLICIES, 5: policy(9)}, LocalPool(scorer, tmp_path), said.append)
    assert said[1:] == ["the packed file of trial 5 is lost: it comes out otherwise on this machine"]
    others = {trial: points[trial] for trial in (2, 7)}
    assert files(tmp_path, others) == files(kept, others)
    assert lost(points.values(), tmp_path) == {5: points[5]}


def test_one_that_cannot_be_scored_any_more_is_named_with_why(points: dict[int, Point], tmp_path: Path) -> None:
    said = list[str]()
    scorer = scorer_of(load_workload("tests.tiny:picky"), evaluation(tmp_path))
    refused = {2: points[2]}
    assert points[2].accuracy < 0.8
    restore(refused, POLICIES, LocalPool(scorer, tmp_path), said.append)
    assert len(said) == 2
    assert said[1].startswith("the packed file of trial 2 is lost: ")
    assert "are right" in said[1]
