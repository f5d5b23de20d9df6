"""What the dashboard answers: the same as Optuna Dashboard does by itself, and quickly."""

import gzip
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import update

from search import lease
from search.dashboard_app import DashboardApp
from search.lease import Lease
from search.storage import End, Start, Storage, open_storage
from tests.wsgi import Answer, ask

DIRECTIONS = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
DRAWN: dict[str, BaseDistribution] = {
    **{f"layer{i}/ratio": FloatDistribution(0.0, 0.9, step=0.05) for i in range(50)},
    **{f"layer{i}/bits": IntDistribution(2, 8) for i in range(49)},
    "temperature": FloatDistribution(0.5, 20.0, log=True),
}


def begun(number: int, drawn: dict[str, BaseDistribution]) -> Start:
    rng = [((number + 1) * (i + 3) * 7919) % 97 / 97 for i in range(len(drawn))]
    params = {
        name: round(0.05 * int(19 * u), 2)
        if name.endswith("ratio")
        else 2 + int(7 * u)
        if name.endswith("bits")
        else 1 + u
        for (name, _), u in zip(drawn.items(), rng, strict=True)
    }
    return Start(number, params, drawn, {"origin": "sampler"}, {})


def done(number: int) -> End:
    accuracy, size = (number * 37 % 101) / 101, 1000.0 + number * 53 % 97
    return End(number, TrialState.COMPLETE, [accuracy, size], {"rung": 1, "rungs": [{"rung": 0}], "host": "one"})


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    made = open_storage(f"sqlite:///{tmp_path}/app.db", create=True)
    yield made
    made.close()


def searched(storage: Storage, *, trials: int = 12, running: int = 3, drawn: int = 8) -> int:
    """A study as a search leaves it in the middle."""
    study = optuna.create_study(storage=storage, study_name="searched", directions=["maximize", "minimize"])
    study.set_metric_names(["accuracy", "bytes"])
    some = dict(list(DRAWN.items())[-drawn:])
    starts = [begun(number, some) for number in range(trials + running)]
    storage.write_trials(study._study_id, starts, [done(number) for number in range(trials)])
    return study._study_id


def by_hand(storage: Storage, directions: int) -> int:
    """A study with all that Optuna and its dashboard can attach: spaces that change, notes, figures, states."""
    study = optuna.create_study(storage=storage, directions=DIRECTIONS[:directions])
    for number in range(9):
        trial = study.ask()
        trial.suggest_float("x", 0, 1 + number)
        trial.suggest_categorical("kind", ["a", None, True, 2.5, 'quo"te ≥'])
        if number % 3:
            trial.suggest_int(f"depth{number % 3}", 1, 3 + number)
        trial.set_user_attr("mixed", number if number % 2 else str(number))
        trial.set_user_attr("long", list(range(1000)))
        if directions == 1:
            trial.report(float("inf") if number else 0.5, 3)
            trial.report(0.25, 1)
        if number == 2:
            optuna_dashboard.save_note(trial, "a *note*\n" * 400)
        state = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED][number % 4]
        values = [float("-inf") if number == 8 else number % 3 + 0.5] * directions
        if number != 5:
            study.tell(trial, values if state is TrialState.COMPLETE else None, state=state)
    study.enqueue_trial({"x": 0.25})
    study.set_user_attr("about", {"nested": [1, 2]})
    optuna_dashboard.save_note(study, "about the study")
    optuna_dashboard.save_plotly_graph_object(study, optuna.visualization.plot_timeline(study))
    return study._study_id


def sorted_detail(answer: Answer) -> Any:
    """What is in it, whatever the order of what has none."""
    assert answer.status == 200, answer.body
    found = answer.json()
    found["union_user_attrs"].sort(key=lambda one: one["key"])
    for trial in found["best_trials"]:
        trial["params"].sort(key=lambda one: one["name"])
        trial["user_attrs"].sort(key=lambda one: one["key"])
    for space in ("union_search_space", "intersection_search_space"):
        for one in found[space]:
            one["distribution"].get("choices", []).sort(key=lambda choice: choice["value"])
        found[space].sort(key=json.dumps)
    return found


MAKERS: dict[str, Callable[[Storage], int]] = {
    "searched": searched,
    "nothing ended": lambda storage: searched(storage, trials=0),
    "at rest": lambda storage: searched(storage, running=0),
    "empty": lambda storage: searched(storage, trials=0, running=0),
    "1 objective by hand": lambda storage: by_hand(storage, 1),
    "2 objectives by hand": lambda storage: by_hand(storage, 2),
    "3 objectives by hand": lambda storage: by_hand(storage, 3),
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestTheSameAnswers:
    """A new Optuna Dashboard that answers otherwise fails here."""

    @pytest.mark.parametrize("made", MAKERS)
    @pytest.mark.parametrize("after", ["", "after=0", "after=7", "after=99"])
    def test_detail(self, storage: Storage, made: str, after: str) -> None:
        study_id = MAKERS[made](storage)
        theirs = ask(optuna_dashboard.wsgi(storage), f"/api/studies/{study_id}", after)
        ours = ask(DashboardApp(storage), f"/api/studies/{study_id}", after)
        assert sorted_detail(ours) == sorted_detail(theirs)
        assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]

    @pytest.mark.parametrize("made", [name for name in MAKERS if "hand" not in name])
    def test_importances(self, storage: Storage, made: str) -> None:
        path = f"/api/studies/{MAKERS[made](storage)}/param_importances"
        optuna_dashboard._importance.param_importance_cache.clear()
        theirs = ask(optuna_dashboard.wsgi(storage), path)
        ours = ask(DashboardApp(storage), path)
        assert (ours.status, ours.json()) == (theirs.status, theirs.json())

    @pytest.mark.parametrize(
        "path", ["/api/studies", "/csv/1", "/api/meta", "/api/studies/1/plot/pareto_front", "/static/bundle.js"]
    )
    def test_all_else(self, storage: Storage, path: str) -> None:
        searched(storage)
        apps = optuna_dashboard.wsgi(storage), DashboardApp(storage)
        theirs, ours = (ask(app, path, HTTP_ACCEPT_ENCODING="gzip") for app in apps)
        assert ours.status == theirs.status == 200
        assert ours.body == theirs.body

    @pytest.mark.parametrize(
        ("path", "query", "status"),
        [
            ("/api/studies/99", "after=0", 404),
            ("/api/studies/1", "after=-1", 400),
            ("/api/studies/1", "after=x", 500),
            ("/api/studies/99/param_importances", "", 404),
            ("/csv/99", "", 404),
            ("/api/nothing", "", 404),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_what_is_wrong(self, storage: Storage, path: str, query: str, status: int) -> None:
        searched(storage)
        theirs, ours = ask(optuna_dashboard.wsgi(storage), path, query), ask(DashboardApp(storage), path, query)
        assert (ours.status, ours.body) == (theirs.status, theirs.body)
        assert ours.status == status

    def test_a_study_that_people_judge_is_left_to_the_dashboard(self, storage: Storage) -> None:
        study_id = searched(storage, running=0)
        storage.set_study_system_attr(study_id, "preference:is_preferential", True)
        theirs = ask(optuna_dashboard.wsgi(storage), f"/api/studies/{study_id}")
        assert sorted_detail(ask(DashboardApp(storage), f"/api/studies/{study_id}")) == sorted_detail(theirs)


def test_artifacts(storage: Storage, tmp_path: Path) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    (tmp_path / "model.txt").write_text("packed")
    (tmp_path / "kept").mkdir()
    kept = FileSystemArtifactStore(tmp_path / "kept")
    artifact = upload_artifact(
        artifact_store=kept, file_path=str(tmp_path / "model.txt"), study_or_trial=trial, storage=storage
    )
    study.tell(trial, 1.0)
    app = DashboardApp(storage, kept)
    (shown,) = ask(app, f"/api/studies/{study._study_id}").json()["trials"]
    assert [one["artifact_id"] for one in shown["artifacts"]] == [artifact]
    assert ask(app, f"/artifacts/{study._study_id}/{trial._trial_id}/{artifact}").body == b"packed"


def test_it_is_packed_for_those_who_can_unpack(storage: Storage) -> None:
    path = f"/api/studies/{searched(storage)}"
    app = DashboardApp(storage)
    packed = ask(app, path, HTTP_ACCEPT_ENCODING="gzip, deflate")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == ask(app, path).body
    assert "Content-Encoding" not in ask(app, path).headers


def test_pages_that_are_open_see_what_is_new(storage: Storage) -> None:
    study_id = searched(storage, trials=12, running=1)
    app, path = DashboardApp(storage), f"/api/studies/{study_id}"
    assert len(ask(app, path).json()["trials"]) == 13
    storage.write_trials(study_id, [], [End(12, TrialState.COMPLETE, [2.0, 1.0], {"new": 1})])
    now = ask(app, path, "after=12").json()
    assert [trial["state"] for trial in now["trials"]] == ["Complete"]
    assert [trial["number"] for trial in now["best_trials"]] == [12]
    assert {"key": "new", "sortable": True} in now["union_user_attrs"]
    optuna_dashboard._note.save_note_with_version(storage, study_id, 13, 1, "seen")
    assert ask(app, path, "after=12").json()["trials"][0]["note"]["body"] == "seen"


def test_a_study_made_anew_shows_nothing_of_the_old_one(storage: Storage) -> None:
    study_id = searched(storage)
    app, path = DashboardApp(storage), f"/api/studies/{study_id}"
    old = ask(app, f"{path}/param_importances").json()
    assert len(ask(app, path).json()["best_trials"]) > 0
    storage.delete_study(study_id)
    assert ask(app, path).status == 404
    assert searched(storage, trials=12, running=0, drawn=5) == study_id
    now = ask(app, path).json()
    assert len(now["union_search_space"]) == 5
    assert ask(app, f"{path}/param_importances").json() != old


def test_importances_follow_the_search_from_afar(storage: Storage) -> None:
    """They take seconds in a large study: not for every trial."""
    study_id = searched(storage, trials=60, running=10)
    app, path = DashboardApp(storage), f"/api/studies/{study_id}/param_importances"
    first = ask(app, path).json()
    storage.write_trials(study_id, [], [done(60)])
    assert ask(app, path).json() == first
    storage.write_trials(study_id, [], [done(number) for number in range(61, 67)])
    later = ask(app, path).json()
    assert later != first
    storage.write_trials(study_id, [], [done(number) for number in range(67, 70)])
    assert ask(app, path).json() != later


class TestPreparing:
    def test_what_the_page_asks_for_is_there(self, storage: Storage) -> None:
        study_id = searched(storage)
        app = DashboardApp(storage)
        app.prepare(study_id).join()
        packed = ask(app, f"/api/studies/{study_id}", "after=0", HTTP_ACCEPT_ENCODING="gzip")
        assert gzip.decompress(packed.body) == ask(DashboardApp(storage), f"/api/studies/{study_id}").body

    def test_a_page_begins_it_and_is_the_dashboards_own(self, storage: Storage) -> None:
        path = f"/dashboard/studies/{searched(storage)}"
        theirs, ours = ask(optuna_dashboard.wsgi(storage), path), ask(DashboardApp(storage), path)
        for thread in threading.enumerate():
            if thread.name == "slimfront-page":
                thread.join()
        assert (ours.status, ours.body) == (theirs.status, theirs.body)

    @pytest.mark.parametrize("number", ["9" * 20, "9" * 5000])
    def test_a_number_that_no_study_can_have(self, storage: Storage, number: str) -> None:
        for path in (f"/dashboard/studies/{number}", f"/api/studies/{number}"):
            assert ask(DashboardApp(storage), path).status in (200, 400, 404)
        assert not [one for one in threading.enumerate() if one.name == "slimfront-page"]

    def test_where_there_is_nothing_or_no_database(self, storage: Storage) -> None:
        study_id = searched(storage)
        app = DashboardApp(storage)
        app.prepare(99).join()
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("drop table trial_values")
        app.prepare(study_id).join()  # an error of a thread is an error of the test


def send(app: Any, path: str, method: str, body: bytes) -> Answer:
    sent: dict[str, Any] = {
        "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
    }
    return ask(app, path, "", method, **sent)


class TestDeleting:
    def ask(self, app: Any, study_id: int) -> Answer:
        return send(app, f"/api/studies/{study_id}", "DELETE", b'{"remove_associated_artifacts": false}')

    def test_not_while_it_is_searched(self, storage: Storage) -> None:
        study_id = searched(storage)
        app = DashboardApp(storage)
        with Lease(storage, study_id):
            answer = self.ask(app, study_id)
            assert answer.status == 409
            words = f"study {study_id} is being searched by process {os.getpid()} on .* deleted at rest.*slimfront stop"
            assert re.search(words, answer.json()["reason"])
            assert len(storage.load_trials(study_id)) == 15
        assert self.ask(app, study_id).status == 204
        assert storage.get_all_studies() == []

    def test_one_that_is_not_there(self, storage: Storage) -> None:
        assert self.ask(DashboardApp(storage), 99).status == 404


class TestRenaming:
    def ask(self, app: Any, study_id: int, body: bytes) -> Answer:
        return send(app, f"/api/studies/{study_id}/rename", "POST", body)

    def test_it_keeps_all_that_is_stored(self, storage: Storage) -> None:
        study_id = searched(storage)
        storage.set_documents(study_id, {"space": {"sites": []}})
        app = DashboardApp(storage)
        answer = self.ask(app, study_id, b'{"study_name": "renamed"}')
        assert (answer.status, answer.json()["study_name"], answer.json()["study_id"]) == (201, "renamed", study_id)
        assert storage.load_document(study_id, "space") == {"sites": []}
        assert ask(app, f"/api/studies/{study_id}").json()["name"] == "renamed"

    @pytest.mark.parametrize(
        ("study_id", "body", "status"),
        [
            (1, b'{"study_name": "taken"}', 400),
            (1, b'{"study_name": ""}', 400),
            (1, b"[1]", 400),
            (1, b"not json", 400),
            (99, b'{"study_name": "free"}', 404),
        ],
    )
    def test_refusals(self, storage: Storage, study_id: int, body: bytes, status: int) -> None:
        searched(storage)
        optuna.create_study(storage=storage, study_name="taken")
        answer = self.ask(DashboardApp(storage), study_id, body)
        assert answer.status == status
        assert answer.json()["reason"]

    def test_not_while_it_is_searched(self, storage: Storage) -> None:
        """A search looks its study up by name at the end."""
        study_id = searched(storage)
        app = DashboardApp(storage)
        with Lease(storage, study_id):
            answer = self.ask(app, study_id, b'{"study_name": "renamed"}')
        assert answer.status == 409
        words = f"study {study_id} is being searched by process {os.getpid()} on .*slimfront stop"
        assert re.search(words, answer.json()["reason"])
        assert storage.get_study_name_from_id(study_id) == "searched"
        assert self.ask(app, study_id, b'{"study_name": "renamed"}').status == 201

    def test_a_search_that_was_killed_does_not_stand_in_the_way(self, storage: Storage) -> None:
        study_id = searched(storage)
        with Lease(storage, study_id):
            gone = update(lease._TABLE).values(process_started="another")
            storage.run("as if it was killed", lambda connection: connection.execute(gone), write=True)
            assert self.ask(DashboardApp(storage), study_id, b'{"study_name": "renamed"}').status == 201

    @pytest.mark.parametrize("length", ["-1", "x", "", str(1 << 40)])
    def test_a_length_that_is_wrong_blocks_nothing(self, storage: Storage, length: str) -> None:
        read: list[int] = []

        class Body(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                read.append(-1 if size is None else size)
                return b""

        sent = {"wsgi.input": Body(), "CONTENT_LENGTH": length, "CONTENT_TYPE": "application/json"}
        app = DashboardApp(storage)
        assert ask(app, f"/api/studies/{searched(storage)}/rename", "", "POST", **sent).status == 400
        assert all(0 <= size <= 1 << 20 for size in read)


def test_a_database_that_fails_says_so(storage: Storage) -> None:
    study_id = searched(storage)
    app = DashboardApp(storage)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("drop table trial_values")
    answer = ask(app, f"/api/studies/{study_id}")
    assert answer.status == 503
    assert "trial_values" in answer.json()["reason"]


def test_a_poll_of_a_large_study_is_quick(storage: Storage) -> None:
    """2,000 x 100: a tenth of a second of CPU, with and without running trials, though Optuna Dashboard takes 2.3."""
    study_id = searched(storage, trials=2000, running=12, drawn=100)
    app, path = DashboardApp(storage), f"/api/studies/{study_id}"

    def spent(path: str, query: str = "") -> float:
        since = time.process_time()
        assert ask(app, path, query, HTTP_ACCEPT_ENCODING="gzip").status == 200
        return time.process_time() - since

    assert spent(path, "after=0") < 5
    assert min(spent(path, "after=0") for _ in range(3)) < 0.2  # another page
    for ended in (0, 12):
        storage.write_trials(study_id, [], [done(2000 + one) for one in range(ended)])
        polls = [spent(path, "after=2000") + spent("/api/studies") for _ in range(5)]
        assert min(polls) < 0.1, polls
