"""The front of a study: its points, their hypervolume and knee, and the uniform policies beside them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import Connection

from search.config import storage_url
from search.duels import Duel, beaten_uniform, unbeaten_on_test
from search.pareto import ROUNDING, Box, hypervolume, knee, pareto, reference_box
from search.storage import Storage, open_storage
from search.storage.reading import (
    Candidate,
    NotOursError,
    count_states,
    read_attrs,
    read_candidates,
    read_params,
    read_study_attrs,
    sum_attrs,
)
from search.stored import StoredStudy, pick_study, read_tested, space_of_study
from spaces.errors import StudyError
from spaces.space import Space

DEPLOYED_DROP = 0.05  # hypervolume5 looks at the accuracies that lose at most this


@dataclass(frozen=True)
class Point:
    """A finished trial: its file's bytes, its accuracies, and the multiply-accumulates of one example.

    Attributes:
        rungs: what it scored on each rung, as stored: rung, accuracy, bytes, macs, loss, seconds, ...
        artifact: hash of its packed file; None where that was not kept.
        label: a uniform policy in words; None for any other.
        within_noise_of: the smallest smaller member of the front than which it is not shown to be more accurate on the
            test split; None where there is none, or they were not compared.
        samples: validation samples of its last rung, where the study says it.
        stopped: its last evaluation was stopped early: its accuracy is an estimate, cut below what it had to exceed.
    """

    trial: int
    bytes: int
    accuracy: float
    accuracy_ci95: tuple[float, float] | None
    test_accuracy: float | None
    macs: float
    rung: int
    rungs: tuple[Mapping[str, Any], ...]
    origin: str
    artifact: str | None
    label: str | None = None
    test_accuracy_ci95: tuple[float, float] | None = None
    within_noise_of: int | None = None
    samples: int | None = None
    stopped: bool = False


@dataclass(frozen=True)
class FloatModel:
    """The uncompressed model: bytes of its packed file, accuracies, multiply-accumulates of one example."""

    bytes: int
    accuracy: float
    accuracy_ci95: tuple[float, float] | None
    test_accuracy: float
    macs: float
    test_accuracy_ci95: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Front:
    """A study's front and what it is compared with; all are sorted by bytes.

    Attributes:
        points: the front.
        uniform: every finished uniform policy, on the front or not.
        also: other finished trials that were asked for.
        complete: every finished trial, in brief.
        hypervolume: of the front in `reference`, 0..1; `hypervolume5` in `reference5`.
        states: how many trials are in which state.
        float: the uncompressed model.
        passes: samples of all `forwards` and `backwards` that scoring the trials took.
        compared: whether all members were compared with each other on the test split.
    """

    study: str
    points: tuple[Point, ...]
    uniform: tuple[Point, ...]
    also: tuple[Point, ...] = ()
    complete: tuple[Candidate, ...]
    hypervolume: float
    hypervolume5: float
    reference: Box
    reference5: Box
    states: Mapping[str, int]
    float: FloatModel
    passes: Mapping[str, int]
    compared: bool

    @property
    def knee(self) -> Point | None:
        """The knee of the part of the front that people deploy: what loses at most 5 points of accuracy.

        Where nothing is that accurate it is the knee of the whole front; None if the front is empty.
        """
        deployed = [point for point in self.points if point.accuracy >= self.float.accuracy - DEPLOYED_DROP - ROUNDING]
        return knee(deployed or self.points) if self.points else None

    @cached_property
    def duels(self) -> Sequence[Duel]:
        """The uniform policies that lose little, each with the smallest candidate that beats it."""
        return beaten_uniform(self)

    def document(self) -> dict[str, Any]:
        """The front as JSON values: what `slimfront front --json` prints."""
        on_test = unbeaten_on_test(self)
        return {
            "study": self.study,
            "float": asdict(self.float),
            "points": [asdict(point) for point in self.points],
            "uniform": [asdict(point) for point in self.uniform],
            "hypervolume": self.hypervolume,
            "hypervolume5": self.hypervolume5,
            "reference": {"hypervolume": asdict(self.reference), "hypervolume5": asdict(self.reference5)},
            "knee": self.knee.trial if self.knee else None,
            "unbeaten_uniform": [duel.uniform.trial for duel in self.duels if duel.by is None],
            "unbeaten_uniform_on_test": None if on_test is None else [point.trial for point in on_test],
            "states": self.states,
            "stopped": sum(point.stopped for point in self.complete),
            "passes": self.passes,
        }


def front(study: str | None = None, storage: str | None = None, *, also: Iterable[int] = ()) -> Front:
    """The front of a study, finished or running.

    Args:
        study: its name; None is the only study of the store.
        storage: URL of the store; None is $SLIMFRONT_STORAGE, else sqlite:///slimfront.db.
        also: numbers of further trials that are wanted in full; those that are not finished are left out.

    Raises:
        ConfigError, StudyError: there is no such store or study.

    Example:
        >>> from slimfront import front
        >>> [(point.bytes, point.accuracy) for point in front("digits").points]  # doctest: +SKIP
        [(21024, 0.94), (25480, 0.975), (31240, 0.9825)]
    """
    store = open_storage(storage_url(storage), create=False)
    try:
        return read_front(store, pick_study(store, study), also=also)
    finally:
        store.close()


def read_front(storage: Storage, study: StoredStudy, *, also: Iterable[int] = ()) -> Front:
    """The front of a study in an open store, of one snapshot.

    Args:
        storage: the open store.
        study: the study in it, from `pick_study`.
        also: as in `front`.

    Raises:
        StudyError: the database failed, or the study is not one of this version of ours.
    """
    space = space_of_study(storage, study)

    def read(connection: Connection) -> Front:
        attrs = read_study_attrs(connection, study.id)
        now = replace(study, attrs={**attrs, **read_tested(connection, study.id, attrs)})
        return _front(connection, now, space, set(also))

    try:
        return storage.run(f"reading the front of study {study.name!r}", read, write=False)
    except NotOursError as error:
        raise StudyError(
            f"trial {error.number} of study {study.name!r} has no {error.lacks!r}: it was not written by `slimfront "
            "launch`, and a study of ours takes no other trials"
        ) from error


def _front(connection: Connection, study: StoredStudy, space: Space, also: set[int]) -> Front:
    attrs, stored = study.attrs, study.attrs["float"]
    candidates = read_candidates(connection, study.id)
    best = pareto(candidates)
    uniform = [one for one in candidates if one.origin == "uniform"]
    asked = [one for one in candidates if one.trial in also]
    points = _points(connection, study, space, {one.trial: one for one in (*best, *uniform, *asked)})
    float_model = FloatModel(
        bytes=stored["bytes"],
        accuracy=stored["accuracy"],
        accuracy_ci95=_pair(stored["accuracy_ci95"]),
        test_accuracy=stored["test_accuracy"],
        macs=stored["macs"],
        test_accuracy_ci95=_pair(stored.get("test_accuracy_ci95")),
    )
    whole = reference_box(attrs["smallest_bytes"], float_model.bytes, attrs["workload"]["chance"])
    near = replace(whole, worst=float_model.accuracy - DEPLOYED_DROP, best=float_model.accuracy)
    return Front(
        study=study.name,
        points=tuple(points[one.trial] for one in best),
        uniform=tuple(points[one.trial] for one in uniform),
        also=tuple(points[one.trial] for one in asked),
        complete=tuple(candidates),
        hypervolume=hypervolume(best, whole),
        hypervolume5=hypervolume(best, near),
        reference=whole,
        reference5=near,
        states=count_states(connection, study.id),
        float=float_model,
        # samples that trials sent through their models; none where an earlier trial with the same policy was scored
        passes=sum_attrs(connection, study.id, ("forwards", "backwards"), unless="repeat_of"),
        compared=bool(best) and attrs["within_noise"].keys() == {str(one.trial) for one in best},
    )


def _points(
    connection: Connection, study: StoredStudy, space: Space, wanted: Mapping[int, Candidate]
) -> dict[int, Point]:
    """These trials in full, by number."""
    attrs = read_attrs(connection, study.id, list(wanted))
    params = read_params(connection, study.id, [one.trial for one in wanted.values() if one.origin == "uniform"])
    labels = {number: _label(space, own) for number, own in params.items()}
    return {number: _point(study, one, attrs[number], labels.get(number)) for number, one in wanted.items()}


def _point(study: StoredStudy, told: Candidate, attrs: Mapping[str, Any], label: str | None) -> Point:
    number = str(told.trial)
    test = study.attrs["test"].get(number)
    if test is not None and not isinstance(test, Mapping):  # as earlier versions wrote it
        test = {"accuracy": test, "ci95": None}
    try:
        return Point(
            trial=told.trial,
            bytes=told.bytes,
            accuracy=told.accuracy,
            accuracy_ci95=_pair(attrs["ci95"]),
            test_accuracy=test["accuracy"] if test else None,
            macs=attrs["macs"],
            rung=told.rung,
            rungs=tuple(attrs["rungs"]),
            origin=told.origin,
            artifact=attrs["artifact"],
            label=label,
            test_accuracy_ci95=_pair(test["ci95"]) if test else None,
            within_noise_of=study.attrs["within_noise"].get(number),
            samples=attrs.get("samples"),
            stopped=told.stopped,
        )
    except KeyError as error:
        raise NotOursError(told.trial, str(error.args[0])) from error


def _label(space: Space, params: Mapping[str, Any]) -> str:
    """What most sites of a policy have chosen, and what was cut out of the model."""
    policy = space.policy(params)
    parts = [Counter(choice.label for choice in policy.sites.values()).most_common(1)[0][0]] if policy.sites else []
    if policy.channels:
        parts.append(f"{max(policy.channels.values()):.0%} of channels removed".replace("%", " %"))
    parts += [f"without {block}" for block in policy.dropped]
    return ", ".join([f"model {policy.model}", *parts] if policy.model else parts)


def _pair(given: Sequence[float] | None) -> tuple[float, float] | None:
    return None if given is None else (given[0], given[1])
