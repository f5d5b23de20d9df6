"""Writes the generated parts of docs/reference.md; `--check` only says whether they are current."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from search.cli import app
from search.config import Config

PAGE = Path(__file__).parent / "reference.md"


def config_table() -> str:
    """The keys of a config: allowed values, default, meaning."""
    schema = Config.model_json_schema()
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    rows += [f"| `{key}` | {default} | {words} |" for key, default, words in _keys(schema, schema, "")]
    return "\n".join(rows)


def _keys(schema: dict[str, Any], root: dict[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    for name, field in schema["properties"].items():
        reference = field.get("$ref", "")
        inner = root["$defs"].get(reference.rpartition("/")[2], {})
        if "properties" in inner:
            yield from _keys(inner, root, f"{above}{name}.")
        else:
            default = f"`{_yaml(field['default'])}`" if "default" in field else "required"
            values = _values(field)
            allowed = (
                f"; {'any' if 'items' in field else 'one'} of {', '.join(f'`{v}`' for v in values)}" if values else ""
            )
            yield above + name, default, field["description"] + allowed


def _values(field: dict[str, Any]) -> list[str]:
    """The values of a key, or of each item of its list, where they are few and have names."""
    nodes = [field, field.get("items", {}), *field.get("anyOf", [])]
    return [value for node in nodes for value in node.get("enum", [])]


def _yaml(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{', '.join(_yaml(one) for one in value)}]"
        case dict() if not value:
            return "{}"
        case _:
            return str(value)


def command_table() -> str:
    """The commands, with their arguments and what they do."""
    rows = ["| command | what it does |", "| --- | --- |"]
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        arguments = [one.metavar or one.name.upper() for one in command.params if one.param_type_name == "argument"]
        options = [max(one.opts, key=len) for one in command.params if one.param_type_name == "option"]
        usage = " ".join(["slimfront", name, *(f"{one}".replace("|", "\\|") for one in arguments)])
        words = (command.help or "").split("\n\n")[0].replace("\n", " ").strip()
        rows.append(f"| `{usage}` {' '.join(f'`{one}`' for one in options if one != '--help')} | {words} |")
    return "\n".join(rows)


def page() -> str:
    """The page with its generated parts made anew."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in (("config", config_table()), ("commands", command_table())):
        before, start, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{start}{made}\n{end}{after}"
    return text


def main(arguments: list[str]) -> int:
    """Write the page; with `--check`, end with 1 if that would change it."""
    made = page()
    if "--check" in arguments:
        current = made == PAGE.read_text(encoding="utf-8")
        print("docs/reference.md is current" if current else "docs/reference.md is not current: run `make docs`")
        return 0 if current else 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
