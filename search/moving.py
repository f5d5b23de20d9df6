"""The command that moves a study to another database."""

import shlex
from threading import Event
from typing import Annotated

import typer

from search.options import StudyName

_FROM_HELP = "the database it is in; else $SLIMFRONT_STORAGE, else sqlite:///slimfront.db"


def copy(
    target: Annotated[str, typer.Option("--to", metavar="URL", help="the database it shall be in")],
    study: StudyName = None,
    source: Annotated[str | None, typer.Option("--from", metavar="URL", help=_FROM_HELP)] = None,
) -> None:
    """Copy a study to another database, where it goes on.

    All trials are compared at the end. A copy that was interrupted goes on where it was when the same command is run
    again. Packed files are not in the database: their folder is named at the end.
    """
    from search.address import check_storage_url, hide_password
    from search.config import storage_url
    from search.copying import copy as copy_study
    from search.printing import show
    from search.progress import say
    from search.signals import stopped_politely

    here = storage_url(source)
    check_storage_url(target)
    stop = Event()
    try:
        with stopped_politely(stop):
            done = copy_study(study, here, target, say, stop=stop)
    except KeyboardInterrupt:
        say("interrupted: the same command goes on where it was")
        raise typer.Exit(130) from None
    shown = hide_password(target)
    rows = ", ".join(f"{count:,} {kind}" for kind, count in done.compared.items())
    show(
        f"study {done.study}: copied {done.copied:,} of {done.trials:,} trials from {hide_password(here)} to {shown}",
        f"compared, the same in both: {done.trials:,} trials, {rows}",
    )
    if done.caches:
        folders = ", ".join(str(folder) for folder in done.caches)
        show(
            f"packed files were not copied, they are in {folders}: take that folder along, or set cache.shared; "
            "what is missing is made again when it is needed"
        )
    show("", "next, and no longer in the old database:")
    hint = "" if shown == target else "  # with the password in it"
    show(f"  export SLIMFRONT_STORAGE={shlex.quote(shown)}{hint}")
    show('  slimfront launch CONFIG --storage "$SLIMFRONT_STORAGE"', f"  slimfront front {shlex.quote(done.study)}")
