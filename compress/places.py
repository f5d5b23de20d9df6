"""Places that nodes share: a mounted folder, or what is behind an fsspec URL; and URLs shown without secrets."""

import contextlib
import re
import uuid
from pathlib import Path
from typing import Any

from compress.files import write_file, write_once
from spaces.errors import ConfigError

WHOLE = frozenset(
    {"abfs", "adl", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a", "tos"}
)  # a put is all or nothing
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")


class Folder:
    """Files in a folder that is mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        return (self._folder / name).read_bytes()

    def write(self, name: str, blob: bytes, *, anew: bool) -> None:
        """Write a file, all of it or nothing, unless it is there; over one that is there where it is to be `anew`."""
        path = self._folder / name
        if anew:
            write_file(path, blob)
        elif not path.exists():
            write_once(path, blob)


class Remote:
    """Files behind fsspec."""

    def __init__(self, system: Any, root: str, whole: bool) -> None:
        self._system, self._root, self._whole = system, root.rstrip("/"), whole

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        found: bytes = self._system.cat_file(f"{self._root}/{name}")
        return found

    def write(self, name: str, blob: bytes, *, anew: bool) -> None:
        """Write a file, all of it or nothing, unless it is there; over one that is there where it is to be `anew`."""
        path = f"{self._root}/{name}"
        if not anew and self._system.exists(path):
            return
        if self._whole:
            self._system.pipe_file(path, blob)
            return
        folder, _, last = path.rpartition("/")
        self._system.makedirs(folder, exist_ok=True)
        aside = f"{folder}/.{last}.{uuid.uuid4().hex}"
        try:
            self._system.pipe_file(aside, blob)
            if anew and self._system.exists(path):
                self._system.rm_file(path)
            self._system.mv(aside, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._system.rm_file(aside)
            raise


def opened(url: str) -> Folder | Remote:
    """The files behind a folder's path or a URL.

    Raises:
        ConfigError: no driver for the URL.
    """
    if not is_url(url):
        return Folder(Path(url))
    from fsspec.core import url_to_fs  # 50 ms

    protocol = url.partition("::")[0].partition("://")[0]
    try:
        system, root = url_to_fs(url)
    except ImportError as error:
        raise ConfigError(
            f"cache.shared: {protocol}:// needs a package that is not installed here: {hidden(str(error), url)}; "
            "it has to be on every node, or take a folder that all nodes see"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"cache.shared: {shown(url)} cannot be opened: {hidden(str(error), url)}; expected a folder, or a URL that "
            "fsspec knows, as s3://bucket/folder"
        ) from None
    if protocol in ("file", "local"):
        return Folder(Path(root))
    return Remote(system, root, protocol in WHOLE)


def checked_url(given: str) -> str:
    """A shared folder as all processes can use it: a folder is made, and its path made absolute.

    Args:
        given: what the key cache.shared says.

    Raises:
        ConfigError: no driver for the URL, or the folder cannot be made.
    """
    if not is_url(given):
        folder = Path(given).expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cache.shared: the folder {folder} cannot be made: {error}; name one that every node may write to"
            ) from error
        return str(folder)
    opened(given)
    return given


def is_url(given: str) -> bool:
    """Whether this is an fsspec URL and no folder."""
    return _URL.match(given) is not None


def shown(url: str) -> str:
    """A URL for people: without user, password and query, which may be secrets."""
    head, mark, rest = url.rpartition("://")
    if not mark:
        return url
    place = rest.partition("?")[0].partition("#")[0]
    _, at, host = place.rpartition("@")
    return f"{head}{mark}{'***@' + host if at else place}"


def public(url: str | None) -> str | None:
    """A URL that may be stored where anybody reads it; None where it may hold a secret."""
    return url if url is not None and shown(url) == url else None


def hidden(text: str, url: str) -> str:
    """A message without what of a URL may be secret."""
    rest = url.rpartition("://")[2]
    place, _, query = rest.partition("?")
    user = place.rpartition("@")[0]
    parts = [url, user, *user.split(":", 1), query, *(one.partition("=")[2] for one in query.split("&"))]
    text = text.replace(url, shown(url))
    for secret in sorted({one for one in parts[1:] if len(one) > 1}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
