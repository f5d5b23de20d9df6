"""Which requests to the dashboard are refused: those that a page of another site has made in somebody's browser."""

import ipaddress
import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Answer: TypeAlias = tuple[HTTPStatus, Iterator[str] | bytes]
"""Status, and pieces of JSON, or all of it gzipped, for who can unpack it."""

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reason(status: HTTPStatus, words: str) -> Answer:
    """An answer that says why, as Optuna Dashboard's own do."""
    return status, iter([json.dumps({"reason": words})])


def refusal(environ: "WSGIEnvironment", *, private: bool) -> Answer | None:
    """The answer to a request that is refused, None for one that is not.

    A browser sends JSON, and methods other than POST, to another site only if that site says that it may, and the
    dashboard does not. So JSON is what a request that changes something must be, as the dashboard's own page sends
    it, or have no body at all and come from no other page.

    Args:
        environ: the request.
        private: whether only this machine is served. Then the name it is asked by is this machine's own, and not one
            that somebody else made to point here, whose page would be one of ours to the browser (DNS rebinding).
    """
    host = environ.get("HTTP_HOST", "")
    if private and not is_loopback(_name(f"//{host}")):
        return reason(HTTPStatus.FORBIDDEN, "the dashboard serves this machine alone, as 127.0.0.1, localhost or [::1]")
    if environ["REQUEST_METHOD"] in _READING:
        return None
    if environ.get("CONTENT_LENGTH", "") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return reason(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body of a request must be application/json")
    elif _of_another_page(environ, host):
        return reason(HTTPStatus.FORBIDDEN, "this request comes from a page of another site")
    return None


def _of_another_page(environ: "WSGIEnvironment", host: str) -> bool:
    """Whether a browser says so; what is no browser says nothing of it."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


def _name(address: str) -> str:
    """The host in it, empty if it has none."""
    try:
        parts = urlsplit(address)
        return (parts.hostname or "") if parts.port != 0 and "@" not in address else ""
    except ValueError:
        return ""
