"""Optuna Dashboard as a WSGI application, with the requests that the open page repeats answered by us."""

import json
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qs
from wsgiref.util import FileWrapper

import optuna_dashboard
from optuna_dashboard._serializer import serialize_frozen_study

from search.dashboard_guard import Answer, reason, refusal
from search.lease import holder
from search.storage import Storage
from search.storage.study_page import StudyPage
from search.storage.study_text import gzipped
from search.storage.watching import WatchingStorage
from spaces.errors import StudyError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_LOG = logging.getLogger(__name__)

_OURS: Final = re.compile(r"/api/studies/(\d{1,18})(/param_importances|/rename|)/*")
_PAGE: Final = re.compile(r"/dashboard/studies/(\d{1,18})(/.*)?")
_LONGEST_BODY: Final = 1 << 20
_BLOCK: Final = 1 << 20  # bytes of a file


class DashboardApp:
    """The dashboard on a study database, a WSGI application.

    Its study page asks for the same things again and again: those we answer from memory. All else is its own. What
    pages of other sites ask for in somebody's browser is refused where it would change something.

    Args:
        storage: the database; who opened it closes it.
        artifact_store: Optuna's, where files are that were attached to trials; None where there are none to show.
        private: whether it is served to this machine alone, so that it has no other name than this machine's own.
    """

    def __init__(self, storage: Storage, artifact_store: Any = None, *, private: bool = False) -> None:
        watching = WatchingStorage(storage)
        self._theirs: WSGIApplication = optuna_dashboard.wsgi(watching, artifact_store)
        self._ours = _Ours(storage, watching)
        self._private = private
        self._preparing: dict[int, threading.Thread] = {}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers a request."""
        packed = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
        try:
            answer = refusal(environ, private=self._private) or self._ours.answer(environ, packed=packed)
        except StudyError as error:
            answer = reason(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        if answer is None:
            if page := _PAGE.fullmatch(environ.get("PATH_INFO", "")):
                self.prepare(int(page[1]))  # while the browser gets the page's program
            environ["wsgi.file_wrapper"] = _wrapped  # that program in one piece, not in 240, each after other threads
            return self._theirs(environ, start_response)
        status, said = answer
        headers = [("Content-Type", "application/json")]
        if packed:
            headers.append(("Content-Encoding", "gzip"))
            body = said if isinstance(said, bytes) else gzipped(said)
        else:
            body = "".join(cast(Iterator[str], said)).encode()
        start_response(f"{status.value} {status.phrase}", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def prepare(self, study_id: int) -> threading.Thread:
        """Begin to work out what the page of this study will ask for first; there need not be such a study.

        Returns:
            What does it.
        """
        thread = self._preparing.get(study_id)
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._ours.prepare, args=(study_id,), name="slimfront-page", daemon=True)
            self._preparing[study_id] = thread
            thread.start()
        return thread


def _wrapped(file: IO[bytes], block: int = _BLOCK) -> FileWrapper:
    return FileWrapper(file, max(block, _BLOCK))


class _Ours:
    """What is not left to the dashboard."""

    def __init__(self, storage: Storage, watching: WatchingStorage) -> None:
        self._storage, self._watching = storage, watching
        self._page = StudyPage(watching)

    def prepare(self, study_id: int) -> None:
        """Work out ahead what the study's page will ask for."""
        try:
            self._page.prepare(study_id)
        except StudyError as error:  # the page meets it too, and shows it
            _LOG.info("%s", error)

    def answer(self, environ: "WSGIEnvironment", *, packed: bool) -> Answer | None:
        """Status and JSON; None for what the dashboard answers, which is also whatever is wrong with a request.

        With `packed`, JSON of a large study comes gzipped.
        """
        asked = _OURS.fullmatch(environ.get("PATH_INFO", ""))
        if asked is None:
            return None
        study_id, what = int(asked[1]), asked[2]
        match environ["REQUEST_METHOD"], what:
            case "GET", "":
                after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[-1]
                return self._detail(study_id, int(after), packed=packed) if after.isdecimal() else None
            case "GET", "/param_importances":
                found = self._page.importances(study_id)
                return None if found is None else (HTTPStatus.OK, iter([json.dumps({"param_importances": found})]))
            case "POST", "/rename":
                return self._rename(study_id, _name(environ))
            case "DELETE", "":
                return self._held(study_id, "deleted")
        return None

    def _detail(self, study_id: int, after: int, *, packed: bool) -> Answer | None:
        whole = packed and after == 0
        found = self._page.packed(study_id) if whole else self._page.detail(study_id, after)
        return None if found is None else (HTTPStatus.OK, found)

    def _held(self, study_id: int, done: str) -> Answer | None:
        """The refusal to do this to a study that a live process searches, None if nobody does."""
        by = holder(self._storage, study_id)
        if by is None or not by.alive:
            return None
        words = f"study {study_id} is being searched by process {by.pid} on {by.host}: a study is {done} at rest, "
        return reason(HTTPStatus.CONFLICT, words + "so wait for the search, or end it with `slimfront stop`")

    def _rename(self, study_id: int, name: str | None) -> Answer:
        """Rename it, where the dashboard copies it and deletes the old one, and all that only we store of it."""
        if not name:
            return reason(HTTPStatus.BAD_REQUEST, "You need to set study_name")
        if held := self._held(study_id, "renamed"):  # a search looks its study up by name
            return held
        try:
            if not self._watching.rename(study_id, name):
                return reason(HTTPStatus.BAD_REQUEST, "Study name already exists.")
            study = self._watching.study(study_id)
        except KeyError:
            study = None
        if study is None:
            return reason(HTTPStatus.NOT_FOUND, f"study_id={study_id} is not found")
        return HTTPStatus.CREATED, iter([json.dumps(serialize_frozen_study(study))])


def _name(environ: "WSGIEnvironment") -> str | None:
    """The name that a request to rename gives, None if it gives none."""
    try:
        length = min(max(int(environ.get("CONTENT_LENGTH") or 0), 0), _LONGEST_BODY)
        asked: Any = json.loads(environ["wsgi.input"].read(length))
    except ValueError:
        return None
    name = asked.get("study_name") if isinstance(asked, dict) else None
    return name if isinstance(name, str) else None
