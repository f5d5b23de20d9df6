"""The front of a study: its points, their hypervolume and knee, and the uniform policies beside them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from search.address import hide_password
from search.config import storage_url
from search.duels import beaten_uniform, unbeaten_on_test
from search.pareto import ROUNDING, Box, hypervolume, knee, pareto, reference_box
from search.storage import Storage, open_storage
from spaces.errors import StudyError
from spaces.space import Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = [
    "Box",
    "FloatModel",
    "Front",
    "Point",
    "StoredStudy",
    "front",
    "hypervolume",
    "knee",
    "pareto",
    "pick_study",
    "space_of_study",
]

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
    """A study's front and what it is compared with; all points are sorted by bytes.

    Attributes:
        points: the front.
        uniform: every finished uniform policy, on the front or not.
        complete: every finished trial.
        hypervolume: of the front in `reference`, 0..1; `hypervolume5` in `reference5`.
        states: how many trials are in which state.
        float: the uncompressed model.
        passes: samples of all `forwards` and `backwards` that scoring the trials took.
        compared: whether all members were compared with each other on the test split.
    """

    study: str
    points: tuple[Point, ...]
    uniform: tuple[Point, ...]
    complete: tuple[Point, ...]
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
            "unbeaten_uniform": [duel.uniform.trial for duel in beaten_uniform(self) if duel.by is None],
            "unbeaten_uniform_on_test": None if on_test is None else [point.trial for point in on_test],
            "states": self.states,
            "stopped": sum(point.stopped for point in self.complete),
            "passes": self.passes,
        }


@dataclass(frozen=True)
class StoredStudy:
    """A study in a store, with its attributes."""

    id: int
    name: str
    attrs: Mapping[str, Any]


def pick_study(storage: Storage, name: str | None) -> StoredStudy:
    """The study of this name; without a name, the only one.

    Raises:
        StudyError: there is none, there are several to choose from, or it is not one of ours.
    """
    names = sorted(study.study_name for study in storage.get_all_studies())
    shown = hide_password(storage.url)
    if not names:
        raise StudyError(f"{shown} holds no study yet: `slimfront launch CONFIG` starts one")
    if name is None and len(names) > 1:
        raise StudyError(f"{shown} holds {len(names)} studies, name one of them: {', '.join(names)}")
    if name is not None and name not in names:
        raise StudyError(f"{shown} holds no study {name!r}; it holds {', '.join(names)}")
    found = names[0] if name is None else name
    study_id = storage.get_study_id_from_name(found)
    attrs = storage.get_study_user_attrs(study_id)
    if missing := {"config", "float", "smallest_bytes", "space", "versions", "workload"} - attrs.keys():
        raise StudyError(
            f"study {found!r} in {shown} was not started by `slimfront launch`, or did not get far enough: it "
            f"lacks {', '.join(sorted(missing))}; launch its config again, or name another study"
        )
    return StoredStudy(study_id, found, attrs)


def space_of_study(study: StoredStudy) -> Space:
    """The space that a study searches.

    Raises:
        StudyError: it is written in another way than it is now.
    """
    try:
        return Space.read(study.attrs["space"])
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"study {study.name!r} was made by an earlier version of Slimfront; search again under another name"
        ) from error


def front(study: str | None = None, storage: str | None = None) -> Front:
    """The front of a study, finished or running.

    Args:
        study: its name; None is the only study of the store.
        storage: URL of the store; None is $SLIMFRONT_STORAGE, else sqlite:///slimfront.db.

    Raises:
        ConfigError, StudyError: there is no such store or study.

    Example:
        >>> from slimfront import front
        >>> [(point.bytes, point.accuracy) for point in front("digits").points]  # doctest: +SKIP
        [(21024, 0.94), (25480, 0.975), (31240, 0.9825)]
    """
    store = open_storage(storage_url(storage), create=False)
    try:
        found = pick_study(store, study)
        return _front(found, store.load_trials(found.id))
    finally:
        store.close()


def _front(study: StoredStudy, trials: Sequence["FrozenTrial"]) -> Front:
    attrs = study.attrs
    space = space_of_study(study)
    points = [_point(study, space, trial) for trial in trials if trial.state.name == "COMPLETE"]
    points.sort(key=lambda one: (one.bytes, one.trial))
    stored = attrs["float"]
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
    best = pareto(points)
    return Front(
        study=study.name,
        points=tuple(best),
        uniform=tuple(point for point in points if point.origin == "uniform"),
        complete=tuple(points),
        hypervolume=hypervolume(best, whole),
        hypervolume5=hypervolume(best, near),
        reference=whole,
        reference5=near,
        states=dict(Counter(trial.state.name for trial in trials)),
        float=float_model,
        passes={kind: sum(_passes(trial.user_attrs, kind) for trial in trials) for kind in ("forwards", "backwards")},
        compared=bool(best) and attrs.get("within_noise", {}).keys() == {str(point.trial) for point in best},
    )


def _passes(attrs: Mapping[str, Any], kind: str) -> int:
    """Samples that a trial sent through its model; none where an earlier trial with the same policy was scored."""
    if "repeat_of" in attrs:
        return 0
    return int(attrs.get(kind, sum(rung.get(kind, 0) for rung in attrs.get("rungs", ()))))


def _point(study: StoredStudy, space: Space, trial: "FrozenTrial") -> Point:
    attrs, number = trial.user_attrs, str(trial.number)
    test = study.attrs.get("test", {}).get(number)
    if test is not None and not isinstance(test, Mapping):  # as earlier versions wrote it
        test = {"accuracy": test, "ci95": None}
    try:
        return Point(
            trial=trial.number,
            bytes=int(trial.values[1]),
            accuracy=trial.values[0],
            accuracy_ci95=_pair(attrs["ci95"]),
            test_accuracy=test["accuracy"] if test else None,
            macs=attrs["macs"],
            rung=attrs["rung"],
            rungs=tuple(attrs["rungs"]),
            origin=attrs["origin"],
            artifact=attrs["artifact"],
            label=_label(space, trial.params) if attrs["origin"] == "uniform" else None,
            test_accuracy_ci95=_pair(test["ci95"]) if test else None,
            within_noise_of=study.attrs.get("within_noise", {}).get(number),
            samples=attrs.get("samples"),
            stopped=attrs.get("stopped", False),
        )
    except KeyError as error:
        raise StudyError(
            f"trial {trial.number} of study {study.name!r} has no {error}: it was not written by `slimfront "
            "launch`, and a study of ours takes no other trials"
        ) from error


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
