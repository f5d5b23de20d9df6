"""Places that nodes share: a mounted folder, or what is behind an fsspec URL; and URLs shown without secrets."""

import contextlib
import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from compress.files import write_file, write_once
from spaces.errors import ConfigError

WHOLE = frozenset(
    {"abfs", "adl", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a", "tos"}
)  # a put is all or nothing
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://)")  # between the parts of an fsspec URL

_HOST = re.compile(r"[^/]*@|[^/:]*(:\d*)?/")  # how a place begins whose user and password, if any, are complete


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
    """A URL for people: without user, password and query of any part of its chain, which may be secrets.

    >>> shown("simplecache::https://anna:s3cret@host/x?next=https://other")
    'simplecache::https://***@host/x'
    """
    return "::".join(_shown_part(part) for part in _CHAIN.split(url))


def public(url: str | None) -> str | None:
    """A URL that may be stored where anybody reads it; None where it may hold a secret."""
    return url if url is not None and shown(url) == url else None


def hidden(text: str, url: str) -> str:
    """A message without what of a URL may be secret, as it is written there or with its %XX decoded."""
    secrets = set[str]()
    for part in (url, *_CHAIN.split(url)):
        text = text.replace(part, shown(part))
    for part in _CHAIN.split(url):
        _, user, _, query = _parts(part)
        for field in re.split("[&;#]", query):
            secrets |= {field.partition("=")[2] or field}
        secrets |= {query, user, *user.split(":", 1)}
    for secret in sorted({*secrets, *map(unquote, secrets)}, key=len, reverse=True):
        if len(secret) > 1:
            text = text.replace(secret, "***")
    return text


def _shown_part(part: str) -> str:
    head, user, place, _ = _parts(part)
    return f"{head}{'***@' if user else ''}{place}"


def _parts(part: str) -> tuple[str, str, str, str]:
    """Of a URL that is no chain: protocol with its mark, user and password, place, query and fragment."""
    protocol, mark, rest = part.partition("://")
    if not mark:
        return "", "", part, ""
    end = re.search("[?#]", rest)
    if end is not None and "@" in rest[end.start() :] and not _HOST.match(rest[: end.start()]):
        end = None  # it is in a password
    place, query = (rest, "") if end is None else (rest[: end.start()], rest[end.start() + 1 :])
    user, _, place = place.rpartition("@")
    return protocol + mark, user, place, query
