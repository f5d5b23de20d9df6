"""What the dashboard's study page asks for every few seconds, answered from memory.

The answers are those of Optuna Dashboard's own views, and mostly put together by its own functions. Its views walk all
trials, parameters and distributions for every answer; here nothing is looked at again that cannot have changed.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import le
from typing import Any, Final

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study, StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard._form_widget import get_form_widgets_json
from optuna_dashboard._inmemory_cache import InMemoryCache, get_cached_extra_study_property
from optuna_dashboard._serializer import serialize_study_detail

from search.storage.study_text import PackedStudy, ParameterTexts, StudyText
from search.storage.watching import Watched, WatchingStorage

_PREFERENTIAL: Final = "preference:is_preferential"
_GROWN: Final = 1.1


@dataclass
class _Memory:
    """What was worked out about a study, from its making on.

    Attributes:
        looked_at: how many of its ended trials are in what follows.
        complete: how many of them are COMPLETE.
        best: the COMPLETE ones that no other dominates, with their values, all to be minimized.
        said: what the ended trials say of parameters and attributes; `news` are those that said something first.
        extras: what the dashboard makes of such trials, and of which ones it did.
        texts: what is written of a parameter again and again.
        packed: what is kept of an answer with all trials.
        importances: how many COMPLETE trials they are of, and the answer.
    """

    making: int
    looked_at: int = 0
    complete: int = 0
    best: list[tuple[tuple[float, ...], FrozenTrial]] = field(default_factory=list)
    said: set[object] = field(default_factory=set)
    news: list[FrozenTrial] = field(default_factory=list)
    extras: tuple[list[FrozenTrial], tuple[Any, ...]] | None = None
    texts: ParameterTexts = field(default_factory=dict)
    packed: PackedStudy = field(default_factory=PackedStudy)
    importances: tuple[int, list[list[dict[str, Any]]]] | None = None

    def look(self, ended: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> None:
        """Take in the ended trials that are not yet."""
        for trial in ended[self.looked_at :]:
            if not (says := _says(trial)) <= self.said:
                self.said |= says
                self.news.append(trial)
            if trial.state is TrialState.COMPLETE:
                self.complete += 1
                self._compare(trial, directions)
        self.looked_at = len(ended)

    def _compare(self, trial: FrozenTrial, directions: Sequence[StudyDirection]) -> None:
        signs = [-1 if direction is StudyDirection.MAXIMIZE else 1 for direction in directions]
        values = tuple(sign * value for sign, value in zip(signs, trial.values, strict=True))
        if not any(all(map(le, other, values)) and other != values for other, _ in self.best):
            self.best = [one for one in self.best if one[0] == values or not all(map(le, values, one[0]))]
            self.best.append((values, trial))


@dataclass(frozen=True)
class _Found:
    """What an answer is made of."""

    text: StudyText
    watched: Watched
    best: Sequence[FrozenTrial]
    packed: PackedStudy


class StudyPage:
    """Answers for the page of a study; many threads may ask.

    Args:
        storage: where the studies are.
    """

    def __init__(self, storage: WatchingStorage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._memories: dict[int, _Memory] = {}

    def detail(self, study_id: int, after: int) -> Iterator[str] | None:
        """The study, with its trials from this index on, as JSON in pieces.

        Returns:
            None for what is left to the dashboard: there is no such study, or a human is asked about its trials.

        Raises:
            StudyError: the database failed.
        """
        if (found := self._find(study_id)) is None:
            return None
        return chain(found.text.beginning(found.watched.trials[after:]), found.text.end(found.best))

    def packed(self, study_id: int) -> bytes | None:
        """The study with all its trials, as gzipped JSON; for the rest see `detail`."""
        if (found := self._find(study_id)) is None:
            return None
        return found.packed.answer(found.text, found.watched.trials, found.best)

    def prepare(self, study_id: int) -> None:
        """Work out ahead what the page of a study asks for first, if there is such a study.

        Raises:
            StudyError: the database failed.
        """
        self.importances(study_id)

    def _find(self, study_id: int) -> "_Found | None":
        study = self._storage.study(study_id)
        if study is None:
            self._memories.pop(study_id, None)
            return None
        if _PREFERENTIAL in study.system_attrs or get_form_widgets_json(study.system_attrs):
            return None
        try:
            watched = self._storage.watch(study_id)
        except KeyError:
            return None
        with self._lock:
            memory = self._memory(study, watched)
            best = sorted((trial for _, trial in memory.best), key=lambda trial: trial.number)
            extras = _extras(memory, study_id, watched)
        only_first = best[:1] if len(study.directions) == 1 else best
        head = serialize_study_detail(study, [], [], *extras, get_plotly_graph_objects(study.system_attrs), [])
        return _Found(StudyText(study, head, memory.texts), watched, only_first, memory.packed)

    def importances(self, study_id: int) -> list[list[dict[str, Any]]] | None:
        """How much each parameter matters, for each objective, as the dashboard lists it.

        The page asks again for every trial that ends, and the answer is work for seconds: while trials run, it is
        worked out again once there are a tenth more than the last time.

        Returns:
            None for what is left to the dashboard: there is no such study, or it cannot be said.

        Raises:
            StudyError: the database failed.
        """
        if (found := self._find(study_id)) is not None:  # the page asks for both, and is drawn without importances
            found.packed.prepare(found.text, found.watched.trials)
        study = self._storage.study(study_id)
        if study is None:
            return None
        try:
            with self._working:  # whoever asks meanwhile gets the same answer
                return self._importances(study, self._storage.watch(study_id))
        except (KeyError, ValueError):
            return None

    def _importances(self, study: FrozenStudy, watched: Watched) -> list[list[dict[str, Any]]]:
        with self._lock:
            memory = self._memory(study, watched)
            kept, complete = memory.importances, memory.complete
            union = _extras(memory, study._study_id, watched)[1]
        if kept is not None:
            rests = len(watched.ended) == len(watched.trials)
            if complete == kept[0] or (complete < kept[0] * _GROWN and not rests):
                return kept[1]
        found = _importances(self._storage, study, watched, complete, union)
        memory.importances = complete, found
        return found

    def _memory(self, study: FrozenStudy, watched: Watched) -> _Memory:
        memory = self._memories.get(study._study_id)
        if memory is None or memory.making < watched.making:
            memory = self._memories[study._study_id] = _Memory(watched.making)
        if memory.making == watched.making:  # else another thread has seen the study made anew meanwhile
            memory.look(watched.ended, study.directions)
        return memory


def _says(trial: FrozenTrial) -> set[object]:
    """What a trial says of the study's parameters and attributes; another one that says the same adds nothing."""
    says: set[object] = {(key, _is_number(value)) for key, value in trial.user_attrs.items()}
    if trial.state is not TrialState.FAIL:
        says.update((name, id(distribution)) for name, distribution in trial.distributions.items())
        says.add((tuple(trial.distributions), bool(trial.intermediate_values)))
    return says


def _is_number(value: object) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else "other"


def _extras(memory: _Memory, study_id: int, watched: Watched) -> tuple[Any, ...]:
    """Search spaces, attributes and whether there are intermediate values, as the dashboard finds them."""
    news, said = list(memory.news), set[object]()
    for trial in watched.trials:
        if not trial.state.is_finished() and not (says := _says(trial)) <= memory.said | said:
            said |= says
            news.append(trial)
    if memory.extras is None or memory.extras[0] != news:
        news.sort(key=lambda trial: trial.number)
        memory.extras = news, get_cached_extra_study_property(InMemoryCache(), study_id, news)
    return memory.extras[1]


def _importances(
    storage: WatchingStorage, study: FrozenStudy, watched: Watched, complete: int, union: list[tuple[str, Any]]
) -> list[list[dict[str, Any]]]:
    if complete <= 1:
        return [[] for _ in study.directions]
    kinds = {
        name: type(drawn).__name__ for trial in reversed(watched.trials) for name, drawn in trial.distributions.items()
    }
    loaded = Study(study.study_name, storage)
    found = []
    for objective, direction in enumerate(study.directions):
        sign = -1 if direction is StudyDirection.MAXIMIZE else 1

        def target(trial: FrozenTrial, objective: int = objective, sign: int = sign) -> float:
            return sign * float(trial.values[objective])

        with warnings.catch_warnings():  # about signs, which are turned here, and about studies that are too young
            warnings.simplefilter("ignore", UserWarning)
            shares = get_param_importances(loaded, evaluator=PedAnovaImportanceEvaluator(), target=target)
        shares = shares or {name: 1 / len(union) for name, _ in union}
        found.append(
            [{"name": name, "importance": share, "distribution": kinds[name]} for name, share in shares.items()]
        )
    return found
