"""A study's trials as the JSON that the dashboard's page asks for, and how that of ended ones is kept, packed."""

import copy
import json
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, Final

from optuna.distributions import BaseDistribution
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial
from optuna_dashboard._serializer import serialize_distribution, serialize_frozen_trial

if TYPE_CHECKING:
    from zlib import _Compress

_OF_TRIAL: Final = re.compile(r"dashboard:(?:artifacts:)?(\d+):")
_PIECE: Final = 1 << 20  # characters

ParameterTexts = dict[tuple[str, int], tuple[BaseDistribution, str, str]]
"""The JSON of a parameter before and after its values, by name and `id` of the distribution, which it keeps alive."""


class StudyText:
    """Writes the study of one answer.

    Of a trial, everything but the parameters is left to the dashboard's own function: the parameters are nine tenths
    of the text, and their distributions the same in every trial.

    Args:
        study: with its attributes, some of which are about trials: notes, artifacts.
        head: what the dashboard says of it, but for its trials.
        texts: of parameters that were written before; grows.
    """

    def __init__(self, study: FrozenStudy, head: dict[str, Any], texts: ParameterTexts) -> None:
        self._study_id = study._study_id
        self._head = {key: value for key, value in head.items() if key not in ("trials", "best_trials")}
        self._texts = texts
        self.about_trials: dict[int, dict[str, Any]] = {}
        for key, value in study.system_attrs.items():
            if about := _OF_TRIAL.match(key):
                self.about_trials.setdefault(int(about[1]), {})[key] = value

    def beginning(self, trials: Iterable[FrozenTrial], first: int = 0) -> Iterator[str]:
        """The answer up to and with these trials, of which the first one is the answer's so-manieth, from 0."""
        if first == 0:
            yield '{"trials":['
        for index, trial in enumerate(trials, first):
            yield ("," if index else "") + self._trial(trial)

    def end(self, best: Sequence[FrozenTrial]) -> Iterator[str]:
        """The answer behind its trials."""
        yield '],"best_trials":['
        yield ",".join(self._trial(trial) for trial in best)
        yield "]," + _compact(self._head)[1:]

    def _trial(self, trial: FrozenTrial) -> str:
        bare = copy.copy(trial)
        bare.params, bare.distributions = {}, {}
        rest = serialize_frozen_trial(self._study_id, bare, self.about_trials.get(trial._trial_id, {}))
        del rest["params"]
        drawn = trial.distributions
        params = ",".join(
            [self._param(name, value, drawn[name]) for name, value in trial.params.items() if name in drawn]
        )
        return f'{{"params":[{params}],{_compact(rest)[1:]}'

    def _param(self, name: str, value: Any, distribution: BaseDistribution) -> str:
        found = self._texts.get((name, id(distribution)))
        if found is None:  # it keeps the distribution, so that no other one gets its id
            found = distribution, *_around(name, distribution)
            self._texts[name, id(distribution)] = found
        shown = f'"{value}"' if type(value) in (int, float) else json.dumps(str(value))
        internal = distribution.to_internal_repr(value)
        _, before, after = found
        return f'{before}{internal!r},"param_external_value":{shown},"param_external_pytyp":"{type(value)}"{after}'


class PackedStudy:
    """A study's first trials, as far as all of them have ended, gzipped as its answer begins. They are written once.

    A packer that has taken them in is kept, and each answer goes on with a copy of it. What is kept of 2,000 trials x
    100 parameters is 1.5 MB, of 45 MB of text. Many threads may use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget({})

    def _forget(self, about_trials: dict[int, dict[str, Any]]) -> None:
        self._packer, self._packed = _packer(), list[bytes]()
        self._trials = 0
        self._first: FrozenTrial | None = None
        self._last: FrozenTrial | None = None
        self._about = about_trials

    def prepare(self, text: StudyText, trials: Sequence[FrozenTrial]) -> None:
        """Take in what has ended."""
        with self._lock:
            self._grow(text, trials)

    def answer(self, text: StudyText, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> bytes:
        """The whole answer, gzipped."""
        with self._lock:
            if not self._grow(text, trials):
                return gzipped(chain(text.beginning(trials), text.end(best)))
            packer, packed, count = self._packer.copy(), list(self._packed), self._trials
        packed += pack(packer, text.beginning(trials[count:], count))
        return b"".join([*packed, *pack(packer, text.end(best)), packer.flush()])

    def _grow(self, text: StudyText, trials: Sequence[FrozenTrial]) -> bool:
        """Take in what has ended; whether these trials begin with what is kept, and were not read before that."""
        if self._is_ahead_of(trials):
            return False
        last = trials[self._trials - 1] if 0 < self._trials <= len(trials) else None
        if last is not self._last or text.about_trials != self._about:  # other trials, or other notes on them
            self._forget(text.about_trials)
        new = list(takewhile(lambda trial: trial.state.is_finished(), trials[self._trials :]))
        if not new:
            return True
        try:
            self._packed += pack(self._packer, text.beginning(new, self._trials))
        except BaseException:  # the packer has taken some of them in
            self._forget({})
            raise
        self._trials, self._first, self._last = self._trials + len(new), trials[0], new[-1]
        return True

    def _is_ahead_of(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether these are trials of the same study, read when fewer had ended than are kept."""
        if not (self._trials and trials and trials[0] is self._first):
            return False
        return len(trials) < self._trials or not trials[self._trials - 1].state.is_finished()


def gzipped(pieces: Iterator[str]) -> bytes:
    """All of a text; there is never all of it unpacked at once."""
    packer = _packer()
    return b"".join([*pack(packer, pieces), packer.flush()])


def pack(packer: "_Compress", pieces: Iterator[str]) -> Iterator[bytes]:
    """What the packer gives back while it takes these pieces in."""
    waiting, length = list[str](), 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= _PIECE:
            yield packer.compress("".join(waiting).encode())
            waiting, length = [], 0
    yield packer.compress("".join(waiting).encode())


def _packer() -> "_Compress":
    return zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _around(name: str, distribution: BaseDistribution) -> tuple[str, str]:
    """The JSON of a parameter before its internal value and after its type."""
    drawn_from = _compact(serialize_distribution(distribution))
    return f'{{"name":{json.dumps(name)},"param_internal_value":', f',"distribution":{drawn_from}}}'
