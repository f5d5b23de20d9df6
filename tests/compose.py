"""docker-compose.yml as docker compose reads it: its services, with their variables filled in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[1]
FILE: Final = ROOT / "docker-compose.yml"
SECRETS: Final = ("POSTGRES_PASSWORD", "RAY_AUTH_TOKEN")
_VARIABLE: Final = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:[-?])([^}]*))?\})")


class NotSetError(Exception):
    """A variable that the file requires has no value; docker compose would refuse the file, too."""


@dataclass(frozen=True)
class Service:
    """A service of the file, its variables filled in."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health: tuple[str, ...]
    """The command that checks its health; () if it has none."""
    document: Mapping[str, Any]


def variables(text: str) -> dict[str, str]:
    """What an environment file sets."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def filled_in(text: str, given: Mapping[str, str]) -> str:
    """Text of a compose file with its variables filled in, as docker compose does it."""

    def value(found: re.Match[str]) -> str:
        dollar, name, operator, rest = found.groups()
        if dollar:
            return "$"
        if given.get(name):
            return given[name]
        if operator == ":?":
            raise NotSetError(f"{name}: {rest}")
        return rest or ""

    return _VARIABLE.sub(value, text)


def services(given: Mapping[str, str], file: Path = FILE) -> dict[str, Service]:
    """The file's services, by name.

    Raises:
        NotSetError: a required variable has no value.
    """
    documents = _filled_in(yaml.safe_load(file.read_text(encoding="utf-8")), given)["services"]
    return {name: _service(name, document) for name, document in documents.items()}


def _filled_in(value: Any, given: Mapping[str, str]) -> Any:
    """The same inside a document, where a YAML parser reads it first, as docker compose does."""
    match value:
        case str():
            return filled_in(value, given)
        case list():
            return [_filled_in(one, given) for one in value]
        case dict():
            return {key: _filled_in(one, given) for key, one in value.items()}
        case _:
            return value


def _service(name: str, document: Mapping[str, Any]) -> Service:
    check = document.get("healthcheck", {}).get("test", ["CMD"])
    assert check[0] == "CMD", check
    command = (*document.get("entrypoint", ()), *document["command"])
    return Service(name, command, document.get("environment", {}), tuple(check[1:]), document)


def image_environment() -> dict[str, str]:
    """What the image sets, beside where its programs are."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    pairs = [pair for line in re.findall(r"^ENV (.+)$", text, flags=re.M) for pair in line.split()]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name != "PATH"}
