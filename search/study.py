"""A search as an Optuna study: axes as distributions, policies as trials, and what is stored with each."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, Literal, assert_never

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from objectives.racing import Outcomes
from objectives.score import RungScore, Score
from search.storage import End, Start, Storage, no_guard
from search.storage.batches import refuse_unfinished
from search.storage.outcomes import decode, encode
from spaces.errors import StudyError
from spaces.policy import Policy
from spaces.space import Axis, Grid, Options, Range, Space

Origin = Literal["uniform", "predicted", "sampler", "continued"]
MOST_ERROR: Final = 4_000  # characters
OBJECTIVES = ("accuracy", "bytes")
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)


def distribution(axis: Axis) -> BaseDistribution:
    """The Optuna distribution of an axis; numbers that are not evenly spaced become categories."""
    match axis:
        case Grid(values=values):
            step = values[1] - values[0]
            even = all(abs(b - a - step) < 1e-9 for a, b in pairwise(values))
            if not even:
                return CategoricalDistribution(values)
            if all(isinstance(value, int) for value in values):
                return IntDistribution(int(values[0]), int(values[-1]), step=int(step))
            return FloatDistribution(values[0], values[-1], step=round(step, 9))
        case Range(low=low, high=high, log=log):
            return FloatDistribution(low, high, log=log)
        case Options(values=names):
            return CategoricalDistribution(names)
        case _:
            assert_never(axis)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The distributions of all axes, by name."""
    return {axis.name: distribution(axis) for axis in space.axes()}


def open_study(storage: Storage, name: str) -> tuple[int, bool]:
    """The id of a study, made if there is none yet, and whether it was made.

    Raises:
        StudyError: there is one of this name that is not a search of ours.
    """
    made = False
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        try:
            study_id, made = storage.create_new_study(DIRECTIONS, name), True
        except DuplicatedStudyError:  # another launch was quicker; which of them searches it the lease says
            study_id = storage.get_study_id_from_name(name)
    refuse_unfinished(name, storage.get_study_user_attrs(study_id))
    strange = "fingerprint" not in storage.get_study_user_attrs(study_id) and storage.get_n_trials(study_id) > 0
    if strange or tuple(storage.get_study_directions(study_id)) != DIRECTIONS:
        raise StudyError(
            f"study {name!r} exists in this store and is not a Slimfront search; give yours another name (key study)"
        )
    storage.name_objectives(study_id, OBJECTIVES)  # again, for the process that made it may have been killed before
    return study_id, made


@dataclass(frozen=True)
class Proposal:
    """What was asked: the parameters of a trial, and what the sampler wants remembered with it and the study."""

    policy: Policy
    params: Mapping[str, Any]
    origin: Origin
    system_attrs: Mapping[str, Any]
    study_attrs: Mapping[str, Any]
    continues: int | None = None  # the trial of the same policy that it continues


@dataclass(frozen=True)
class Asked:
    """A trial that was asked and may have been told.

    Attributes:
        values: (accuracy, bytes) once it is complete; None while it runs and when it failed.
        rungs: its scores, rung by rung.
        attrs: its user attributes.
    """

    number: int
    params: Mapping[str, Any]
    system_attrs: Mapping[str, Any]
    attrs: Mapping[str, Any]
    told: bool
    values: tuple[float, float] | None
    rungs: tuple[RungScore, ...]

    @property
    def stopped(self) -> bool:
        """Whether a race stopped its last evaluation."""
        return bool(self.attrs.get("stopped", False))

    @property
    def origin(self) -> Origin:
        """Who proposed it."""
        origin: Origin = self.attrs["origin"]
        return origin

    @property
    def continues(self) -> int | None:
        """The trial of the same policy that it continues, if it does."""
        return self.attrs.get("continues")

    @property
    def repeat_of(self) -> int | None:
        """The trial of the same policy whose score it was given, if it was."""
        return self.attrs.get("repeat_of")


class Trials:
    """The trials of a study, in memory and in the store; the driver is the only one who changes them.

    What was started and told is stored by `commit`.

    Args:
        storage: the study database.
        study_id: the study's id in it.
        guard: looks first whether the study is ours to write.

    Raises:
        StudyError: it is not, or it holds trials that no search of ours asked.
    """

    def __init__(self, storage: Storage, study_id: int, guard: Callable[[Connection], None] = no_guard) -> None:
        self._storage, self.study_id = storage, study_id
        self._trials = [_asked(trial) for trial in storage.load_trials(study_id)]
        self.told = next((t.number for t in self._trials if not t.told), len(self._trials))
        if late := [t.number for t in self._trials[self.told :] if t.told]:
            raise StudyError(
                f"trials {late} were told before trial {self.told}: this study was not written by one driver"
            )
        self._first: dict[str, int] = {}
        self._starts: list[Start] = []
        self._ends: list[End] = []
        storage.make_outcomes(study_id, guard)
        self._outcomes = storage.load_outcomes(study_id)

    @property
    def count(self) -> int:
        """How many were asked."""
        return len(self._trials)

    def __getitem__(self, number: int) -> Asked:
        return self._trials[number]

    def finished(self) -> Iterator[Asked]:
        """Those that were told, in order."""
        return iter(self._trials[: self.told])

    def first_with(self, number: int) -> int:
        """The first trial with the same policy as this one; itself, where it is the first or continues that."""
        if self._trials[number].continues is not None:
            return number
        return self._first.setdefault(self._trials[number].attrs["digest"], number)

    def outcomes(self, number: int) -> tuple[Outcomes | None, ...]:
        """What was kept of a told trial's outcomes, rung by rung, as it is stored."""
        kept = self._outcomes.get(number, {})
        return tuple(kept.get(score.rung) for score in self._trials[number].rungs) if kept else ()

    def forget_outcomes(self, number: int) -> None:
        """Let go of a trial's outcomes in memory: whoever needs them has them."""
        self._outcomes.pop(number, None)

    def start(self, proposal: Proposal, distributions: Mapping[str, BaseDistribution], prefix: str) -> Asked:
        """Take a proposal as the next, running trial; what the sampler wants remembered goes with it."""
        number = self.count
        continues = {} if proposal.continues is None else {"continues": proposal.continues}
        attrs = {"origin": proposal.origin, "digest": proposal.policy.digest, **continues}
        study_attrs = {prefix + key: value for key, value in proposal.study_attrs.items()}
        self._starts.append(Start(number, proposal.params, distributions, attrs, proposal.system_attrs, study_attrs))
        asked = Asked(number, proposal.params, proposal.system_attrs, attrs, False, None, ())
        self._trials.append(asked)
        return asked

    def commit(self, guard: Callable[[Connection], None]) -> None:
        """Store what was started and told since the last time, in one transaction.

        Args:
            guard: looks first whether the study is still ours to write.

        Raises:
            StudyError: it is not, or the database failed; nothing was stored.
        """
        if self._starts or self._ends:
            self._storage.write_trials(self.study_id, self._starts, self._ends, guard)
            self._starts, self._ends = [], []

    def complete(self, score: Score, where: Mapping[str, Any], kept: Container[int] = ()) -> Asked:
        """Tell the next trial's score.

        Args:
            score: of the trial.
            where: further attributes, such as the host that scored it.
            kept: the rungs whose outcomes are stored, where there are any.
        """
        attrs = {
            "macs": score.macs,
            "rung": score.rung,
            "rungs": [asdict(rung) for rung in score.rungs],
            "ci95": score.ci95,
            "artifact": score.artifact,
            "samples": score.rungs[-1].samples,
            "validation_loss": score.rungs[-1].validation_loss,
            "forwards": sum(rung.forwards for rung in score.rungs),
            "backwards": sum(rung.backwards for rung in score.rungs),
            **({"stopped": True} if score.stopped else {}),
            **where,
        }
        found = {
            rung.rung: decode(*encode(one))
            for rung, one in zip(score.rungs, score.outcomes, strict=False)
            if one is not None and rung.rung in kept
        }
        return self._tell((score.accuracy, float(score.bytes)), score.rungs, attrs, found)

    def fail(self, reason: str, where: Mapping[str, Any]) -> Asked:
        """Tell that the next trial failed, and why; of a long reason what fits into an attribute everywhere."""
        return self._tell(None, (), {"error": _cut(reason), **where})

    def repeat(self, number: int) -> Asked:
        """Tell the next trial what trial `number`, which has the same policy, was told."""
        same = self._trials[number]
        kept = {key: value for key, value in same.attrs.items() if key not in ("origin", "digest")}
        return self._tell(same.values, same.rungs, {**kept, "repeat_of": number})

    def _tell(
        self,
        values: tuple[float, float] | None,
        rungs: tuple[RungScore, ...],
        attrs: Mapping[str, Any],
        outcomes: Mapping[int, Outcomes] = MappingProxyType({}),
    ) -> Asked:
        asked = self._trials[self.told]
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        self._ends.append(End(asked.number, state, values, attrs, outcomes))
        self._outcomes[asked.number] = dict(outcomes)
        told = replace(asked, attrs={**asked.attrs, **attrs}, told=True, values=values, rungs=rungs)
        self._trials[self.told] = told
        self.told += 1
        return told


def _cut(reason: str) -> str:
    if len(reason) <= MOST_ERROR:
        return reason
    said = f" ... (cut: {len(reason)} characters)"
    return reason[: MOST_ERROR - len(said)] + said


def _asked(trial: FrozenTrial) -> Asked:
    if "digest" not in trial.user_attrs or trial.state not in (
        TrialState.RUNNING,
        TrialState.COMPLETE,
        TrialState.FAIL,
    ):
        raise StudyError(
            f"trial {trial.number} ({trial.state.name}) was not asked by a Slimfront search: give the search a "
            "study of its own (key study)"
        )
    values = (trial.values[0], trial.values[1]) if trial.state is TrialState.COMPLETE else None
    try:
        rungs = tuple(RungScore(**rung) for rung in trial.user_attrs.get("rungs", ()))
    except TypeError as error:
        raise StudyError(
            f"trial {trial.number} was told by an earlier version of Slimfront: search again under another name"
        ) from error
    told = trial.state is not TrialState.RUNNING
    return Asked(trial.number, trial.params, trial.system_attrs, trial.user_attrs, told, values, rungs)
