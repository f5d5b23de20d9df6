"""The types of a config's fields that say where something is: files, databases, clusters, and what is set there."""

import os
import re
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from search.config_errors import refusal
from search.config_fields import AsTuple, words

_RAY = re.compile(r"auto|(ray://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*://")
_WORKLOAD_WORDS = "module:function or file.py:function"
_URL_WORDS = "a SQLAlchemy URL such as sqlite:///slimfront.db, or null"
_VARIABLES_WORDS = "names and values, both text: write numbers in quotes"
_SHARED_WORDS = "a folder, or an fsspec URL such as s3://bucket/folder, or null"
_RAY_WORDS = "auto, ray://HOST:PORT, HOST:PORT, or null"
_JOBS_WORDS = "an HTTP or HTTPS URL such as http://head:8265, or null"


def _variables(value: Any) -> Any:
    if not isinstance(value, dict):  # not shown: they may be secrets
        raise refusal(_VARIABLES_WORDS, given=_kind(value))
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise refusal(_VARIABLES_WORDS, given=_kind(name if isinstance(text, str) else text), at=(str(name),))
        if not name or "=" in name or "\0" in name + text:
            raise refusal("names of variables, without =", given="another name", at=(name,))
    return value


def _kind(value: Any) -> str:
    """What a value is, where it must not be shown."""
    match value:
        case None:
            return "null (nothing)"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "keys and values"
        case _:
            return f"a value that YAML reads as {type(value).__name__}"


def _url(value: Any) -> Any:
    if value is not None and not is_url(value):  # not shown: a password may stand in it
        raise refusal(_URL_WORDS, given="text that is not a URL" if isinstance(value, str) else _kind(value))
    return value


def _shared(value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or not value):
        raise refusal(_SHARED_WORDS, given="an empty text" if value == "" else _kind(value))  # it may hold a password
    return value


def _ray_address(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and _RAY.fullmatch(value)):
        raise refusal(_RAY_WORDS)
    return value


def _jobs(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"https?://[^\s@]+", value)):
        raise refusal(_JOBS_WORDS)
    return value


def is_url(value: Any) -> bool:
    """Whether this is text that has the form of a database URL."""
    return isinstance(value, str) and _URL.match(value) is not None


def file_of(entry: str, folder: Path) -> tuple[Path, str] | None:
    """Split a ``file.py:function`` entry into the file's absolute path and the name; None for a module."""
    source, _, function = entry.partition(":")
    return (folder / source, function) if source.endswith(".py") else None


def _workload(entry: str, info: ValidationInfo) -> str:
    source, _, function = entry.partition(":")
    file = file_of(entry, folder_of(info.context))
    named = function.isidentifier() and not iskeyword(function)
    if not named or not (file or all(part.isidentifier() for part in source.split("."))):
        raise refusal(f"{_WORKLOAD_WORDS}, with one colon between them")
    if file and not os.path.isfile(file[0]):
        raise refusal(f"a file that exists: there is none at {file[0]}")
    return entry


def folder_of(context: Any) -> Path:
    """Find the folder of the config file in a validation context; the working directory without one."""
    return (Path(context["folder"]) if context else Path()).absolute()


WorkloadEntry = Annotated[str, AfterValidator(_workload), words(_WORKLOAD_WORDS)]
Url = Annotated[str | None, BeforeValidator(_url), words(_URL_WORDS)]
Folder = Annotated[str, Field(min_length=1), words("a folder")]
Folders = Annotated[tuple[Folder, ...], AsTuple]
Variables = Annotated[dict[str, str], BeforeValidator(_variables), words(_VARIABLES_WORDS)]
SharedFolder = Annotated[str | None, BeforeValidator(_shared), words(_SHARED_WORDS)]
RayAddress = Annotated[str | None, BeforeValidator(_ray_address), words(_RAY_WORDS)]
JobsUrl = Annotated[str | None, BeforeValidator(_jobs), words(_JOBS_WORDS)]
