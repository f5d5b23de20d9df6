"""The protocol of all that propose policies, and the searchers that follow a list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from objectives.score import RungScore
from search.study import Origin
from spaces.policy import Policy


@dataclass(frozen=True)
class Offer:
    """A policy to be evaluated.

    Attributes:
        spent: sample-forwards on calibration data that choosing it took; None where it is evaluated like any trial,
            which then takes those of its own correction.
        seconds: that `spent` took, when it was recorded.
        validated: whether it is scored on the split that fronts are made of; one that is not is on no front, and
            nothing is told.
        counted: whether it counts as many evaluations as its sample-forwards, not as one: many policies were looked at.
        note: what a searcher needs to be shown this offer again, JSON values.
    """

    policy: Policy
    origin: Origin = "sampler"
    spent: float | None = None
    seconds: float = 0.0
    validated: bool = True
    counted: bool = False
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a searcher is told of its offer: accuracy (an estimate where a race stopped it), bytes, and all else."""

    accuracy: float
    bytes: int
    rung: RungScore
    stopped: bool = False


class Searcher(Protocol):
    """Proposes one policy after the other; numbers count from 0."""

    def propose(self, number: int) -> Offer | None:
        """The next policy; None when there are no more."""

    def again(self, number: int, policy: Policy, note: Mapping[str, Any]) -> Offer | None:
        """Be shown what `propose` gave under this number before, in another process; what it would give now."""

    def tell(self, number: int, told: Told) -> None:
        """See a result."""


class Listed:
    """Proposes the policies of a list, in order."""

    def __init__(self, policies: Sequence[tuple[Origin, Policy]]) -> None:
        self._policies = policies

    def propose(self, number: int) -> Offer | None:
        """The next one."""
        if number >= len(self._policies):
            return None
        origin, policy = self._policies[number]
        return Offer(policy, origin)

    def again(self, number: int, policy: Policy, note: Mapping[str, Any]) -> Offer | None:
        """The same one."""
        return self.propose(number)

    def tell(self, number: int, told: Told) -> None:
        """Nothing is learned."""


class Preceded:
    """A searcher that is asked when a list is through; what it is told starts there, too."""

    def __init__(self, first: Sequence[tuple[Origin, Policy]], then: Searcher) -> None:
        self._first, self._then, self._count = Listed(first), then, len(first)

    def propose(self, number: int) -> Offer | None:
        """The next one."""
        return self._first.propose(number) or self._then.propose(number - self._count)

    def again(self, number: int, policy: Policy, note: Mapping[str, Any]) -> Offer | None:
        """What `propose` gave before."""
        return self._first.propose(number) or self._then.again(number - self._count, policy, note)

    def tell(self, number: int, told: Told) -> None:
        """Pass a result on."""
        if number >= self._count:
            self._then.tell(number - self._count, told)
