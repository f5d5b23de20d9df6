"""Asking a sampler for policies, so that what it may see depends on the trial's number alone."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers._ga._base import BaseGASampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from objectives.score import RungScore
from objectives.seeds import seed_of
from search.samplers.history import LOSSES, STOPPED
from search.samplers.named import Knowledge, MakeSampler, sampler_maker
from search.study import DIRECTIONS, Origin, Proposal, distributions
from spaces.errors import ConfigError
from spaces.policy import Policy
from spaces.space import Space

ATTEMPTS = 16  # fresh draws before a policy that was asked already is taken after all


class _Memory(InMemoryStorage):
    """Optuna's storage in memory, which takes all parameters of a trial at once: one by one each copies the others."""

    def set_trial_params(
        self, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        """Give a running trial that has no parameters all of them, as a user sees them."""
        with self._lock:
            trial = copy.copy(self._get_trial(trial_id))
            trial.params = {
                name: kind.to_external_repr(kind.to_internal_repr(params[name])) for name, kind in distributions.items()
            }
            trial.distributions = dict(distributions)
            self._set_trial(trial_id, trial)


class Proposer:
    """Asks a sampler for policies, as a pure function of (seed, number, what was told up to then).

    It keeps a study of its own in memory, in which a trial's result is told only when the next candidate may see it, so
    neither early results nor a restart change what the sampler sees. The sampler is made anew for each ask.

    Args:
        space: what may be chosen.
        name: of the sampler.
        options: for it.
        seed: of the search.
        first: the candidates that are tried before the sampler is asked, with their origin.
        knowledge: for our sampler.
        focus: the sizes, bytes from low to high, that a candidate of a number should have; None or nothing is any.
    """

    def __init__(
        self,
        space: Space,
        name: str,
        options: Mapping[str, Any],
        seed: int,
        first: Sequence[tuple[Origin, Policy]],
        knowledge: Knowledge | None = None,
        focus: Callable[[int], tuple[float, float] | None] | None = None,
    ) -> None:
        self._space, self._name, self._options, self._seed, self._first = space, name, options, seed, first
        self.distributions = distributions(space)
        self._knowledge = knowledge
        self._make: MakeSampler = sampler_maker(name, options, seed, knowledge, focus)
        self._storage = _Memory()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study_id = self._storage.create_new_study(DIRECTIONS, "search")
            self._study = optuna.load_study(study_name="search", storage=self._storage, sampler=self._make(0))
        self._asked: set[str] = set()

    def check(self) -> None:
        """Ask on a scratch copy whether the sampler can search this space at all.

        Raises:
            ConfigError: it cannot; for example it knows a single objective only.
        """
        scratch = Proposer(self._space, self._name, self._options, 0, (), self._knowledge)
        try:
            for number in range(3):
                scratch.propose(number)
            scratch.tell(0, (0.5, 1000))
            scratch.tell(1, (0.6, 2000))
            scratch.propose(3)
        except Exception as error:
            raise ConfigError(
                f"sampler.name: given {self._name!r}, which cannot search this space: {type(error).__name__}: {error}"
            ) from error

    def restore(self, attrs: Mapping[str, Any]) -> None:
        """Take back what samplers remembered with the study."""
        for key, value in attrs.items():
            self._storage.set_study_system_attr(self._study_id, key, value)

    def replay(self, number: int, params: Mapping[str, Any], system_attrs: Mapping[str, Any]) -> Policy:
        """A trial that was asked before a restart."""
        trial_id = self._create(number)
        for key, value in system_attrs.items():
            self._storage.set_trial_system_attr(trial_id, key, value)
        policy = self._space.policy(params)
        self._ask(trial_id, params, policy)
        return policy

    def propose(self, number: int) -> Proposal:
        """Ask for the next policy; one that was asked before is drawn again a few times."""
        trial_id = self._create(number)
        before = self._storage.get_study_system_attrs(self._study_id)
        if number < len(self._first):
            origin, policy = self._first[number]
            sampler = self._make(0)
            if isinstance(sampler, BaseGASampler):  # else it would not see trials that it did not breed
                self._storage.set_trial_system_attr(trial_id, sampler._get_generation_key(), 0)
            params = self._space.params(policy)
        else:
            origin, (params, policy) = "sampler", self._sample(number, trial_id)
        self._ask(trial_id, params, policy)
        after = self._storage.get_study_system_attrs(self._study_id)
        return Proposal(
            policy,
            params,
            origin,
            dict(self._storage.get_trial(trial_id).system_attrs),
            {key: value for key, value in after.items() if before.get(key) != value},
        )

    def tell(
        self,
        number: int,
        values: tuple[float, float] | None,
        rungs: Sequence[RungScore] = (),
        *,
        stopped: bool = False,
    ) -> None:
        """Let the sampler see a result.

        Args:
            number: of the trial.
            values: accuracy and bytes; None is a failure.
            rungs: its scores, rung by rung; the sampler sees their losses on validation data.
            stopped: whether a race stopped it.

        Raises:
            ValueError: the trial was never asked, or was told.
        """
        trial = self._storage.get_trial(self._id(number))
        if trial.state is not TrialState.RUNNING:
            raise ValueError(f"trial {number} was told already: it is {trial.state.name}")
        self._storage.set_trial_user_attr(trial._trial_id, LOSSES, [rung.validation_loss for rung in rungs])
        self._storage.set_trial_user_attr(trial._trial_id, STOPPED, stopped)
        state = TrialState.COMPLETE if values is not None else TrialState.FAIL
        self._make(seed_of(self._seed, f"tell {number}")).after_trial(self._study, trial, state, values)
        self._storage.set_trial_state_values(trial._trial_id, state, values)

    def _create(self, number: int) -> int:
        trial_id = self._storage.create_new_trial(self._study_id)
        if self._storage.get_trial(trial_id).number != number:
            raise ValueError(
                f"trial {number} asked out of turn: the next is {self._storage.get_trial(trial_id).number}"
            )
        return trial_id

    def _id(self, number: int) -> int:
        try:
            return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        except KeyError as error:
            raise ValueError(f"trial {number} was never asked") from error

    def _ask(self, trial_id: int, params: Mapping[str, Any], policy: Policy) -> None:
        self._storage.set_trial_params(trial_id, params, self.distributions)
        self._asked.add(policy.digest)

    def _sample(self, number: int, trial_id: int) -> tuple[dict[str, Any], Policy]:
        params: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            trial = self._storage.get_trial(trial_id)
            before, params = params, self._draw(self._make(seed_of(self._seed, f"ask {number} {attempt}")), trial)
            policy = self._space.policy(params)
            if params == before or policy.digest not in self._asked:  # the same: its draws depend on the number alone
                break
        return params, policy

    def _draw(self, sampler: optuna.samplers.BaseSampler, trial: FrozenTrial) -> dict[str, Any]:
        study = self._study
        study._thread_local.cached_all_trials = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler.before_trial(study, trial)
            drawn = sampler.sample_relative(study, trial, dict(self.distributions))
            trial = self._storage.get_trial(trial._trial_id)  # with what the sampler has noted on it
            return {
                name: drawn[name] if name in drawn else sampler.sample_independent(study, trial, name, kind)
                for name, kind in self.distributions.items()
            }
