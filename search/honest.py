"""The end of a search: its front on the held-back test split, and which members are no better than a smaller one."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.accuracy import Z95, Accuracy
from objectives.packed import read_packed
from search.front import Front
from search.pareto import Scored
from search.tasks import Pool, TestTask

LEVEL = 0.05  # a difference that chance makes less often is one
WAIT_SECONDS = 0.5


def held_back(
    found: Front,
    tested: Mapping[str, Any],
    pool: Pool,
    cache: Path,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Score the members of a front and the uniform policies on the test split, and compare the members there.

    Members are scored again where the front has changed since, as a comparison needs the outcomes of all of them.

    Args:
        found: the front of the study.
        tested: what is known: `test`, accuracy and interval by trial, and `within_noise`, the mark of each member.
        pool: who scores.
        cache: the folder of the packed files; what is missing there is not scored.
        say: takes a line for people.
        stopped: whether somebody wants it to end.

    Returns:
        The new values of these two; nothing where all was known; None where it was ended before.
    """
    known, judged = tested["test"], tested["within_noise"]
    wanted = [point for point in found.uniform if not isinstance(known.get(str(point.trial)), Mapping)]
    changed = {str(point.trial) for point in found.points} != judged.keys()
    if changed:
        wanted += found.points
    artifacts = {point.trial: point.artifact for point in wanted if point.artifact}
    if not artifacts:
        return {}
    say(f"scoring {len(artifacts)} policies on the test split")
    scores = _scores(artifacts, pool, cache, say, stopped)
    if scores is None:
        return None
    tests = {str(trial): {"accuracy": score.value, "ci95": score.ci95} for trial, score in scores.items()}
    new = {"test": {**known, **tests}}
    if not changed:
        return new
    members = [point for point in found.points if point.trial in scores]
    outcomes = {trial: score.outcomes for trial, score in scores.items() if score.outcomes is not None}
    return {**new, "within_noise": {str(trial): of for trial, of in within_noise(members, outcomes).items()}}


def _scores(
    artifacts: Mapping[int, str], pool: Pool, cache: Path, say: Callable[[str], None], stopped: Callable[[], bool]
) -> dict[int, Accuracy] | None:
    """What the packed files score on the test split, by trial, less those that fail; None where it was ended before."""
    left = 0
    for trial, artifact in artifacts.items():
        if (blob := read_packed(cache, artifact)) is None:
            say(f"trial {trial} has no test accuracy: its packed file is not in {cache} any more")
            continue
        pool.submit(TestTask(trial, artifact, blob))
        left += 1
    scores: dict[int, Accuracy] = {}
    while left:
        if stopped():
            return None
        results = pool.collect(WAIT_SECONDS)
        left -= len(results)
        for result in results:
            if result.test is None:
                say(f"trial {result.number} has no test accuracy: {result.error}")
            else:
                scores[result.number] = result.test
    return {trial: scores[trial] for trial in artifacts if trial in scores}  # in an order that no clock decides


def within_noise(members: Sequence[Scored], outcomes: Mapping[int, NDArray[np.float32]]) -> dict[int, int | None]:
    """For each member of a front the smallest smaller one that it is not shown to be more accurate than.

    Args:
        members: of a front, sorted by bytes.
        outcomes: of the same samples, (samples,), by trial; without any a member is compared with no other.

    Returns:
        That smaller member's trial, None where there is none, by trial.
    """
    found: dict[int, int | None] = {}
    for at, member in enumerate(members):
        mine = outcomes.get(member.trial)
        smaller = [(one.trial, outcomes[one.trial]) for one in members[:at] if one.trial in outcomes]
        equals = (trial for trial, theirs in smaller if mine is not None and not more_accurate(mine, theirs))
        found[member.trial] = next(equals, None)
    return found


def more_accurate(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    """Whether paired outcomes show one candidate to be the more accurate: their difference is above 0, beyond noise.

    For outcomes that are 0 or 1 by McNemar's exact test, for others where the 95 % interval of the mean difference,
    by the normal approximation, is above 0. One that is shown to be less accurate is not more accurate either.

    Args:
        mine: its outcomes, (samples,), higher is better.
        theirs: the other candidate's, of the same samples.

    Raises:
        ValueError: they are not of the same number of samples.
    """
    if mine.shape != theirs.shape:
        raise ValueError(f"given {mine.shape[0]} and {theirs.shape[0]} outcomes, expected those of the same samples")
    differences = mine.astype(np.float64) - theirs
    if all(bool(np.isin(one, (0, 1)).all()) for one in (mine, theirs)):
        wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
        return wins > losses and mcnemar(wins, losses) < LEVEL
    half = Z95 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return float(differences.mean()) > half


def mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact test (McNemar 1947, its binomial form): p of pairs that differ being split at least so unevenly.

    Args:
        wins: samples that only one candidate has right.
        losses: samples that only the other one has right.
    """
    pairs, fewer = wins + losses, min(wins, losses)
    if wins == losses:
        return 1.0
    log_choose = math.lgamma(pairs + 1) - math.lgamma(fewer + 1) - math.lgamma(pairs - fewer + 1)
    term = total = math.exp(log_choose - pairs * math.log(2))  # P(X = fewer), X binomial with p = 1/2
    for k in range(fewer, 0, -1):
        term *= k / (pairs - k + 1)  # P(X = k - 1) from P(X = k)
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, 2 * total)
