"""What commands share: their common options, the look of their help, and how a failed one ends."""

import json
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from search.address import hide_password
from spaces.errors import SlimfrontError

StudyName = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="may be left out where the store holds one")]
StorageUrl = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="the study database; else $SLIMFRONT_STORAGE, else sqlite:///slimfront.db",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="the search, a YAML file")]
PolicyPath = Annotated[Path, typer.Argument(metavar="POLICY", help="a policy JSON file")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change a key of the config; as often as needed"),
]
WorkloadEntry = Annotated[
    str | None,
    typer.Option("--workload", metavar="FILE.py:FUNCTION", help="the policy's workload, if it does not ship"),
]


def print_json(document: Mapping[str, Any]) -> None:
    """The one thing that a command prints on standard output when it is asked for JSON."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def example(*commands: str) -> str:
    """The end of a command's help, its lines left as they are."""
    lines = "\n".join(f"  {command}" for command in commands)
    return f"\b\nExample:\n{lines}"


class Commands(TyperGroup):
    """Commands of which a failed one ends with a sentence on standard error and the error's exit code.

    With SLIMFRONT_DEBUG=1 the traceback comes first. What nobody foresaw shows it anyway.
    """

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except SlimfrontError as error:
            _end(error, error.exit_code)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            if not _of_database(error):
                raise
            _end(error, 1)


def _end(error: Exception, code: int) -> NoReturn:
    if os.environ.get("SLIMFRONT_DEBUG") == "1":
        typer.echo(without_passwords("".join(traceback.format_exception(error))), err=True)
    typer.echo(without_passwords(f"error: {error}"), err=True)
    raise typer.Exit(code)


def _of_database(error: Exception) -> bool:
    """Whether it comes from SQLAlchemy or Optuna's storage; a quick command need not import them to know."""
    kinds = type(error).__mro__
    return any(kind.__module__ == "sqlalchemy.exc" or kind.__name__ == "StorageInternalError" for kind in kinds)


def without_passwords(text: str) -> str:
    """The text with the passwords of the database URLs in it hidden."""
    return "\n".join(hide_password(line) for line in text.splitlines())
