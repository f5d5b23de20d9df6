"""What is wrong with a config, in words: the key, what was given, what is allowed."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

Key = tuple[str | int, ...]
Schema = Mapping[str, Any]

_NOUNS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_PASSWORD = re.compile(r"(://[^:/@\s]*):[^\s]*@")
_LONGEST = 120  # characters of a given value that are shown


def refusal(allowed: str, *, given: str = "", at: Key = ()) -> PydanticCustomError:
    """Give the error a validator raises: what is allowed, and what was given where if not the whole input."""
    return PydanticCustomError("refused", "allowed {allowed}", {"allowed": allowed, "given": given, "at": at})


def shown(value: object, longest: int | None = None) -> str:
    """Write a value as JSON, on one line and without the password of a URL in it.

    >>> shown((2, None, "a")), shown("mysql://me:secret@host/db")
    ('[2, null, "a"]', '"mysql://me:***@host/db"')
    """
    text = _PASSWORD.sub(r"\1:***@", json.dumps(value, ensure_ascii=False, default=str))
    return text if longest is None or len(text) <= longest else text[:longest] + " ..."


def key_path(key: Key) -> str:
    """Write a key as a path.

    >>> key_path(("space", "bits", 1))
    'space.bits[1]'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def problems_of(error: ValidationError, schema: Schema) -> list[tuple[Key, str]]:
    """Say each of pydantic's errors in plain words, as (key, words).

    ``schema`` is the JSON Schema of the model: what is allowed is read there, so it is written only once.
    """
    details = error.errors(include_url=False)
    return [_problem(detail, schema) for detail in details if not _follows(detail)]


def _follows(detail: ErrorDetails) -> bool:
    """Whether it only follows from other errors: a list is called too short when its items were refused."""
    return detail["type"] == "too_short" and bool(detail["input"])


def _problem(detail: ErrorDetails, schema: Schema) -> tuple[Key, str]:
    context = detail.get("ctx", {})
    key: Key = (*detail["loc"], *context.get("at", ()))
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return key, _unknown(key, schema)
    if kind == "refused":
        return key, f"given {context['given'] or shown(given, _LONGEST)}, allowed {context['allowed']}"
    node = _node(schema, key)
    bounded = kind in _OUT_OF_RANGE and "x-allowed" not in node
    allowed = _bounds(node) if bounded else _allowed(node, schema)
    if kind == "finite_number":
        allowed = allowed.replace("a number", "a finite number")
    if kind == "missing":
        return key, f"given nothing, allowed {allowed}"
    if "properties" in node and isinstance(given, list):  # a section's values may be secrets
        return key, f"given a list, allowed {allowed}"
    return key, f"given {shown(given, _LONGEST)}{_hint(given, node)}, allowed {allowed}"


def _hint(given: object, node: Schema) -> str:
    """Explain a value that YAML read otherwise than its writer meant."""
    kind = node.get("type")
    if given is None:
        return " (nothing)"
    if kind == "string" and isinstance(given, bool | int | float):
        return " (for text, put it in quotes)"
    if kind in ("integer", "number") and isinstance(given, str):
        if re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", given):
            return f" (text to YAML: write {re.sub('[eE]', '.0e', given, count=1)})"
        return " (text)"
    return ""


def _unknown(key: Key, schema: Schema) -> str:
    """Name the right key: the same one elsewhere, else the nearest on its level, else the nearest of all."""
    name, level = str(key[-1]), key[:-1]
    here = sorted(_node(schema, level).get("properties", ()))
    known = dict(_every_key(schema, schema, ""))
    plain = name.lower().replace("-", "_")
    elsewhere = sorted(path for path, last in known.items() if last == plain)
    near = get_close_matches(plain, here, n=1)
    if plain in here:
        meant = [key_path((*level, plain))]
    elif elsewhere:
        meant = elsewhere
    elif near:
        meant = [key_path((*level, near[0]))]
    else:
        last = get_close_matches(plain, sorted(set(known.values())), n=1, cutoff=0.75)
        meant = sorted(path for path, known_name in known.items() if known_name in last)
    hint = f", did you mean {' or '.join(meant)}?" if meant else ""
    return f"unknown key{hint} (allowed: {', '.join(here)})"


def _every_key(node: Schema, schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    """Yield every key of the schema as (path, name), with ``[]`` for the items of a list."""
    for name, below in node.get("properties", {}).items():
        inner = f"{path}.{name}".removeprefix(".")
        yield inner, name
        deeper = _resolved(below, schema)
        if deeper.get("type") == "array":
            deeper, inner = _resolved(deeper.get("items", {}), schema), inner + "[]"
        yield from _every_key(deeper, schema, inner)


def _node(schema: Schema, key: Sequence[str | int]) -> Schema:
    """Find what the schema says of a key; nothing ({}) for one it does not know."""
    node = schema
    for part in key:
        if isinstance(part, int):
            before = node.get("prefixItems", ())
            below = before[part] if part < len(before) else node.get("items", {})
        else:
            below = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = _resolved(below, schema)
    return node


def _resolved(node: Schema, schema: Schema) -> Schema:
    """Follow a reference; of several types take the first, with the words that stand beside them."""
    if "$ref" in node:
        return schema["$defs"][node["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]
    if "anyOf" in node:
        return {"null": {"type": "null"} in node["anyOf"], **_resolved(node["anyOf"][0], schema), **node}
    return node


def _allowed(node: Schema, schema: Schema) -> str:
    """Describe the values that a part of the schema allows."""
    if "x-allowed" in node:
        text = str(node["x-allowed"])
    elif "enum" in node or "const" in node:
        text = " | ".join(node.get("enum", [node.get("const")]))
    elif node.get("type") == "array":
        text = "a list" + (" of one or more" if node.get("minItems") else "")
        text += f", each {_allowed(_resolved(node['items'], schema), schema)}"
    elif node.get("type") == "object" and node.get("additionalProperties"):
        text = f"names and values, each {_allowed(_resolved(node['additionalProperties'], schema), schema)}"
    elif node.get("type") == "object":
        keys = sorted(node.get("properties", ()))
        text = f"keys and values ({', '.join(keys)})"
    else:
        text = f"{_NOUNS.get(node.get('type', ''), 'a value')} {_bounds(node)}".rstrip()
    return f"{text} or null" if node.get("null") and "null" not in text else text


def _bounds(node: Schema) -> str:
    """Describe the numbers between the bounds of a part of the schema."""
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{low} to {high}"
    first = f"{low} or more" if low is not None else f"more than {above}" if above is not None else ""
    last = f"up to {high}" if high is not None else f"less than {below}" if below is not None else ""
    return " and ".join(part for part in (first, last) if part)
