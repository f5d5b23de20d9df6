"""Asks a WSGI application in this process, without a server."""

import io
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What an application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def ask(app: Any, path: str, query: str = "", method: str = "GET", **environ: Any) -> Answer:
    """Asks for this path; `environ` is what else the server says, such as HTTP_ACCEPT_ENCODING."""
    said: list[Any] = []
    request = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        **environ,
    }
    answered: Iterable[bytes] = app(request, lambda status, headers, error=None: said.append((status, headers)))
    body = b"".join(answered)
    getattr(answered, "close", lambda: None)()
    status, headers = said[-1]
    return Answer(int(status.split()[0]), dict(headers), body)
