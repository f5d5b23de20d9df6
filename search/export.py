"""From a front to what is deployed: choosing a point, writing its policy JSON, handing out its packed file."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from compress.files import artifact_path, write_file
from search.config import storage_url
from search.front import Front, Point
from search.pareto import ROUNDING
from search.storage import Storage, open_storage
from search.storage.reading import read_params
from search.stored import StoredStudy, pick_study, space_of_study
from spaces.errors import ArtifactError, ConfigError, SlimfrontError, StudyError
from spaces.policy import (
    ArtifactRecord,
    DistillationRecord,
    Policy,
    PolicyFile,
    Provenance,
    ScoreRecord,
    WorkloadRecord,
)

_LEAST = {"max_bytes": 1, "max_ratio": 0, "min_accuracy": -math.inf, "max_drop": 0}


class SelectionError(SlimfrontError):
    """No finished trial is what was asked for; the message names the nearest there is."""


def select(
    front: Front,
    *,
    knee: bool = False,
    max_bytes: int | None = None,
    max_ratio: float | None = None,
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    trial: int | None = None,
) -> Point:
    """Choose a point of a front; the knee, if nothing is said.

    Within a size it is the most accurate one, above an accuracy the smallest one, and under bounds on both the most
    accurate one that keeps them.

    Args:
        front: the front of a study.
        knee: the knee, alone.
        max_bytes: largest file, in bytes.
        max_ratio: largest file, as a share of the float model's.
        min_accuracy: least accuracy on validation.
        max_drop: accuracy that may be lost against the float model.
        trial: this finished trial, alone: a member of the front, a uniform policy, or one that `front(also=...)` was
            asked for; one that a race stopped is refused.

    Raises:
        ConfigError: the knee or a trial is asked for together with something else, or a bound is out of range.
        SelectionError: there is no such point, or its evaluation was stopped.
    """
    bounds = {"max_bytes": max_bytes, "max_ratio": max_ratio, "min_accuracy": min_accuracy, "max_drop": max_drop}
    given = {name: float(value) for name, value in bounds.items() if value is not None}
    if knee + (trial is not None) + bool(given) > 1:
        raise ConfigError("a knee, a trial or bounds can be selected, not several of these: leave out all but one")
    for name, value in given.items():
        if not math.isfinite(value) or value < _LEAST[name]:
            raise ConfigError(f"{name}: given {value:g}, allowed a number from {_LEAST[name]:g} on")
    if trial is not None:
        point = finished(front, trial)
        if point.stopped:
            raise SelectionError(
                f"trial {trial} was stopped early: its accuracy is an estimate; export a member of the front, "
                f"`slimfront front {front.study}` names them"
            )
        return point
    knee_point = front.knee
    if knee_point is None:
        raise SelectionError(f"study {front.study!r} has no finished trial to choose from yet: launch it again")
    return _bounded(front, given) if given else knee_point


def finished(front: Front, number: int) -> Point:
    """A finished trial of a front's study, stopped early or not, in full.

    Args:
        front: read with `also=[number]`, as it else has only its members and the uniform policies in full.
        number: the trial's.

    Raises:
        SelectionError: none of this number has finished.
        ConfigError: it has, but it is not among those that the front has in full.
    """
    for point in (*front.points, *front.uniform, *front.also):
        if point.trial == number:
            return point
    others = sorted(point.trial for point in front.complete)
    if number in others:
        raise ConfigError(
            f"trial: given {number}, which this front does not have in full: read it with also=[{number}]"
        )
    nearest = min(others, key=lambda one: (abs(one - number), one), default=None)
    raise SelectionError(
        f"study {front.study!r} has no finished trial {number}; "
        + (f"the nearest of its {len(others)} finished ones is {nearest}" if others else "none has finished")
    )


def _bounded(front: Front, given: dict[str, float]) -> Point:
    largest = min(given.get("max_bytes", math.inf), given.get("max_ratio", math.inf) * front.float.bytes)
    allowed = front.float.accuracy - given.get("max_drop", math.inf)
    least = max(given.get("min_accuracy", -math.inf), allowed) - ROUNDING
    small = [point for point in front.points if point.bytes <= largest]
    accurate = [point for point in front.points if point.accuracy >= least]
    both = [point for point in small if point.accuracy >= least]
    if both:
        return both[0] if largest == math.inf else both[-1]  # sorted by bytes, and so by accuracy
    wanted, nearest = [], []
    if largest < math.inf:
        wanted.append(f"{largest:,.0f} bytes or fewer")
    if least > -math.inf:
        wanted.append(f"accuracy {least:.4f} or more")
    if not small:
        nearest.append(f"the smallest of all is {_named(front.points[0])}")
    elif len(wanted) > 1:
        nearest.append(f"the most accurate that is small enough is {_named(small[-1])}")
    if not accurate:
        nearest.append(f"the most accurate of all is {_named(front.points[-1])}")
    elif len(wanted) > 1:
        nearest.append(f"the smallest that is accurate enough is {_named(accurate[0])}")
    raise SelectionError(f"no policy on the front of {front.study!r} has {' and '.join(wanted)}: {'; '.join(nearest)}")


def _named(point: Point) -> str:
    return f"trial {point.trial} ({point.bytes:,} bytes, accuracy {point.accuracy:.4f})"


def policy_file(storage: Storage, study: StoredStudy, point: Point) -> PolicyFile:
    """The policy of a finished trial, with what it scored and the hash of its packed file.

    Args:
        storage: the open store.
        study: the study in it, from `pick_study`.
        point: the trial, from this study's front.

    Raises:
        StudyError: the trial is not in the study, its parameters are not a policy of its space, or an earlier version
            made the study.
    """
    (policy,) = _policy_files(storage, study, [point])
    return policy


def _policy_files(storage: Storage, study: StoredStudy, points: Sequence[Point]) -> list[PolicyFile]:
    space, numbers = space_of_study(storage, study), [point.trial for point in points]
    params = storage.run(
        f"reading policies of study {study.name!r}",
        lambda connection: read_params(connection, study.id, numbers),
        write=False,
    )
    found = []
    for point in points:
        try:
            policy = space.policy(params[point.trial])
        except KeyError as error:
            raise StudyError(f"trial {point.trial} of study {study.name!r} is not there any more") from error
        except ValueError as error:
            raise StudyError(
                f"trial {point.trial} of study {study.name!r} is no policy of its space: {error}"
            ) from error
        found.append(_policy_file(study, point, policy))
    return found


def _policy_file(study: StoredStudy, point: Point, policy: Policy) -> PolicyFile:
    attrs = study.attrs
    config, workload, model = attrs["config"], attrs["workload"], attrs["float"]
    ladder = tuple(config["distillation"]["steps"][: point.rung])
    distillation = None
    if policy.distillation is not None:
        steps = ladder[-1] if ladder else 0
        distillation = DistillationRecord(**policy.distillation.model_dump(), steps=steps, ladder=ladder)
    return PolicyFile(
        workload=WorkloadRecord(**{key: workload[key] for key in WorkloadRecord.model_fields}),
        target=config["target"],
        sites=policy.sites,
        channels=policy.channels,
        channel_pruning=policy.channel_pruning,
        dropped=policy.dropped,
        model=policy.model,
        smoothing=policy.smoothing,
        distillation=distillation,
        artifact=ArtifactRecord(sha256=point.artifact, bytes=point.bytes, coding=attrs["coding"]),
        score=ScoreRecord(
            accuracy=point.accuracy,
            accuracy_ci95=point.accuracy_ci95,
            test_accuracy=point.test_accuracy,
            bytes=point.bytes,
            macs=point.macs,
            float_accuracy=model["accuracy"],
            float_test_accuracy=model["test_accuracy"],
            float_bytes=model["bytes"],
            rung=point.rung,
        ),
        provenance=Provenance(
            study=study.name,
            trial=point.trial,
            seed=config["seed"],
            chunk=config["chunk"],
            threads=config["threads"],
            device=attrs["device"],
            versions=dict(attrs["versions"]),
        ),
    )


def policy_files(points: Sequence[Point], study: str | None = None, storage: str | None = None) -> list[PolicyFile]:
    """The policies of several points of one study's front, in their order.

    Args:
        points: from this study's front.
        study: its name; None is the only study of the store.
        storage: URL of the store; None is $SLIMFRONT_STORAGE, else sqlite:///slimfront.db.

    Raises:
        ConfigError, StudyError: there is no such store, study or trial.
    """
    store = open_storage(storage_url(storage), create=False)
    try:
        found = pick_study(store, study)
        return _policy_files(store, found, points)
    finally:
        store.close()


def write_policy(policy: PolicyFile, path: Path) -> None:
    """Write a policy JSON file, all of it or nothing.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        write_file(path, policy.text().encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error


def apply(policy: PolicyFile, output: Path, *, cache: Path) -> Path:
    """Hand out the packed file that was scored: copied from the cache once its bytes and hash are those of the policy.

    Returns:
        `output`.

    Raises:
        ArtifactError: the file was not kept, is not in this cache, or is not the one that was scored.
        ConfigError: `output` cannot be written.
    """
    where = f"trial {policy.provenance.trial} of study {policy.provenance.study!r}"
    retrain = "`slimfront apply --retrain` makes it again"
    record = policy.artifact
    if record.sha256 is None:
        raise ArtifactError(f"{where} was off the front, so its packed file was not kept: {retrain}")
    source = artifact_path(cache, record.sha256)
    try:
        blob = source.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"the packed file of {where} is not at {source}: name the cache folder of its search with --cache, or "
            f"{retrain}"
        ) from error
    except OSError as error:
        raise ArtifactError(f"the packed file of {where} cannot be read: {error}") from error
    sha256 = hashlib.sha256(blob).hexdigest()
    if len(blob) != record.bytes or sha256 != record.sha256:
        raise ArtifactError(
            f"{source} is damaged: {len(blob)} bytes with SHA-256 {sha256[:12]}..., the policy says {record.bytes} "
            f"bytes with {record.sha256[:12]}...; remove it, and {retrain}"
        )
    try:
        write_file(output, blob)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error
    return output
