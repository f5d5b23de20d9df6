"""Optuna Dashboard as a WSGI application, with the requests that the open page repeats answered by us."""

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import optuna_dashboard
from optuna_dashboard._serializer import serialize_frozen_study

from search.dashboard_guard import Answer, reason, refusal
from search.lease import holder
from search.storage import Storage
from search.storage.study_page import StudyPage
from search.storage.watching import WatchingStorage
from spaces.errors import StudyError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_OURS: Final = re.compile(r"/api/studies/(\d+)(/param_importances|/rename|)/*")
_PIECE: Final = 1 << 20  # characters
_LONGEST_BODY: Final = 1 << 20


def dashboard_app(storage: Storage, artifact_store: Any = None, *, private: bool = False) -> "WSGIApplication":
    """The dashboard on a study database.

    Its study page asks for the same things again and again: those we answer from memory. All else is its own. What
    pages of other sites ask for in somebody's browser is refused where it would change something.

    Args:
        storage: the database; who opened it closes it.
        artifact_store: Optuna's, where files are that were attached to trials; None where there are none to show.
        private: whether it is served to this machine alone, so that it has no other name than this machine's own.
    """
    watching = WatchingStorage(storage)
    theirs: WSGIApplication = optuna_dashboard.wsgi(watching, artifact_store)
    ours = _Ours(storage, watching)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            answer = refusal(environ, private=private) or ours.answer(environ)
        except StudyError as error:
            answer = reason(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        if answer is None:
            return theirs(environ, start_response)
        status, pieces = answer
        headers = [("Content-Type", "application/json")]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            headers.append(("Content-Encoding", "gzip"))
            body = _gzipped(pieces)
        else:
            body = "".join(pieces).encode()
        start_response(f"{status.value} {status.phrase}", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return app


class _Ours:
    """What is not left to the dashboard."""

    def __init__(self, storage: Storage, watching: WatchingStorage) -> None:
        self._storage, self._watching = storage, watching
        self._page = StudyPage(watching)

    def answer(self, environ: "WSGIEnvironment") -> Answer | None:
        """Status and JSON; None for what the dashboard answers, which is also whatever is wrong with a request."""
        asked = _OURS.fullmatch(environ.get("PATH_INFO", ""))
        if asked is None:
            return None
        study_id, what = int(asked[1]), asked[2]
        match environ["REQUEST_METHOD"], what:
            case "GET", "":
                after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[-1]
                detail = self._page.detail(study_id, int(after)) if after.isdecimal() else None
                return None if detail is None else (HTTPStatus.OK, detail)
            case "GET", "/param_importances":
                found = self._page.importances(study_id)
                return None if found is None else (HTTPStatus.OK, iter([json.dumps({"param_importances": found})]))
            case "POST", "/rename":
                return self._rename(study_id, _name(environ))
        return None

    def _rename(self, study_id: int, name: str | None) -> Answer:
        """Rename it, where the dashboard copies it and deletes the old one, and all that only we store of it."""
        if not name:
            return reason(HTTPStatus.BAD_REQUEST, "You need to set study_name")
        by = holder(self._storage, study_id)
        if by is not None and by.alive:  # it looks its study up by name
            words = f"study {study_id} is being searched by process {by.pid} on {by.host}: a study is renamed at rest, "
            return reason(HTTPStatus.CONFLICT, words + "so wait for the search, or end it with `slimfront stop`")
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


def _gzipped(pieces: Iterator[str]) -> bytes:
    """Of 49 MB that a study of 2,000 trials x 100 parameters is, this leaves 2, and never has all of them at once."""
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed, waiting, length = [], list[str](), 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= _PIECE:
            packed.append(packer.compress("".join(waiting).encode()))
            waiting, length = [], 0
    packed += [packer.compress("".join(waiting).encode()), packer.flush()]
    return b"".join(packed)
