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

from search.storage import Storage
from search.storage.study_page import StudyPage
from search.storage.watching import WatchingStorage
from spaces.errors import StudyError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_OURS: Final = re.compile(r"/api/studies/(\d+)(/param_importances|/rename|)/*")
_PIECE: Final = 1 << 20  # characters
_LONGEST_BODY: Final = 1 << 20


def dashboard_app(storage: Storage, artifact_store: Any = None) -> "WSGIApplication":
    """The dashboard on a study database.

    Its study page asks for the same things again and again: those we answer from memory. All else is its own.

    Args:
        storage: the database; who opened it closes it.
        artifact_store: Optuna's, where files are that were attached to trials; None where there are none to show.
    """
    watching = WatchingStorage(storage)
    theirs: WSGIApplication = optuna_dashboard.wsgi(watching, artifact_store)
    ours = _Ours(watching)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            answer = ours.answer(environ)
        except StudyError as error:
            answer = HTTPStatus.SERVICE_UNAVAILABLE, iter([json.dumps({"reason": str(error)})])
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

    def __init__(self, storage: WatchingStorage) -> None:
        self._storage = storage
        self._page = StudyPage(storage)

    def answer(self, environ: "WSGIEnvironment") -> tuple[HTTPStatus, Iterator[str]] | None:
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

    def _rename(self, study_id: int, name: str | None) -> tuple[HTTPStatus, Iterator[str]]:
        """Rename it, where the dashboard copies it and deletes the old one, and all that only we store of it."""
        if not name:
            return HTTPStatus.BAD_REQUEST, iter(['{"reason": "You need to set study_name"}'])
        try:
            if not self._storage.rename(study_id, name):
                return HTTPStatus.BAD_REQUEST, iter(['{"reason": "Study name already exists."}'])
            study = self._storage.study(study_id)
        except KeyError:
            study = None
        if study is None:
            return HTTPStatus.NOT_FOUND, iter([json.dumps({"reason": f"study_id={study_id} is not found"})])
        return HTTPStatus.CREATED, iter([json.dumps(serialize_frozen_study(study))])


def _name(environ: "WSGIEnvironment") -> str | None:
    """The name that a request to rename gives, None if it gives none."""
    try:
        length = min(int(environ.get("CONTENT_LENGTH") or 0), _LONGEST_BODY)
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
