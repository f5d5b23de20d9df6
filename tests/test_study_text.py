"""What is kept packed of a study's page is what would be written anew."""

import gzip
import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.storage.study_text import PackedStudy, StudyText, gzipped

DRAWN = {"ratio": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", 'quo"te ≥'])}


def ended(number: int, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    params = {"ratio": 1 / (number + 1), "kind": 'quo"te ≥'}
    value = 1.5 * number if state is TrialState.COMPLETE else None
    made = create_trial(state=state, value=value, params=params, distributions=DRAWN, user_attrs=attrs)
    made.number, made._trial_id = number, number + 100
    return made


class Counted(StudyText):
    """Which trials it wrote."""

    def __init__(self, **attrs: Any) -> None:
        study = FrozenStudy("study", StudyDirection.MINIMIZE, {}, attrs, 1)
        super().__init__(study, {"name": "study", "trials": [], "best_trials": []}, {})
        self.wrote: list[int] = []

    def beginning(self, trials: Iterable[FrozenTrial], first: int = 0) -> Iterator[str]:
        asked = list(trials)
        self.wrote += [trial.number for trial in asked]
        return super().beginning(asked, first)


def anew(trials: list[FrozenTrial], **attrs: Any) -> Any:
    text = Counted(**attrs)
    return json.loads("".join([*text.beginning(trials), *text.end(trials[:1])]))


def shown(packed: PackedStudy, text: StudyText, trials: list[FrozenTrial]) -> Any:
    return json.loads(gzip.decompress(packed.answer(text, trials, trials[:1])))


def running(number: int) -> FrozenTrial:
    return ended(number, TrialState.RUNNING)


def test_an_empty_study() -> None:
    assert shown(PackedStudy(), Counted(), []) == {"trials": [], "best_trials": [], "name": "study"}


def test_ended_trials_are_written_once() -> None:
    packed, trials = PackedStudy(), [ended(0), ended(1, TrialState.FAIL), running(2), ended(3)]
    first = Counted()
    packed.prepare(first, trials)
    assert first.wrote == [0, 1]
    for later, wrote in (
        (trials, [2, 3]),
        ([*trials[:2], ended(2), trials[3], running(4)], [2, 3, 4]),
    ):
        text = Counted()
        assert shown(packed, text, later) == anew(later)
        assert text.wrote == wrote
    last = Counted()
    packed.answer(last, later, [])
    assert last.wrote == [4]


@pytest.mark.parametrize("later", [[ended(0), ended(1), ended(2)], [ended(0)], []])
def test_other_trials(later: list[FrozenTrial]) -> None:
    """As of a study that was deleted and made anew."""
    packed = PackedStudy()
    packed.prepare(Counted(), [ended(0, old=1), ended(1, old=2)])
    assert shown(packed, Counted(), later) == anew(later)


def test_a_trial_that_came_between() -> None:
    packed, trials = PackedStudy(), [ended(0), ended(2)]
    packed.prepare(Counted(), trials)
    trials.insert(1, ended(1))
    assert [trial["number"] for trial in shown(packed, Counted(), trials)["trials"]] == [0, 1, 2]


def test_a_note_on_a_trial_is_shown() -> None:
    packed, trials = PackedStudy(), [ended(0), ended(1)]
    packed.prepare(Counted(), trials)
    note = {"dashboard:100:note_ver": 1, "dashboard:100:note_str:0": "seen"}
    found = shown(packed, Counted(**note), trials)
    assert found == anew(trials, **note)
    assert found["trials"][0]["note"]["body"] == "seen"
    assert shown(packed, Counted(), trials)["trials"][0]["note"]["body"] == ""


def test_after_a_trial_that_cannot_be_written() -> None:
    packed, trials = PackedStudy(), [ended(0), ended(1, what=object())]
    with pytest.raises(TypeError):
        packed.prepare(Counted(), trials)
    well = [trials[0], ended(1)]
    assert shown(packed, Counted(), well) == anew(well)


def test_many_threads() -> None:
    packed, trials, wrong = PackedStudy(), [ended(number) for number in range(300)], list[object]()
    expected = {count: anew(trials[:count]) for count in range(20, 301, 20)}

    def look(step: int) -> None:
        for count in list(expected)[::step]:
            if (found := shown(packed, Counted(), trials[:count])) != expected[count]:
                wrong.append(found)

    threads = [threading.Thread(target=look, args=(step,)) for step in (1, -1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_text_of_several_pieces() -> None:
    pieces = ["ä" * 700_000, "b" * 700_000, "", "c"]
    assert gzip.decompress(gzipped(iter(pieces))).decode() == "".join(pieces)


@pytest.mark.parametrize("older", [[ended(0)], [ended(0), running(1), running(2)]])
def test_who_read_the_study_before_gets_it_as_it_was(older: list[FrozenTrial]) -> None:
    packed, trials = PackedStudy(), [ended(0), ended(1)]
    packed.prepare(Counted(), trials)
    older = [trials[0], *older[1:]]
    packed.prepare(Counted(), older)
    assert shown(packed, Counted(), older) == anew(older)
    text = Counted()
    assert shown(packed, text, trials) == anew(trials)
    assert text.wrote == []  # what is kept is kept
