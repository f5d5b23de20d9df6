"""What a page of another site can ask of the dashboard in somebody's browser: nothing that changes a study."""

import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.dashboard import Dashboard
from search.dashboard_app import DashboardApp
from search.dashboard_guard import is_loopback
from search.storage import Storage, open_storage
from tests.wsgi import Answer, ask


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    made = open_storage(f"sqlite:///{tmp_path}/guard.db", create=True)
    yield made
    made.close()


def send(app: Any, path: str, body: bytes, kind: str | None = "application/json", **said: Any) -> Answer:
    """A POST, as wsgiref hands it on: what has no type it calls text/plain."""
    environ = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": kind or "text/plain"}
    return ask(app, path, "", said.pop("method", "POST"), **environ, **said)


NAME = b'{"study_name": "theirs", "directions": ["minimize"]}'
PATHS = ("/api/studies", "/api/studies/1/rename", "/api/studies/1/note", "/api/artifacts/1", "/api/trials/1/tell")


class TestBodies:
    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
    @pytest.mark.parametrize("path", PATHS)
    def test_what_needs_no_leave_of_ours_is_refused(self, storage: Storage, path: str, kind: str | None) -> None:
        optuna.create_study(storage=storage, study_name="ours")
        answer = send(DashboardApp(storage), path, NAME, kind)
        assert answer.status == 415
        assert answer.json() == {"reason": "the body of a request must be application/json"}
        assert [study.study_name for study in storage.get_all_studies()] == ["ours"]

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
    def test_other_methods_are_no_exception(self, storage: Storage, method: str) -> None:
        assert send(DashboardApp(storage), "/api/studies/1", b"{}", "text/plain", method=method).status == 415

    def test_a_body_of_no_known_length_is_one(self, storage: Storage) -> None:
        answer = send(DashboardApp(storage), "/api/studies", b"", "text/plain", HTTP_TRANSFER_ENCODING="chunked")
        assert answer.status == 415

    def test_the_dashboards_own_page_works(self, storage: Storage) -> None:
        """All that it sends: JSON, and some requests without a body."""
        app = DashboardApp(storage)
        assert send(app, "/api/studies", NAME, "application/json; charset=utf-8").status == 201
        assert send(app, "/api/studies/1/rename", b'{"study_name": "mine"}').status == 201
        assert send(app, "/api/studies/1/note", b'{"body": "a note", "version": 1}', method="PUT").status == 204
        trial = optuna.load_study(storage=storage, study_name="mine").ask()
        storage.set_study_system_attr(1, "preference:is_preferential", True)
        assert send(app, f"/api/studies/1/{trial._trial_id}/skip", b"", None).status == 204
        assert send(app, f"/api/trials/{trial._trial_id}/tell", b'{"state": "Fail"}').status == 204
        assert send(app, "/api/studies/1", b"", None, method="DELETE").status == 204

    def test_what_has_no_body_comes_from_no_other_page(self, storage: Storage) -> None:
        storage.set_study_system_attr(
            optuna.create_study(storage=storage)._study_id, "preference:is_preferential", True
        )
        app, host = DashboardApp(storage), "127.0.0.1:8080"

        def status(**said: str) -> int:
            return send(app, "/api/studies/1/0/skip", b"", None, HTTP_HOST=host, **said).status

        assert status(HTTP_SEC_FETCH_SITE="cross-site") == 403
        assert status(HTTP_SEC_FETCH_SITE="same-site", HTTP_ORIGIN="http://127.0.0.1:3000") == 403
        for origin in ("https://evil.example", "http://127.0.0.1:3000", "null"):
            assert status(HTTP_ORIGIN=origin) == 403
        assert status(HTTP_ORIGIN=f"http://{host}") == 204
        assert status(HTTP_SEC_FETCH_SITE="same-origin", HTTP_ORIGIN=f"http://{host}") == 204


class TestNames:
    """DNS rebinding: a name of theirs that points to this machine."""

    @pytest.mark.parametrize(
        "host",
        ["evil.example:8080", "localhost.evil.example", "127.0.0.1@evil.example", "10.0.0.1:8080", "", "[", "a:b"],
    )
    def test_only_this_machines_own_are_answered(self, storage: Storage, host: str) -> None:
        app = DashboardApp(storage, private=True)
        for method in ("GET", "POST"):
            answer = ask(app, "/api/studies", "", method, HTTP_HOST=host)
            assert answer.status == 403
            assert "127.0.0.1, localhost or [::1]" in answer.json()["reason"]

    @pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "localhost:9000"])
    def test_they_are(self, storage: Storage, host: str) -> None:
        """By any port: a tunnel's own may be another."""
        assert ask(DashboardApp(storage, private=True), "/api/studies", HTTP_HOST=host).status == 200

    def test_elsewhere_it_has_the_names_that_its_owner_gave_it(self, storage: Storage) -> None:
        assert ask(DashboardApp(storage), "/api/studies", HTTP_HOST="dashboard.team.example").status == 200

    def test_what_is_private(self) -> None:
        assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
        assert not any(is_loopback(host) for host in ("0.0.0.0", "192.168.1.5", "example.org", "::", ""))


@pytest.mark.parametrize(("bound", "elsewhere"), [("127.0.0.1", 403), ("0.0.0.0", 200)])
def test_the_served_one(storage: Storage, bound: str, elsewhere: int) -> None:
    """Through its own server."""
    optuna.create_study(storage=storage, study_name="ours")
    dashboard = Dashboard(storage.url, host=bound, port=0)
    port = int(dashboard.address.split(":")[2].partition("/")[0])
    thread = threading.Thread(target=dashboard.serve)
    thread.start()

    def status(method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            body = json.dumps({"study_name": "renamed"}) if method == "POST" else None
            connection.request(method, path, body, {name.replace("_", "-"): said for name, said in headers.items()})
            return connection.getresponse().status
        finally:
            connection.close()

    try:
        assert status("GET", "/dashboard") == 200
        assert status("GET", "/api/studies", Host="evil.example") == elsewhere
        assert status("POST", "/api/studies/1/rename", Content_Type="text/plain") == 415
        assert status("POST", "/api/studies/1/rename") == 415
        assert status("POST", "/api/studies/1/rename", Content_Type="application/json") == 201
    finally:
        dashboard.stop()
        thread.join(10)
