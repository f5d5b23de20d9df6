"""Packed files that were lost, made again: a policy scored again gives the same file."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from compress.files import artifact_path
from objectives.judging import FixedJudge
from search.front import Point
from search.tasks import Pool, ScoreTask
from spaces.policy import Policy

WAIT_SECONDS = 0.5


def lost(points: Iterable[Point], cache: Path) -> dict[int, Point]:
    """Those whose packed file should be in the cache folder and is not, by trial."""
    kept = {point.trial: point for point in points if point.artifact}
    return {trial: one for trial, one in kept.items() if not artifact_path(cache, one.artifact or "").is_file()}


def restore(
    points: Mapping[int, Point],
    policies: Mapping[int, Policy],
    pool: Pool,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Score policies again, up to the rung that they reached, so that their packed files are kept again.

    Args:
        points: whose files were lost, by trial.
        policies: theirs, by trial.
        pool: who scores.
        say: takes a line for people; also where a file came out otherwise than it was, as on another kind of machine.
        stopped: whether somebody wants it to end.

    Returns:
        Whether it was done before somebody wanted it to end.
    """
    if points:
        say(f"{len(points)} packed files are not in the cache folder any more: making them again")
    for trial, point in points.items():
        pool.submit(ScoreTask(trial, policies[trial], FixedJudge(point.rung)))
    left = len(points)
    while left and not stopped():
        results = pool.collect(WAIT_SECONDS)
        left -= len(results)
        for result in results:
            found = None if result.score is None else result.score.artifact
            if found != points[result.number].artifact:
                why = result.error or "it comes out otherwise on this machine"
                say(f"the packed file of trial {result.number} is lost: {why}")
    return not left
