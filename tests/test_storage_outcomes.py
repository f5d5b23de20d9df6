"""Outcomes come back as they were stored, with their trial or not at all, and Optuna does not mind their table."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event, update

from objectives.racing import Outcomes
from search.storage import End, Storage, open_storage
from search.storage.outcomes import MOST_LOSS, decode, encode
from search.storage.rows import TRIALS
from spaces.errors import StudyError
from tests.stores import DIRECTIONS, MARIADB_SLOWLY, complete, empty, fresh_url


@pytest.fixture(params=MARIADB_SLOWLY)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made = open_storage(fresh_url(request.param, tmp_path), create=True)
    yield made
    made.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    found = storage.create_new_study(DIRECTIONS, "digits")
    storage.make_outcomes(found)
    return found


def drawn(samples: int, seed: int = 0, *, binary: bool = True) -> Outcomes:
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 2, samples) if binary else draw.normal(size=samples)
    return Outcomes(values.astype(np.float32), draw.exponential(size=samples).astype(np.float32))


def told(number: int, outcomes: Mapping[int, Outcomes], **attrs: Any) -> End:
    return replace(complete(number, **attrs), outcomes=outcomes)


def same(one: Outcomes, other: Outcomes) -> bool:
    return np.array_equal(one.values, other.values) and np.array_equal(one.losses, other.losses)


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 1500, 20_001])
@pytest.mark.parametrize("binary", [True, False])
def test_values_are_exact_and_losses_float16(samples: int, binary: bool) -> None:
    given = drawn(samples, binary=binary)
    values, losses = encode(given)
    assert len(losses) == 2 * samples
    assert len(values) == (-(-samples // 8) if binary else 4 * samples)
    found = decode(values, losses)
    assert {str(found.values.dtype), str(found.losses.dtype)} == {"float32"}
    assert np.array_equal(found.values, given.values)
    assert np.array_equal(found.losses, given.losses.astype(np.float16).astype(np.float32))
    assert same(decode(*encode(found)), found)  # once rounded they stay


def test_losses_beyond_float16_are_its_largest() -> None:
    given = Outcomes(np.zeros(5, np.float32), np.array([1e30, np.inf, -np.inf, np.nan, 65519.0], np.float32))
    assert decode(*encode(given)).losses.tolist() == [MOST_LOSS, MOST_LOSS, -MOST_LOSS, MOST_LOSS, MOST_LOSS]


def test_they_are_loaded_by_trial_and_rung_in_one_statement(storage: Storage, study_id: int) -> None:
    given = {0: drawn(100, 1), 2: drawn(100, 2, binary=False)}
    for number in range(3):
        storage.write_trials(study_id, [empty(number)], [told(number, {} if number == 1 else given)])
    statements: list[str] = []
    event.listen(storage.engine, "before_cursor_execute", lambda _c, _cursor, text, *_: statements.append(text))
    found = storage.load_outcomes(study_id)
    assert sum("FROM slimfront_outcomes" in text for text in statements) == 1
    assert found.keys() == {0, 2}
    for rungs in found.values():
        assert rungs.keys() == {0, 2}
        assert all(same(rungs[rung], decode(*encode(given[rung]))) for rung in rungs)


def test_large_ones_fit(storage: Storage, study_id: int) -> None:
    given = drawn(200_000, binary=False)
    storage.write_trials(study_id, [empty(0)], [told(0, {0: given})])
    assert same(storage.load_outcomes(study_id)[0][0], decode(*encode(given)))


def test_they_are_stored_with_the_trials_end_or_not_at_all(storage: Storage, study_id: int) -> None:
    storage.write_trials(study_id, [empty(0)], [])
    with pytest.raises(StudyError, match="has none of these numbers"):
        storage.write_trials(study_id, [], [told(0, {0: drawn(9)}), told(1, {})])
    assert storage.load_outcomes(study_id) == {}
    storage.write_trials(study_id, [], [told(0, {0: drawn(9)})])
    with pytest.raises(StudyError, match="not RUNNING"):
        storage.write_trials(study_id, [], [told(0, {0: drawn(9, 5)})])
    assert same(storage.load_outcomes(study_id)[0][0], decode(*encode(drawn(9))))


def test_studies_have_their_own_and_begin_with_none(storage: Storage, study_id: int) -> None:
    other = storage.create_new_study(DIRECTIONS, "other")
    for study, seed in ((study_id, 1), (other, 2)):
        storage.make_outcomes(study)
        storage.write_trials(study, [empty(0)], [told(0, {0: drawn(9, seed)})])
    assert same(storage.load_outcomes(study_id)[0][0], decode(*encode(drawn(9, 1))))
    storage.make_outcomes(study_id)
    assert storage.load_outcomes(study_id).keys() == {0}  # what was told stays
    with storage.engine.begin() as connection:  # as where the id of a deleted study is given again
        connection.execute(update(TRIALS).where(TRIALS.c.study_id == study_id).values(state=TrialState.RUNNING))
    storage.make_outcomes(study_id)
    assert storage.load_outcomes(study_id) == {}
    assert same(storage.load_outcomes(other)[0][0], decode(*encode(drawn(9, 2))))


def test_what_is_there_of_a_trial_is_replaced(storage: Storage, study_id: int) -> None:
    storage.write_trials(study_id, [empty(0)], [told(0, {0: drawn(9), 1: drawn(9, 1)})])
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("update trials set state = 'RUNNING'")
        connection.exec_driver_sql("delete from trial_values")
    storage.write_trials(study_id, [], [told(0, {1: drawn(9, 7)})])
    found = storage.load_outcomes(study_id)[0]
    assert found.keys() == {1}
    assert same(found[1], decode(*encode(drawn(9, 7))))


def test_a_store_without_the_table_has_none(storage: Storage) -> None:
    study_id = storage.create_new_study(DIRECTIONS, "digits")
    assert storage.load_outcomes(study_id) == {}
    storage.write_trials(study_id, [empty(0)], [complete(0)])  # nor does anyone need it


def test_optuna_does_not_mind(storage: Storage, study_id: int) -> None:
    storage.write_trials(study_id, [empty(0)], [told(0, {0: drawn(9)}, rung=1)])
    again = optuna.storages.RDBStorage(storage.url)
    study = optuna.load_study(study_name="digits", storage=again)
    assert study.best_trials[0].user_attrs == {"rung": 1}
    optuna.delete_study(study_name="digits", storage=again)
    again.remove_session()
    again.engine.dispose()
    assert storage.load_outcomes(study_id)  # a study that gets this id begins with `make_outcomes`
