"""The study database: rows are Optuna's, a trial is one transaction at each end, and nothing half-done stays."""

import doctest
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState, create_trial
from sqlalchemy import event, text

from search.storage import Storage, open_storage
from spaces.errors import StudyError
from tests.postgres import fresh_database

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "layers.0/ratio": FloatDistribution(0.0, 0.9, step=0.1),
    "layers.0/bits": IntDistribution(2, 8),
    "layers.0/kind": CategoricalDistribution(["none", None, True, 3]),
    "temperature": FloatDistribution(1.0, 20.0, log=True),
}
PARAMS: list[dict[str, Any]] = [
    {"layers.0/ratio": 0.3, "layers.0/bits": 4, "layers.0/kind": "none", "temperature": 4.0},
    {"layers.0/ratio": 0.9, "layers.0/bits": 8, "layers.0/kind": None, "temperature": 1.0 / 3 + 1},
    {"layers.0/ratio": 0.0, "layers.0/bits": 2, "layers.0/kind": True, "temperature": 20.0},
]
USER = {"policy": "ab" * 32, "origin": "uniform", "text": "größer ≥ 1\0", "nested": {"a": [1, 2.5, None]}}
SYSTEM = {"nsga:generation": 3}
ENDS: list[tuple[TrialState, list[float] | None]] = [
    (TrialState.COMPLETE, [0.98, 695360.0]),
    (TrialState.PRUNED, [float("inf"), float("-inf")]),
    (TrialState.FAIL, None),
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, url: str) -> Iterator[Storage]:
    made = open_storage(url if request.param == "sqlite" else fresh_database(), create=True)
    yield made
    made.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study(DIRECTIONS, "digits")


def fill(storage: Storage, study_id: int) -> list[int]:
    ids = []
    for number, (params, (state, values)) in enumerate(zip(PARAMS, ENDS, strict=True)):
        ids.append(storage.start_trial(study_id, number, params, DISTRIBUTIONS, USER, SYSTEM, {"asked": number}))
        storage.finish_trial(ids[-1], state, values, {"rung": number, "origin": "told"}, {"told": [number]})
    return ids


def fill_as_optuna(storage: RDBStorage, study_id: int) -> None:
    for number, (params, (state, values)) in enumerate(zip(PARAMS, ENDS, strict=True)):
        running = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=DISTRIBUTIONS,
            user_attrs=USER,
            system_attrs=SYSTEM,
        )
        trial_id = storage.create_new_trial(study_id, running)
        storage.set_study_user_attr(study_id, "asked", number)
        storage.set_trial_user_attr(trial_id, "rung", number)
        storage.set_trial_user_attr(trial_id, "origin", "told")
        storage.set_trial_state_values(trial_id, state, values)
        storage.set_study_user_attr(study_id, "told", [number])


def close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def rows(file: Path) -> dict[str, list[str]]:
    """Every table's rows as Python shows them (1 is not 1.0), the two times of a trial left out."""
    with sqlite3.connect(file) as connection:
        connection.row_factory = sqlite3.Row
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        dump = {
            name: [
                repr({key: row[key] for key in row.keys() if not key.startswith("datetime")})  # noqa: SIM118
                for row in connection.execute(f"select * from {name} order by 1")
            ]
            for name in names
        }
    connection.close()
    return dump


class TestOptunaContract(StorageTestCase):
    """What Optuna asks of every storage, by its own tests."""

    @pytest.fixture
    def storage(self, url: str) -> Iterator[Storage]:
        made = open_storage(url, create=True)
        yield made
        made.close()


def test_rows_are_those_that_optuna_writes(tmp_path: Path) -> None:
    ours = open_storage(f"sqlite:///{tmp_path}/ours.db", create=True)
    theirs = RDBStorage(f"sqlite:///{tmp_path}/theirs.db")
    fill(ours, ours.create_new_study(DIRECTIONS, "digits"))
    fill_as_optuna(theirs, theirs.create_new_study(DIRECTIONS, "digits"))
    ours.close()
    close(theirs)

    written = rows(tmp_path / "ours.db")

    assert written == rows(tmp_path / "theirs.db")
    assert [len(written[name]) for name in ("trials", "trial_params", "trial_values")] == [3, 12, 4]


def test_trial_starts_and_ends(storage: Storage, study_id: int) -> None:
    trial_id = storage.start_trial(study_id, 0, PARAMS[0], DISTRIBUTIONS, USER, SYSTEM)
    running = storage.get_trial(trial_id)
    storage.finish_trial(trial_id, TrialState.COMPLETE, [0.98, 695360], {"rung": 1, "origin": "told"})
    told = storage.get_trial(trial_id)

    assert (running.state, running.values, running.datetime_complete) == (TrialState.RUNNING, None, None)
    assert running.params == PARAMS[0]
    assert running.distributions == DISTRIBUTIONS
    assert (running.user_attrs, running.system_attrs) == (USER, SYSTEM)
    assert (told.number, told.state, told.values) == (0, TrialState.COMPLETE, [0.98, 695360.0])
    assert told.user_attrs == {**USER, "rung": 1, "origin": "told"}
    assert told.datetime_start is not None
    assert told.datetime_complete is not None
    assert told.datetime_start <= told.datetime_complete


def test_study_attributes_are_put_with_the_trial(storage: Storage, study_id: int) -> None:
    storage.set_study_attrs(study_id, {"told": "never", "config": {"seed": 0}})
    fill(storage, study_id)

    assert storage.get_study_user_attrs(study_id) == {"config": {"seed": 0}, "asked": 2, "told": [2]}


def test_loaded_trials_are_those_that_optuna_loads(storage: Storage, study_id: int) -> None:
    fill(storage, study_id)
    storage.start_trial(study_id, 3, {}, {}, {}, {})
    other = storage.create_new_study(DIRECTIONS, "other")
    storage.create_new_trial(other, create_trial(state=TrialState.WAITING))
    study = optuna.load_study(study_name="digits", storage=storage)
    study.enqueue_trial({"temperature": 2.0})
    study.add_trial(create_trial(values=[1.0, 2.0], intermediate_values={0: 0.5, 7: float("inf")}))
    reference = RDBStorage(storage.url)
    expected = reference.get_all_trials(study_id)
    close(reference)

    loaded = storage.load_trials(study_id)

    assert [trial.number for trial in loaded] == list(range(6))
    assert loaded == expected
    assert [repr(trial.params) for trial in loaded] == [repr(trial.params) for trial in expected]
    assert storage.get_all_trials(study_id, states=(TrialState.RUNNING, TrialState.FAIL)) == expected[2:4]


def test_loading_takes_as_many_statements_for_many_trials_as_for_few(storage: Storage, study_id: int) -> None:
    statements: list[str] = []
    event.listen(
        storage.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: statements.append(statement)
    )
    counts = []
    for number in range(20):
        storage.start_trial(study_id, number, PARAMS[0], DISTRIBUTIONS, USER, SYSTEM)
        statements.clear()
        storage.load_trials(study_id)
        counts.append(len([statement for statement in statements if statement.startswith("SELECT")]))

    assert set(counts) == {6}


def test_start_and_end_are_few_statements_and_one_transaction_each(storage: Storage, study_id: int) -> None:
    commits: list[object] = []
    event.listen(storage.engine, "commit", commits.append)
    event.listen(storage.engine, "before_cursor_execute", lambda *_: statements.append(0))
    statements: list[int] = []
    trial_id = storage.start_trial(study_id, 0, PARAMS[0], DISTRIBUTIONS, USER, SYSTEM, {"a": 1, "b": 2})
    storage.finish_trial(trial_id, TrialState.COMPLETE, [1.0, 2.0], {"rung": 1}, {"a": 3, "c": 4})

    assert len(commits) == 2
    assert len(statements) <= 15


def test_optuna_reads_the_study(storage: Storage, study_id: int) -> None:
    fill(storage, study_id)
    study = optuna.load_study(study_name="digits", storage=storage)

    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert [trial.number for trial in study.best_trials] == [0]
    running = storage.start_trial(study_id, 3, PARAMS[1], DISTRIBUTIONS, {}, {})
    assert study.get_trials(deepcopy=False)[3].state is TrialState.RUNNING
    storage.finish_trial(running, TrialState.COMPLETE, [0.99, 5.0], {})
    assert [trial.number for trial in study.best_trials] == [3]


def test_a_trial_is_told_once(storage: Storage, study_id: int) -> None:
    trial_id = fill(storage, study_id)[0]
    before = storage.load_trials(study_id)

    with pytest.raises(StudyError, match="trial 0 is COMPLETE, not RUNNING"):
        storage.finish_trial(trial_id, TrialState.FAIL, None, {"rung": 9}, {"told": 9})
    with pytest.raises(StudyError, match="no trial has the id 12345"):
        storage.finish_trial(12345, TrialState.FAIL, None, {})

    assert storage.load_trials(study_id) == before
    assert storage.get_study_user_attrs(study_id)["told"] == [2]


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_wrong_number_is_refused(storage: Storage, study_id: int, number: int) -> None:
    fill(storage, study_id)

    with pytest.raises(StudyError, match=f"trial {number} cannot start.* 3 trials, so the next number is 3"):
        storage.start_trial(study_id, number, PARAMS[0], DISTRIBUTIONS, {}, {}, {"asked": 9})

    assert len(storage.load_trials(study_id)) == 3
    assert storage.get_study_user_attrs(study_id)["asked"] == 2


def test_a_missing_study_is_an_error(storage: Storage) -> None:
    for use in (
        lambda: storage.start_trial(77, 0, {}, {}, {}, {}),
        lambda: storage.set_study_attrs(77, {"a": 1}),
        lambda: storage.load_trials(77),
    ):
        with pytest.raises(StudyError, match="no study has the id 77"):
            use()


def test_names_of_parameters_and_distributions_must_agree(storage: Storage, study_id: int) -> None:
    with pytest.raises(StudyError, match=r"trial 0: .*layers\.0/bits"):
        storage.start_trial(study_id, 0, {"layers.0/bits": 4}, {}, {}, {})


@pytest.mark.parametrize(
    ("state", "values"),
    [
        (TrialState.RUNNING, None),
        (TrialState.COMPLETE, None),
        (TrialState.COMPLETE, [0.5, float("nan")]),
        (TrialState.FAIL, [0.5, 1.0]),
    ],
)
def test_values_must_fit_the_state(
    storage: Storage, study_id: int, state: TrialState, values: list[float] | None
) -> None:
    trial_id = storage.start_trial(study_id, 0, {}, {}, {}, {})

    with pytest.raises(StudyError, match=f"cannot end as {state.name}"):
        storage.finish_trial(trial_id, state, values, {})

    assert storage.get_trial(trial_id).state is TrialState.RUNNING


def test_half_a_transaction_is_not_stored(storage: Storage, study_id: int) -> None:
    trial_id = storage.start_trial(study_id, 0, {}, {}, {}, {})

    with pytest.raises(TypeError, match="not JSON serializable"):
        storage.start_trial(study_id, 1, PARAMS[0], DISTRIBUTIONS, {}, {}, {"asked": object()})
    with pytest.raises(TypeError, match="not JSON serializable"):
        storage.finish_trial(trial_id, TrialState.COMPLETE, [1.0, 2.0], {"rung": object()})

    (trial,) = storage.load_trials(study_id)
    assert (trial.state, trial.values) == (TrialState.RUNNING, None)


def test_a_database_that_goes_away_is_a_study_error(storage: Storage, study_id: int) -> None:
    with storage.engine.begin() as connection:
        connection.execute(text("drop table trial_values"))

    with pytest.raises(StudyError, match=r"loading the trials of study .* failed, .*trial_values") as caught:
        storage.load_trials(study_id)
    assert caught.value.__cause__ is not None


def test_the_example_in_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    runner.run(parser.get_doctest(Storage.__doc__ or "", {}, "Storage", None, None))

    assert (runner.failures, runner.tries) == (0, 8)
