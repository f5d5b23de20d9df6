"""Reading a config file's YAML, and putting into it what the command line changes."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from search.config_errors import Key, key_path, shown
from spaces.errors import ConfigError

Origins = dict[Key, str]

# Options of the command line that stand for a key.
OPTIONS: Mapping[str, Key] = {
    "trials": ("budget", "trials"),
    "timeout": ("budget", "timeout"),
    "until": ("budget", "until"),
    "patience": ("budget", "patience", "candidates"),
    "focus": ("budget", "focus"),
    "workers": ("workers",),
    "seed": ("seed",),
    "storage": ("storage",),
}

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_DEEPEST = 50  # levels; the deepest key of a config is on level 4, options of a sampler may go further
_PLAIN = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


def read_text(path: Path) -> str:
    """Read a config file, or raise a ConfigError that names it and the files that may be meant."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file{_near_files(path)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{_near_files(path)}") from error


def _near_files(path: Path) -> str:
    """Name the configs beside ``path`` and in ./configs that are called much the same."""
    beside = {found for folder in (path.parent, Path("configs")) for found in folder.glob("*.y*ml")}
    stems = get_close_matches(path.stem, sorted({found.stem for found in beside}))
    near = [str(found) for stem in stems for found in sorted(beside) if found.stem == stem]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def parse(text: str, source: str, key: Key = ()) -> tuple[Any, list[str]]:
    """Read one YAML document: its value, and what in it only YAML could tell (keys given twice, odd tags).

    ``key`` is where the value stands.

    Raises:
        ConfigError: it is no YAML; the message names ``source``, line and column.
    """
    try:
        _check_depth(text, source)
        loader = _LOADER(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, []
            problems = list(_walk(loader, root, key, ()))
            return loader.construct_document(root), problems
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        before = text.partition(chr(error.character))[0]  # libyaml counts bytes, PyYAML characters
        where = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
        raise ConfigError(f"{source}: not valid YAML at {where}: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        where = _position(error.problem_mark or error.context_mark)
        raise ConfigError(f"{source}: not valid YAML{where}: {error.problem or error.context}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid YAML: a value contains itself") from error
    except ValueError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def _check_depth(text: str, source: str) -> None:
    """Refuse what is nested so deeply that libyaml would overflow the stack and end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            where = _position(event.start_mark)
            raise ConfigError(f"{source}: nested too deeply{where}: allowed {_DEEPEST} levels")


def _position(mark: Any) -> str:
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _walk(loader: Any, node: Any, key: Key, above: tuple[Any, ...]) -> Iterator[str]:
    """Yield what validation would not see; such a node is then read as the plain value that stands there."""
    if any(node is other for other in above):
        raise RecursionError
    if isinstance(node, yaml.ScalarNode):
        if node.tag in (_TAG + "int", _TAG + "float") and ":" in node.value:
            node.tag = _TAG + "str"  # 2:4 is a pattern of pruning; YAML 1.1 would read 124, in base 60
        implied = loader.resolve(yaml.ScalarNode, node.value, (True, False))
        if node.tag != _TAG + "str" and (node.tag not in _PLAIN or node.tag != implied):
            given = f"{shown(node.value)} {_tagged(node)}"
            yield f"{key_path(key)}: given {given}, allowed numbers and text (put text in quotes)"
            node.tag = _TAG + "str"
        return
    if node.tag not in _PLAIN:
        yield f"{key_path(key)}: given a value {_tagged(node)}, allowed lists, keys and values without a tag"
        node.tag = _TAG + ("seq" if isinstance(node, yaml.SequenceNode) else "map")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(loader, item, (*key, index), (*above, node))
    else:
        yield from _walk_mapping(loader, node, key, above)


def _tagged(node: Any) -> str:
    return f"that YAML reads as {node.tag.removeprefix(_TAG)} (line {node.start_mark.line + 1})"


def _walk_mapping(loader: Any, node: Any, key: Key, above: tuple[Any, ...]) -> Iterator[str]:
    """Yield the keys of a mapping that are given twice or are no text, and what is wrong below them."""
    lines: dict[str, int] = {}
    kept = []
    for name, value in node.value:
        line = name.start_mark.line + 1
        inner = (*key, str(name.value) if isinstance(name, yaml.ScalarNode) else "?")
        if name.tag not in (_TAG + "str", _TAG + "merge"):
            yield f"{key_path(inner)}: given a key {_tagged(name)}, allowed text (quote it)"
            continue
        if name.value in lines and name.tag != _TAG + "merge":
            yield f"{key_path(inner)}: given twice (lines {lines[name.value]} and {line}), allowed once"
        lines[name.value] = line
        kept.append((name, value))
        yield from _walk(loader, value, inner, (*above, node))
    node.value = kept


def read_config_file(
    path: Path, overrides: Sequence[str], options: Mapping[str, object]
) -> tuple[dict[str, Any], list[str], Origins]:
    """Read a config file and put into it what the command line changes.

    Args:
        path: the YAML file.
        overrides: ``KEY=VALUE`` each, as given to ``--set``.
        options: names of `OPTIONS` and their values; None leaves the file's value.

    Returns:
        The file's data, the problems found so far, and which keys come from the command line.

    Raises:
        ConfigError: there is no such file, it is no YAML, or has no keys and values.
    """
    data, problems = parse(read_text(path), str(path))
    if not isinstance(data, dict):
        given = "an empty file" if data is None else shown(data, 60)
        raise ConfigError(f"{path}: given {given}, allowed keys and values, at least study and workload")
    origins: Origins = {}
    for override in overrides:
        problems += _override(data, override, origins)
    for name, value in options.items():
        if value is not None:
            problems += _put(data, OPTIONS[name], value, f"--{name}", origins)
    return data, problems, origins


def _override(data: dict[str, Any], override: str, origins: Origins) -> list[str]:
    name, equals, text = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        return [f"--set: given {shown(override)}, allowed KEY=VALUE such as space.bits=[4, 8]"]
    try:
        value, problems = parse(text, f"--set {name}", key)
    except ConfigError as error:
        return [str(error)]
    return [f"--set {problem}" for problem in problems] + _put(data, key, value, "--set", origins)


def _put(data: dict[str, Any], key: Key, value: object, origin: str, origins: Origins) -> list[str]:
    """Set one key, making the sections that are not there or null; give the problem where that cannot be done."""
    section = data
    for depth, part in enumerate(key[:-1], 1):
        if section.get(str(part)) is None:
            section[str(part)] = {}
        section = section[str(part)]
        if not isinstance(section, dict):
            above = key_path(key[:depth])
            given = f"given a key below {above}, which is no section"
            return [f"{key_path(key)} (from {origin}): {given}, allowed {above}=VALUE as a whole"]
    section[str(key[-1])] = value
    origins[key] = origin
    return []


def origin_of(key: Key, origins: Origins) -> str:
    """Say which part of the command line set a key, or something above or below it; nothing for the file."""
    for other, origin in reversed(list(origins.items())):
        shorter = min(len(key), len(other))
        if other[:shorter] == key[:shorter]:
            return f" (from {origin})"
    return ""
