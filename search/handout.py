"""The commands from a front to a file that is deployed: export, apply and verify."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.options import AsJson, PolicyPath, StorageUrl, StudyName, WorkloadEntry, print_json
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from search.front import Front, Point


def export(
    study: StudyName = None,
    knee: Annotated[bool, typer.Option("--knee", help="where more bytes stop paying off; the default")] = False,
    max_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="at most, as in 1.2MB or 30KiB")] = None,
    max_ratio: Annotated[float | None, typer.Option(metavar="R", help="at most this share of the float bytes")] = None,
    min_accuracy: Annotated[float | None, typer.Option(metavar="A", help="at least, on validation")] = None,
    max_drop: Annotated[float | None, typer.Option(metavar="D", help="accuracy that may be lost")] = None,
    trial: Annotated[int | None, typer.Option(metavar="N", help="this trial, on the front or not")] = None,
    every: Annotated[bool, typer.Option("--all", help="every member of the front, into a folder")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="policy.json, if nothing is said")
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Write the policy JSON of a member of the front.

    Bounds may be combined; without any it is the knee.
    """
    from search.export import parse_size, select
    from search.front import front as find

    size = parse_size(max_bytes) if max_bytes is not None else None
    if every and (knee or any(one is not None for one in (size, max_ratio, min_accuracy, max_drop, trial))):
        raise ConfigError("--all: exports every member of the front; leave out what selects one")
    found = find(study, storage)
    if every:
        folder = output or Path("policies")
        members = found.points or (select(found),)  # which says that there is none yet
        _export(found, {folder / f"{found.study}-{one.trial}.json": one for one in members}, storage)
    else:
        point = select(
            found,
            knee=knee,
            max_bytes=size,
            max_ratio=max_ratio,
            min_accuracy=min_accuracy,
            max_drop=max_drop,
            trial=trial,
        )
        _export(found, {output or Path("policy.json"): point}, storage)


def _export(found: "Front", points: "Mapping[Path, Point]", storage: str | None) -> None:
    from search.export import policy_files, write_policy
    from search.printing import point_line, show

    policies = policy_files(list(points.values()), found.study, storage)
    for (path, point), policy in zip(points.items(), policies, strict=True):
        write_policy(policy, path)
        show(f"{path}: {point_line(point, found)}")


def apply(
    policy: PolicyPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="the packed model to write")],
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="where the search kept packed files")] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="make the file again, and say how it differs")] = False,
    workload: WorkloadEntry = None,
    storage: StorageUrl = None,
) -> None:
    """Hand out the packed model file that was scored.

    It is in --cache, else where the study says, else in $SLIMFRONT_CACHE or ~/.cache/slimfront.
    """
    from search.printing import retrained_lines, show
    from spaces.policy import read_policy

    wanted = read_policy(policy)
    if retrain:
        from objectives.serving import retrain as make

        show(*retrained_lines(make(wanted, output, workload=workload)))
        return
    from search.cache import cache_of
    from search.export import apply as hand_out

    hand_out(wanted, output, cache=cache_of(wanted, cache, storage))
    show(f"{output}: {wanted.artifact.bytes:,} bytes, the file that scored {wanted.score.accuracy:.4f}")


def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a packed model file")],
    policy: PolicyPath,
    workload: WorkloadEntry = None,
    as_json: AsJson = False,
) -> None:
    """Check that a model file is what its policy says.

    Compared are its bytes, its hash, and its accuracy on the same samples; the exit code is 1 where one differs.
    """
    from objectives.serving import verify as check
    from search.printing import show, verification_lines
    from spaces.policy import read_policy

    found = check(model, read_policy(policy), workload=workload)
    if as_json:
        print_json(found.document())
    else:
        show(*verification_lines(found))
    if not found.ok:
        raise typer.Exit(1)
