"""Optuna Dashboard on the study database, served through our own storage to this machine alone."""

import errno
import socket
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from search.address import full_address, sqlite_file
from search.dashboard_guard import is_loopback
from search.storage import Storage, open_storage
from search.stored import pick_study
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

HOST = "127.0.0.1"
PORT = 8080


class _Server(ThreadingMixIn, WSGIServer):
    """A page polls while another one loads, so each request has a thread; none of them outlives the server."""

    daemon_threads = True


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _QuietRequest(WSGIRequestHandler):
    """The browser polls every few seconds: no line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Dashboard:
    """A dashboard that is bound to its address and answers once `serve` runs.

    Args:
        url: of the study database; an SQLite file must hold a study, a server's database need not yet.
        host: the address to bind to.
        port: the port; 0 takes a free one.
        study: the study whose page `address` is; None for that of the only one, or the list of several.

    Raises:
        StudyError: there is no such database or study.
        ConfigError: the address cannot be bound to.
    """

    def __init__(self, url: str, *, host: str = HOST, port: int = PORT, study: str | None = None) -> None:
        from search.dashboard_app import DashboardApp

        on_server = sqlite_file(full_address(url)) is None  # which may be there before the first study
        self._storage = open_storage(url, create=on_server)
        self._study_id = _first(self._storage, study)
        self.is_private = is_loopback(host)
        self._app = DashboardApp(self._storage, private=self.is_private)
        self._server = _bound(host, port, self._app)
        path = "" if self._study_id is None else f"/studies/{self._study_id}"
        bound = int(self._server.server_address[1])
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{bound}/dashboard{path}"

    def serve(self) -> None:
        """Answer requests until `stop` is called or Ctrl-C is pressed."""
        try:
            if self._study_id is not None:
                self._app.prepare(self._study_id)
            self._server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            self._server.server_close()
            self._storage.close()

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self._server.shutdown()


def _first(storage: Storage, study: str | None) -> int | None:
    """The study whose page is shown first, None for the list of all."""
    ids = [one._study_id for one in storage.get_all_studies()]
    if study is None and (ids or sqlite_file(full_address(storage.url)) is None):
        return ids[0] if len(ids) == 1 else None
    return pick_study(storage, study).id


def _bound(host: str, port: int, app: "WSGIApplication") -> WSGIServer:
    kind = _ServerV6 if ":" in host else _Server
    try:
        return make_server(host, port, app, server_class=kind, handler_class=_QuietRequest)
    except OverflowError as error:
        raise ConfigError(f"--port: given {port}, allowed 0 to 65535") from error
    except OSError as error:
        raise ConfigError(_refused(host, port, error)) from error


def _refused(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host: given {host!r}, which is no address of this machine; {HOST} is always one"
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use by another program: choose another, say --port {port + 1}"
        case errno.EACCES:
            return f"port {port} is not for you to listen on: choose one above 1023, say --port {PORT}"
        case _:
            return f"cannot listen on {host}:{port}: {error.strerror}"
