"""The command that searches: launch."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.options import Changes, ConfigFile, StorageUrl
from spaces.errors import StudyError

if TYPE_CHECKING:
    from search.config import Config


def launch(
    config: ConfigFile,
    trials: Annotated[int | None, typer.Option(metavar="N", help="trials of the whole study")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="as in 90s, 30m or 2h, of this launch")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="end at this local time, as in 18:00 or 2026-12-24T18:00")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(metavar="N", help="end when the front has not grown in N candidates")
    ] = None,
    focus: Annotated[
        str | None, typer.Option(metavar="LOW..HIGH", help="sizes to aim at from now on, as in 40kB..120kB")
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="0 scores in this process")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="of everything random")] = None,
    storage: StorageUrl = None,
    changes: Changes = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="wait until a driver on another machine is gone, and go on")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="search on the Ray cluster of ray.jobs, and return once it has begun")
    ] = False,
) -> None:
    """Start a search, or resume it where it was.

    It ends when its budget is used: its trials, its time, or its patience with a front that stands still. Ctrl-C
    finishes what runs, and prints the front so far. With --detach the search is a job of a Ray cluster, and this
    machine is needed no more.
    """
    from search.config import load_config

    options: dict[str, Any] = {
        "trials": trials,
        "timeout": timeout,
        "until": until,
        "patience": patience,
        "focus": focus,
        "workers": workers,
        "seed": seed,
    }
    loaded = load_config(config, changes or (), **options, storage=storage)
    if detach:
        _detach(loaded, takeover=takeover)
        return
    from search.loop import launch as search
    from search.printing import next_commands, show, show_front
    from search.signals import ended_by_sigterm

    with ended_by_sigterm():  # before and after the search proper, which ends politely
        result = search(loaded, takeover=takeover)
    if not result.front.complete and not result.interrupted:
        failed = "FAIL" in result.front.states
        why = "why the first ones failed is said above" if failed else "the time was up before: give it more"
        raise StudyError(f"study {result.study!r}: no trial has completed; {why}")
    show_front(result.front)
    show("", "next:")
    show(*(f"  {command}" for command in next_commands(loaded)))
    if result.interrupted:
        typer.echo("interrupted: the same command goes on where it was", err=True)
        raise typer.Exit(130)


def _detach(config: "Config", *, takeover: bool) -> None:
    from search.detached import detach
    from search.printing import detached_commands, show

    job = detach(config, takeover=takeover)
    done = "has searched to the end" if job.ended else "searches"
    show(f"job {job.id} {done}; next:", *(f"  {command}" for command in detached_commands(config)))
