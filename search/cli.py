"""The command line: each command in a few lines, which import what they need when they run."""

import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from search.detached import logs, stop
from search.handout import apply, export, verify
from search.launching import launch
from search.moving import copy
from search.options import (
    AsJson,
    Changes,
    Commands,
    ConfigFile,
    StorageUrl,
    StudyName,
    example,
    print_json,
    without_passwords,
)
from spaces.errors import ConfigError

app = typer.Typer(
    cls=Commands,
    name="slimfront",
    help="Search compression policies for a trained PyTorch model: accuracy against size, in real bytes.",
    epilog=example("slimfront new my_model", "slimfront launch my_model.yaml", "slimfront front my_model"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    """What has a JSON Schema."""

    policy = "policy"
    config = "config"


def _print_version(wanted: bool) -> None:
    if wanted:
        from slimfront import __version__

        typer.echo(f"slimfront {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


app.command(
    epilog=example(
        "slimfront launch configs/quickstart.yaml",
        "slimfront launch my_model.yaml --trials 60 --timeout 30m --set space.bits=[2,4,8]",
        "slimfront launch my_model.yaml --until 18:00 --patience 40 --focus 40kB..120kB",
        "slimfront launch my_model.yaml --detach --set ray.jobs=http://head:8265",
    )
)(launch)
app.command(epilog=example("slimfront logs my_model", "slimfront logs my_model -f --jobs http://head:8265"))(logs)
app.command(epilog=example("slimfront stop my_model"))(stop)


@app.command(epilog=example("slimfront status my_model", "slimfront status --json"))
def status(study: StudyName = None, as_json: AsJson = False, storage: StorageUrl = None) -> None:
    """How far a study is, and the best so far.

    It also says how fast candidates finish and whether a driver is alive.
    """
    from search.printing import show, status_lines
    from search.status import status as look

    found = look(study, storage)
    if as_json:
        print_json(found.document())
    else:
        show(*status_lines(found))


@app.command(
    epilog=example("slimfront front my_model --plot front.png", "slimfront front my_model --json > front.json")
)
def front(
    study: StudyName = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="draw it: a .png or .html file")] = None,
    against: Annotated[str | None, typer.Option(metavar="STUDY", help="draw this study's front, too")] = None,
    storage: StorageUrl = None,
) -> None:
    """The policies that no other one beats.

    No other policy of the study is at least as accurate in at most as many bytes. The uniform policies (the same choice
    at every site) are beside them, and it is said whether the search beat these.
    """
    from search.front import front as find
    from search.plot import plot as draw
    from search.printing import show_front

    if against is not None and plot is None:
        raise ConfigError("--against: the other front is drawn beside this one; say where with --plot FILE")
    found = find(study, storage)
    if plot is not None:
        draw(found, plot, find(against, storage) if against is not None else None)
        typer.echo(f"wrote {plot}", err=True)
    if as_json:
        print_json(found.document())
    else:
        show_front(found)


app.command(
    epilog=example(
        "slimfront export my_model -o policy.json",
        "slimfront export my_model --max-bytes 30kB",
        "slimfront export my_model --all -o policies",
    )
)(export)
app.command(
    epilog=example(
        "slimfront apply policy.json -o model.safetensors --onnx model.onnx",
        "slimfront apply policy.json -o model.safetensors --retrain --workload my_model.py:workload",
    )
)(apply)
app.command(
    epilog=example(
        "slimfront verify model.safetensors policy.json",
        "slimfront verify model.onnx policy.json --workload my_model.py:workload",
    )
)(verify)
app.command(
    epilog=example("slimfront copy my_model --from sqlite:///slimfront.db --to postgresql://ann@db.example/slimfront")
)(copy)


@app.command(
    epilog=example(
        "slimfront explain my_model --plot sites.html", "slimfront explain policy.json", "slimfront explain --trial 57"
    )
)
def explain(
    of: Annotated[
        str | None, typer.Argument(metavar="[STUDY|POLICY]", help="a study, or a policy JSON file that ends in .json")
    ] = None,
    trial: Annotated[int | None, typer.Option(metavar="N", help="this finished trial; else the knee")] = None,
    by: Annotated[
        str | None, typer.Option(metavar="KIND", help="compare choices by output, fisher, gradient or kl")
    ] = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="draw a heat map: a .png or .html file")] = None,
    storage: StorageUrl = None,
) -> None:
    """Why each site got its choice.

    For each site: its choice, the bytes that saves, the loss that it is predicted to cost, and what the next smaller
    and the next larger choice would cost instead.
    """
    from search.explain import explain as find
    from search.explain import explain_policy
    from search.explain_plot import plot as draw
    from search.printing import show_explanation

    file = Path(of) if of is not None and of.endswith(".json") else None
    if file is not None and trial is not None:
        raise ConfigError(f"--trial: given {trial}, but {file} is one trial's policy already: leave out one of them")
    found = find(of, storage, trial=trial, by=by) if file is None else explain_policy(file, storage, by=by)
    if plot is not None:
        draw(found, plot)
        typer.echo(f"wrote {plot}", err=True)
    if as_json:
        print_json(found.document())
    else:
        show_explanation(found)


@app.command(
    epilog=example("slimfront dashboard", "slimfront dashboard my_model --port 8081 --storage sqlite:///slimfront.db")
)
def dashboard(
    study: StudyName = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="where to listen")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes a free one")] = 8080,
    storage: StorageUrl = None,
) -> None:
    """Show every trial in Optuna Dashboard, until Ctrl-C."""
    from search.config import storage_url
    from search.dashboard import Dashboard

    served = Dashboard(storage_url(storage), host=host, port=port, study=study)
    if not served.is_private:
        typer.echo(
            f"warning: whoever reaches port {port} of this machine can read, rename and delete studies: "
            "the dashboard has no password",
            err=True,
        )
    typer.echo(f"Optuna Dashboard is at {served.address} until Ctrl-C")
    sys.stdout.flush()
    served.serve()


@app.command(epilog=example("slimfront new my_model", "slimfront launch my_model.yaml"))
def new(name: Annotated[str, typer.Argument(metavar="NAME", help="of the two files, and of the study")]) -> None:
    """Write a workload and a config that run as they are.

    They are NAME.py and NAME.yaml, in this folder; comments in them say what to replace. Nothing is overwritten.
    """
    from search.new import new as write

    for file in write(name, Path()):
        typer.echo(f"wrote {file}")
    typer.echo(f"next: slimfront launch {name}.yaml")


@app.command(epilog=example("slimfront doctor", "slimfront doctor --json"))
def doctor(as_json: AsJson = False, storage: StorageUrl = None) -> None:
    """Check what is installed, the machine, the store and Ray."""
    from dataclasses import asdict

    from search.doctor import examine
    from search.printing import findings_table, show

    findings = examine(storage, say=lambda words: typer.echo(words, err=True))
    well = not any(one.state == "broken" for one in findings)
    if as_json:
        print_json({"ok": well, "findings": [asdict(one) for one in findings]})
    else:
        show(findings_table(findings))
    if not well:
        raise typer.Exit(1)


@app.command(epilog=example("slimfront inspect configs/quickstart.yaml"))
def inspect(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """The sites, channels, sizes and space of a config.

    Its workload is loaded and the float model scored; nothing is searched or stored.
    """
    from search.config import load_config

    loaded = load_config(config, changes or ())
    from search.overview import overview
    from search.printing import groups_table, overview_lines, overview_table, show

    seen = overview(loaded)
    if as_json:
        print_json(seen.document())
    else:
        show(overview_table(seen), *([groups_table(seen)] if seen.groups else []), *overview_lines(seen))


@app.command(epilog=example("slimfront schema policy > policy.schema.json"))
def schema(of: Annotated[Format, typer.Argument(metavar="policy|config", help="of which files")]) -> None:
    """Print the JSON Schema of policies or configs."""
    if of is Format.policy:
        from spaces.policy import PolicyFile

        print_json(PolicyFile.model_json_schema())
    else:
        from search.config import Config

        print_json(Config.model_json_schema())


def main() -> None:
    """The console script."""
    try:
        app(prog_name="slimfront")
    except Exception:  # not one of ours: a mistake in Slimfront, or in what it calls
        typer.echo(without_passwords(traceback.format_exc()), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
