"""What a search decides: which candidate is next, and what was told; whoever has the candidates scored."""

from collections.abc import Callable, Sequence
from typing import Protocol

from sqlalchemy import Connection

from search.config import Config
from search.continuing import Continuing
from search.goals import Patience
from search.pareto import Box
from search.rungs import History
from search.samplers.proposer import Proposer
from search.study import Asked, Proposal, Trials
from search.tasks import Result, ScoreTask

SAMPLER_PREFIX = "sampler:"
ASKED_AT_ONCE = 64  # repeats are told at once, so that a step without a bound might never end


class Watcher(Protocol):
    """Sees what is told."""

    def say(self, words: str) -> None:
        """Take a line for people."""

    def show(self, values: tuple[float, float] | None) -> None:
        """Take one more trial: its accuracy and bytes, None for a failure."""


class Driver:
    """Replays what was told, asks for candidates, and tells results in the order in which they were asked.

    Candidate i is asked when exactly 0 .. i - window have been told to the sampler and to the history that judges it,
    no matter what arrived early, so neither workers nor restarts change a study.

    Args:
        config: the search.
        proposer: who proposes policies; it has seen nothing.
        first: how many candidates it proposes before it asks its sampler.
        trials: those of the study, up to now.
        box: where the hypervolume of the front is taken.
        guard: checks in every transaction that the study is still ours to write.
    """

    def __init__(
        self,
        config: Config,
        proposer: Proposer,
        first: int,
        trials: Trials,
        box: Box,
        guard: Callable[[Connection], None],
    ) -> None:
        self._config, self._proposer, self._first, self._trials, self._guard = config, proposer, first, trials, guard
        self._history, self._judged = _history(config), _history(config)  # of what is visible, and of all that is told
        self._continuing = Continuing(len(config.distillation.steps))
        self._visible = 0  # trials that the sampler and the history have been shown
        self._asked = 0  # trials replayed or asked in this launch
        self._arrived: dict[int, Result] = {}
        self._patience = Patience(config.budget.patience, box)
        self._reasons: set[str] = set()  # why trials failed, each said once
        for told in trials.finished():
            self._judge(told)

    @property
    def told(self) -> int:
        """Trials that were told."""
        return self._trials.told

    @property
    def ends(self) -> str:
        """Why the search ends before its budget is used; empty while it does not."""
        words = self._patience.words
        return f"{words}: the study ends with {self.budget} trials" if words else ""

    @property
    def budget(self) -> int:
        """Trials the study shall have: what was asked once is always told."""
        wanted = self._patience.trials(self._config.budget.trials, self._config.window)
        return max(wanted, self._trials.count)

    @property
    def finished(self) -> bool:
        """Whether the budget is used."""
        return self._trials.told >= self.budget

    def step(self, results: Sequence[Result], watcher: Watcher, *, asking: bool = True) -> list[ScoreTask]:
        """Tell what arrived, as far as there is no gap, and ask what may be asked then; both is stored when it returns.

        Args:
            results: of tasks that earlier steps gave.
            watcher: sees what is told.
            asking: whether candidates are asked.

        Returns:
            What is to be scored now. It may be nothing while the search is not finished and nothing runs: take the next
            step then.

        Raises:
            StudyError: the database failed, or the study is another driver's now; nothing of this step counts.
        """
        self._arrived.update({result.number: result for result in results})
        tasks: list[ScoreTask] = []
        shown: list[Asked] = []
        try:
            most = self._asked + ASKED_AT_ONCE
            while True:
                told = self._tell_in_order(watcher)
                asked = self._ask(tasks, most) if asking else False
                shown += told
                if not asked:
                    break
        finally:  # what arrived is kept also where the sampler fails
            self._trials.commit(self._guard)
        for one in shown:
            watcher.show(one.values)
        return tasks

    def _ask(self, tasks: list[ScoreTask], most: int) -> bool:
        """Ask what the window and the budget admit; whether anything was."""
        before = self._asked
        while self._asked < min(self.budget, self._trials.told + self._config.window, most):
            number = self._asked
            self._show_until(number - self._config.window)
            if number < self._trials.count:
                asked = self._trials[number]
                policy = self._proposer.replay(number, asked.params, asked.system_attrs)
            else:
                proposal = self._propose(number)
                policy = proposal.policy
                asked = self._trials.start(proposal, self._proposer.distributions, SAMPLER_PREFIX)
            self._asked += 1
            self._continuing.ask(asked.continues)
            if self._trials.first_with(number) == number and not asked.told:
                start = () if asked.continues is None else self._trials[asked.continues].rungs
                judgement = self._history.judges(always=asked.origin == "uniform")
                tasks.append(ScoreTask(number, policy, judgement, start))
        return self._asked > before

    def _propose(self, number: int) -> Proposal:
        """The next trial: it continues one that turned out strong, or is what the sampler proposes."""
        again = self._continuing.choose(number, self._history) if number >= self._first else None
        if again is None:
            return self._proposer.propose(number)
        params = self._trials[again].params
        return Proposal(self._proposer.replay(number, params, {}), params, "continued", {}, {}, again)

    def _show_until(self, number: int) -> None:
        """Let the sampler and the history see the told trials up to and with `number`."""
        while self._visible <= number:
            trial = self._trials[self._visible]
            self._proposer.tell(self._visible, trial.values, trial.rungs, stopped=trial.stopped)
            if trial.rungs:
                self._history.tell(trial.number, trial.rungs, self._trials.outcomes(trial.number), trial.stopped)
            self._continuing.tell(trial)
            self._trials.forget_outcomes(trial.number)
            self._visible += 1

    def _tell_in_order(self, watcher: Watcher) -> list[Asked]:
        """Tell what arrived, as far as there is no gap; a repeated policy is answered from memory."""
        shown = []
        while (number := self._trials.told) < self._asked:
            first = self._trials.first_with(number)
            if first == number and number not in self._arrived:
                break
            told = self._trials.repeat(first) if first < number else self._tell(self._arrived.pop(number), watcher)
            shown.append(told)
            self._judge(told)
            if self._patience.stopped == self._trials.told:
                watcher.say(self.ends)
        return shown

    def _tell(self, result: Result, watcher: Watcher) -> Asked:
        where = {"seconds": round(result.seconds, 3), "host": result.host, "machine": result.machine}
        if result.score is None:
            reason = result.error or "no reason was given"
            if reason not in self._reasons:
                self._reasons.add(reason)
                watcher.say(f"trial {result.number} failed: {reason}")
            return self._trials.fail(reason, where)
        kept = {
            rung.rung
            for rung in result.score.rungs
            if self._judged.keeps_outcomes(rung.rung, rung.accuracy, rung.bytes)
        }
        return self._trials.complete(result.score, where, kept)

    def _judge(self, told: Asked) -> None:
        """Judge the outcomes of the next trials, and patience, by what is told up to now, whoever has seen it."""
        if told.rungs:
            self._judged.tell(told.number, told.rungs, (), told.stopped)
        self._patience.tell(told.values, first=told.origin in ("uniform", "predicted"))


def _history(config: Config) -> History:
    return History(len(config.distillation.steps) + 1, config.distillation.share, config.racing.confidence)
