"""The front of a study: its points, their hypervolume and knee, and the uniform policies beside them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from search.address import hide_password
from search.config import storage_url
from search.pareto import Box, hypervolume, knee, pareto
from search.storage import Storage, open_storage
from spaces.errors import StudyError
from spaces.space import Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = [
    "Box",
    "Duel",
    "FloatModel",
    "Front",
    "Point",
    "StoredStudy",
    "beaten_sentence",
    "beaten_uniform",
    "front",
    "hypervolume",
    "knee",
    "pareto",
    "pick_study",
    "space_of_study",
]

DEPLOYED_DROP = 0.05  # hypervolume5 looks at the accuracies that lose at most this
UNIFORM_DROP = 0.03  # uniform policies that lose more are nothing to be proud of beating
ROUNDING = 1e-9  # of differences between accuracies


@dataclass(frozen=True)
class Point:
    """A finished trial: its file's bytes, its accuracies, and the multiply-accumulates of one example.

    Attributes:
        rungs: what it scored on each rung, as stored: rung, accuracy, bytes, macs, loss, seconds.
        artifact: hash of its packed file; None where that was not kept.
        label: a uniform policy in words; None for any other.
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


@dataclass(frozen=True)
class FloatModel:
    """The uncompressed model: bytes of its packed file, accuracies, multiply-accumulates of one example."""

    bytes: int
    accuracy: float
    accuracy_ci95: tuple[float, float] | None
    test_accuracy: float
    macs: float


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

    @property
    def knee(self) -> Point | None:
        """The knee of the part of the front that people deploy: what loses at most 5 points of accuracy.

        Where nothing is that accurate it is the knee of the whole front; None if the front is empty.
        """
        deployed = [point for point in self.points if point.accuracy >= self.float.accuracy - DEPLOYED_DROP - ROUNDING]
        return knee(deployed or self.points) if self.points else None

    def document(self) -> dict[str, Any]:
        """The front as JSON values: what `slimfront front --json` prints."""
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
            "states": self.states,
        }


@dataclass(frozen=True)
class Duel:
    """A uniform policy, and the smallest candidate of fewer bytes and no less accuracy, None if there is none."""

    uniform: Point
    by: Point | None


def beaten_uniform(front: Front, drop: float = UNIFORM_DROP) -> list[Duel]:
    """What the search found against each uniform policy that loses at most `drop` of the float model's accuracy.

    They are compared on the rung that the uniform policy reached: a candidate that was trained for longer is taken
    as it was on that rung, one that was trained for less as it is.
    """
    duels = []
    for uniform in front.uniform:
        if uniform.accuracy < front.float.accuracy - drop - ROUNDING:
            continue
        better = [
            (bytes, point.trial, point)
            for point in front.complete
            for bytes, accuracy in [_on_rung(point, uniform.rung)]
            if point.origin != "uniform" and bytes < uniform.bytes and accuracy >= uniform.accuracy
        ]
        duels.append(Duel(uniform, min(better)[2] if better else None))
    return duels


def _on_rung(point: Point, rung: int) -> tuple[int, float]:
    last = max((one for one in point.rungs if one["rung"] <= rung), key=lambda one: int(one["rung"]))
    return last["bytes"], last["accuracy"]


def beaten_sentence(front: Front) -> str:
    """Whether the search beat the uniform policies, in one sentence."""
    duels = beaten_uniform(front)
    near = f"within {UNIFORM_DROP * 100:.0f} points of the float model"
    if not duels:
        return f"no uniform policy is {near}"
    unbeaten = [duel.uniform for duel in duels if duel.by is None]
    if unbeaten:
        named = ", ".join(f"uniform {point.label} (trial {point.trial})" for point in unbeaten)
        beaten = len(duels) - len(unbeaten)
        return f"not beaten: {named}; {beaten} of {len(duels)} uniform policies {near} are"
    return (
        f"every uniform policy {near} is beaten ({len(duels)} of {len(duels)}): for each there is a smaller candidate, "
        "no less accurate on the same rung"
    )


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
    space, tests = space_of_study(study), attrs.get("test", {})
    points = [_point(study, space, tests, trial) for trial in trials if trial.state.name == "COMPLETE"]
    points.sort(key=lambda one: (one.bytes, one.trial))
    stored = attrs["float"]
    float_model = FloatModel(
        bytes=stored["bytes"],
        accuracy=stored["accuracy"],
        accuracy_ci95=_pair(stored["accuracy_ci95"]),
        test_accuracy=stored["test_accuracy"],
        macs=stored["macs"],
    )
    smallest, largest = attrs["smallest_bytes"], float_model.bytes / 4
    whole = Box(smallest, largest, attrs["workload"]["chance"], 1.0)
    near = Box(smallest, largest, float_model.accuracy - DEPLOYED_DROP, float_model.accuracy)
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
    )


def _point(study: StoredStudy, space: Space, tests: Mapping[str, float], trial: "FrozenTrial") -> Point:
    attrs = trial.user_attrs
    try:
        return Point(
            trial=trial.number,
            bytes=int(trial.values[1]),
            accuracy=trial.values[0],
            accuracy_ci95=_pair(attrs["ci95"]),
            test_accuracy=tests.get(str(trial.number)),
            macs=attrs["macs"],
            rung=attrs["rung"],
            rungs=tuple(attrs["rungs"]),
            origin=attrs["origin"],
            artifact=attrs["artifact"],
            label=_label(space, trial.params) if attrs["origin"] == "uniform" else None,
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
