"""The study database: rows are Optuna's, a batch of trials is one transaction, and nothing half-done stays."""

import doctest
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import Connection, MetaData, event, select, text

from search.storage import End, Start, Storage, open_storage
from spaces.errors import StudyError
from tests.stores import (
    DIRECTIONS,
    DISTRIBUTIONS,
    ENDS,
    KINDS,
    PARAMS,
    SYSTEM,
    USER,
    complete,
    empty,
    end,
    fill,
    fresh_url,
    start,
)


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made = open_storage(fresh_url(request.param, tmp_path), create=True)
    yield made
    made.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study(DIRECTIONS, "digits")


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


def close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def rows(storage: RDBStorage) -> dict[str, list[str]]:
    """Every table's rows as Python shows them (1 is not 1.0), the two times of a trial left out."""
    tables = MetaData()
    tables.reflect(storage.engine)
    dump = {}
    with storage.engine.connect() as connection:
        for name, table in tables.tables.items():
            columns = [column for column in table.columns if not column.name.startswith("datetime")]
            found = connection.execute(select(*columns).order_by(*table.primary_key, *columns[:1]))
            dump[name] = [repr(row._asdict()) for row in found]
    return dump


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_that_optuna_writes(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    for folder in folders:
        folder.mkdir()
    ours = open_storage(fresh_url(kind, folders[0]), create=True)
    theirs = open_storage(fresh_url(kind, folders[1]), create=True)
    fill(ours, ours.create_new_study(DIRECTIONS, "digits"))
    fill_as_optuna(theirs, RDBStorage.create_new_study(theirs, DIRECTIONS, "digits"))
    ours.name_objectives(1, ["accuracy", "bytes"])
    ours.name_objectives(1, ["others", "later"])
    theirs.set_study_system_attr(1, "study:metric_names", ["accuracy", "bytes"])

    written = rows(ours)

    assert written == rows(theirs)
    assert [len(written[name]) for name in ("trials", "trial_params", "trial_values")] == [3, 12, 4]
    close(ours)
    close(theirs)


def test_a_batch_stores_what_its_trials_would_one_by_one(storage: Storage, study_id: int) -> None:
    storage.write_trials(study_id, [start(0)], [])
    storage.write_trials(study_id, [start(number) for number in (1, 2, 3)], [end(0), end(2)])
    storage.write_trials(study_id, [], [end(1)])
    batched = storage.load_trials(study_id)
    other = storage.create_new_study(DIRECTIONS, "other")
    for number in range(4):
        storage.write_trials(other, [start(number)], [])
    for number in range(3):
        storage.write_trials(other, [], [end(number)])
    alone = storage.load_trials(other)

    assert [trial.state for trial in batched] == [*(state for state, _ in ENDS), TrialState.RUNNING]
    for one, two in zip(batched, alone, strict=True):
        assert (one.number, one.state, one.values) == (two.number, two.state, two.values)
        assert (one.params, one.distributions) == (two.params, two.distributions)
        assert (one.user_attrs, one.system_attrs) == (two.user_attrs, two.system_attrs)


def test_trial_starts_and_ends(storage: Storage, study_id: int) -> None:
    storage.write_trials(study_id, [start(0)], [])
    (running,) = storage.load_trials(study_id)
    storage.write_trials(study_id, [], [complete(0, [0.98, 695360], rung=1, origin="told")])
    told = storage.get_trial(running._trial_id)

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
    storage.set_study_attrs(study_id, {"asked": "never", "config": {"seed": 0}})
    fill(storage, study_id)

    assert storage.get_study_user_attrs(study_id) == {"config": {"seed": 0}, "asked": 2}
    with pytest.raises(KeyError):
        storage.get_study_user_attrs(study_id + 1)


def test_documents_are_of_any_size_and_go_with_the_study(storage: Storage, study_id: int) -> None:
    assert storage.load_document(study_id, "space") is None
    large = {"sites": ["größer \t\n\\N" * 5] * 20_000}
    storage.set_documents(study_id, {"space": large, "sensitivities": None})
    storage.set_documents(study_id, {"sensitivities": [1.5]})

    assert len(json.dumps(large)) > 1_000_000
    assert storage.load_document(study_id, "space") == large
    assert storage.load_document(study_id, "sensitivities") == [1.5]
    assert storage.load_document(study_id, "other") is None
    storage.delete_study(study_id)
    assert storage.load_document(study_id, "space") is None
    assert storage.get_all_studies() == []


def test_a_new_study_has_nothing_of_a_deleted_one_with_its_id(storage: Storage, study_id: int) -> None:
    storage.set_documents(study_id, {"space": 1})
    storage.write_trials(study_id, [start(0)], [])
    RDBStorage.delete_study(storage, study_id)  # by Optuna alone: our tables still hold its rows
    new = storage.create_new_study(DIRECTIONS, "digits")
    if new != study_id:  # only SQLite gives the id of the last study again
        return
    assert storage.load_document(new, "space") is None
    with pytest.raises(StudyError, match=r"trials \[0\] cannot end"):
        storage.write_trials(new, [], [end(0)])


def test_a_study_is_made_with_nothing_left_or_not_at_all(storage: Storage, study_id: int) -> None:
    """Who made a study may lose its connection before what a deleted one left behind is forgotten."""
    storage.set_documents(study_id, {"space": 1})

    def fail(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM slimfront_documents"):
            raise ZeroDivisionError

    event.listen(storage.engine, "before_cursor_execute", fail)
    with pytest.raises(ZeroDivisionError):
        storage.create_new_study(DIRECTIONS, "other")
    event.remove(storage.engine, "before_cursor_execute", fail)

    assert [study.study_name for study in storage.get_all_studies()] == ["digits"]
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study(DIRECTIONS, "digits")
    assert storage.load_document(study_id, "space") == 1


def test_trials_are_counted_without_being_loaded(storage: Storage, study_id: int) -> None:
    fill(storage, study_id)
    storage.write_trials(study_id, [start(3)], [])
    statements = counted(storage)

    assert storage.get_n_trials(study_id) == 4
    assert storage.get_n_trials(study_id, TrialState.RUNNING) == 1
    assert storage.get_n_trials(study_id, (TrialState.COMPLETE, TrialState.FAIL)) == 2
    assert sum("trial" in statement for statement in statements) == 3
    with pytest.raises(KeyError):
        storage.get_n_trials(study_id + 1)


def test_the_guard_is_asked_in_the_same_transaction(storage: Storage, study_id: int) -> None:
    def refuse(connection: Connection) -> None:
        connection.execute(text("update studies set study_name = 'not stored'"))
        raise StudyError("no longer yours")

    writes: list[Callable[[], None]] = [
        lambda: storage.write_trials(study_id, [start(0)], [], refuse),
        lambda: storage.set_study_attrs(study_id, {"a": 1}, refuse),
        lambda: storage.set_documents(study_id, {"a": 1}, refuse),
        lambda: storage.make_outcomes(study_id, refuse),
    ]
    for write in writes:
        with pytest.raises(StudyError, match="no longer yours"):
            write()

    assert storage.load_trials(study_id) == []
    assert storage.get_study_user_attrs(study_id) == {}
    assert storage.get_study_name_from_id(study_id) == "digits"


def test_loaded_trials_are_those_that_optuna_loads(storage: Storage, study_id: int) -> None:
    fill(storage, study_id)
    storage.write_trials(study_id, [empty(3)], [])
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


def counted(storage: Storage) -> list[str]:
    """The statements that are run from now on."""
    statements: list[str] = []
    event.listen(
        storage.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: statements.append(statement)
    )
    return statements


def test_loading_takes_as_many_statements_for_many_trials_as_for_few(storage: Storage, study_id: int) -> None:
    statements = counted(storage)
    counts = []
    for number in range(20):
        storage.write_trials(study_id, [start(number)], [])
        statements.clear()
        storage.load_trials(study_id)
        counts.append(len([statement for statement in statements if statement.startswith("SELECT")]))

    assert len(set(counts)) == 1
    assert counts[0] <= 8


def test_a_batch_is_few_statements_and_one_transaction(storage: Storage, study_id: int) -> None:
    commits: list[object] = []
    event.listen(storage.engine, "commit", commits.append)
    statements = counted(storage)
    storage.write_trials(study_id, [start(0, {"a": 1, "b": 2})], [])
    first = len(statements)
    storage.write_trials(study_id, [start(n, {"a": n}) for n in range(1, 31)], [end(n) for n in range(31)])

    assert len(commits) == 2
    assert first <= 10
    assert len(statements) - first <= 15


def test_optuna_reads_the_study(storage: Storage, study_id: int) -> None:
    fill(storage, study_id)
    study = optuna.load_study(study_name="digits", storage=storage)

    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert [trial.number for trial in study.best_trials] == [0]
    storage.write_trials(study_id, [start(3)], [])
    assert study.get_trials(deepcopy=False)[3].state is TrialState.RUNNING
    storage.write_trials(study_id, [], [complete(3, [0.99, 5.0])])
    assert [trial.number for trial in study.best_trials] == [3]


def test_a_trial_is_told_once(storage: Storage, study_id: int) -> None:
    fill(storage, study_id)
    storage.write_trials(study_id, [start(3)], [])
    before = storage.load_trials(study_id)

    with pytest.raises(StudyError, match="trial 0 is COMPLETE, not RUNNING"):
        storage.write_trials(study_id, [start(4, {"told": 9})], [complete(3), complete(0)])
    with pytest.raises(StudyError, match=r"trials \[12345\] cannot end: study .* has none of these numbers"):
        storage.write_trials(study_id, [], [complete(3), complete(12345)])
    with pytest.raises(StudyError, match=r"trials \[3, 3\] cannot end: one is told twice"):
        storage.write_trials(study_id, [], [complete(3), complete(3)])

    assert storage.load_trials(study_id) == before
    assert storage.get_study_user_attrs(study_id) == {"asked": 2}


def test_running_trials_of_another_process_can_be_told(storage: Storage, study_id: int) -> None:
    storage.write_trials(study_id, [start(0), start(1)], [])
    other = open_storage(storage.url, create=False)
    other.write_trials(study_id, [start(2)], [end(0), end(2)])
    storage.write_trials(study_id, [start(3)], [end(1), end(3)])
    with pytest.raises(StudyError, match="trial 1 is PRUNED, not RUNNING"):
        other.write_trials(study_id, [], [end(1)])
    other.close()

    assert [trial.state for trial in storage.load_trials(study_id)] == [ENDS[n % 3][0] for n in range(4)]


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_wrong_number_is_refused(storage: Storage, study_id: int, number: int) -> None:
    fill(storage, study_id)

    with pytest.raises(StudyError, match=f"trial {number} cannot start.* 3 trials, so the next number is 3"):
        storage.write_trials(study_id, [start(number, {"asked": 9})], [])
    with pytest.raises(StudyError, match=r"trials \[3, 5\] cannot start together"):
        storage.write_trials(study_id, [start(3), start(5)], [])

    assert len(storage.load_trials(study_id)) == 3
    assert storage.get_study_user_attrs(study_id)["asked"] == 2


def test_a_missing_study_is_an_error(storage: Storage) -> None:
    for use in (
        lambda: storage.write_trials(77, [empty(0)], []),
        lambda: storage.set_study_attrs(77, {"a": 1}),
        lambda: storage.set_documents(77, {"a": 1}),
        lambda: storage.make_outcomes(77),
        lambda: storage.name_objectives(77, ["a"]),
        lambda: storage.load_trials(77),
    ):
        with pytest.raises(StudyError, match="no study has the id 77"):
            use()


def test_names_of_parameters_and_distributions_must_agree(storage: Storage, study_id: int) -> None:
    with pytest.raises(StudyError, match=r"trial 0: .*layers\.0/bits"):
        storage.write_trials(study_id, [Start(0, {"layers.0/bits": 4}, {}, {}, {})], [])


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
    storage.write_trials(study_id, [empty(0)], [])

    with pytest.raises(StudyError, match=f"trial 0 cannot end as {state.name}"):
        storage.write_trials(study_id, [], [End(0, state, values, {})])

    assert storage.load_trials(study_id)[0].state is TrialState.RUNNING


def test_half_a_batch_is_not_stored(storage: Storage, study_id: int) -> None:
    storage.write_trials(study_id, [empty(0)], [])

    with pytest.raises(TypeError, match="not JSON serializable"):
        storage.write_trials(study_id, [start(1, {"asked": object()})], [])
    with pytest.raises(TypeError, match="not JSON serializable"):
        storage.write_trials(study_id, [start(1)], [complete(0, rung=object())])

    (trial,) = storage.load_trials(study_id)
    assert (trial.state, trial.values) == (TrialState.RUNNING, None)


def test_a_missing_table_is_a_study_error_at_once(storage: Storage, study_id: int) -> None:
    storage.patience = 60.0
    with storage.engine.begin() as connection:
        connection.execute(text("drop table trial_values"))

    with pytest.raises(StudyError, match=r"loading the trials of study .* failed, .*trial_values") as caught:
        storage.load_trials(study_id)
    assert caught.value.__cause__ is not None


def test_the_example_in_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    runner.run(parser.get_doctest(Storage.__doc__ or "", {}, "Storage", None, None))

    assert (runner.failures, runner.tries) == (0, 9)
