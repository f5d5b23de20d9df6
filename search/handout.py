"""The commands from a front to a file that is deployed: export, apply and verify."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.options import AsJson, PolicyPath, StorageUrl, StudyName, WorkloadEntry, print_json
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from search.front import Front, Point
    from spaces.policy import PolicyFile

Done = tuple[dict[str, Any], "Sequence[Table | str]"]  # what was done, as JSON values and for people


def export(
    study: StudyName = None,
    knee: Annotated[bool, typer.Option("--knee", help="where more bytes stop paying off; the default")] = False,
    max_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="at most, as in 1.2MB or 30KiB")] = None,
    max_ratio: Annotated[float | None, typer.Option(metavar="R", help="at most this share of the float bytes")] = None,
    min_accuracy: Annotated[float | None, typer.Option(metavar="A", help="at least, on validation")] = None,
    max_drop: Annotated[float | None, typer.Option(metavar="D", help="accuracy that may be lost")] = None,
    trial: Annotated[
        int | None, typer.Option(metavar="N", help="this trial, on the front or not, unless stopped early")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every member of the front, into a folder")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="policy.json, if nothing is said")
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Write the policy JSON of a member of the front.

    Bounds may be combined; without any it is the knee.
    """
    from search.export import select
    from search.front import front as find
    from search.sizes import parse_size

    size = parse_size(max_bytes) if max_bytes is not None else None
    if every and (knee or any(one is not None for one in (size, max_ratio, min_accuracy, max_drop, trial))):
        raise ConfigError("--all: exports every member of the front; leave out what selects one")
    found = find(study, storage, also=() if trial is None else (trial,))
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
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="the packed model to write")
    ] = None,
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="the ONNX model to write, of the same file")] = None,
    report: Annotated[bool, typer.Option("--report", help="say what the policy does at each site")] = False,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="where the search kept packed files")] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="make the file again, and say how it differs")] = False,
    workload: WorkloadEntry = None,
    as_json: AsJson = False,
    storage: StorageUrl = None,
) -> None:
    """Hand out the packed file that was scored, and its ONNX model.

    The file is in --cache, else where the study says, else in $SLIMFRONT_CACHE or ~/.cache/slimfront.
    """
    from search.printing import show
    from spaces.policy import read_policy

    _check_outputs(output, onnx, retrain, report)
    wanted = read_policy(policy)
    told: dict[str, Any] = {"model": None, "onnx": None, "report": None}

    def tell(what: str, done: Done) -> None:
        told[what], parts = done
        if not as_json:
            show(*parts)

    with tempfile.TemporaryDirectory() as folder:
        packed = output or Path(folder) / "model.safetensors"
        if output is not None or onnx is not None:
            done = _retrain(wanted, packed, workload) if retrain else _hand_out(wanted, packed, cache, storage)
            if output is not None:
                tell("model", done)
        if onnx is not None:
            tell("onnx", _deploy(packed, onnx, workload))
    if report:
        tell("report", _report(wanted, workload))
    if as_json:
        print_json(told)


def _check_outputs(output: Path | None, onnx: Path | None, retrain: bool, report: bool) -> None:
    if output is None and retrain:
        raise ConfigError("--retrain: makes the packed file again; name it with -o FILE")
    if output is None and onnx is None and not report:
        raise ConfigError("nothing to do: give -o FILE, --onnx FILE, --report, or several of them")
    if output is not None and output.suffix == ".onnx":
        raise ConfigError(f"-o: given {output}, but -o writes the packed file; for an ONNX file give --onnx {output}")
    if output is not None and onnx is not None and output.resolve() == onnx.resolve():
        raise ConfigError(f"-o and --onnx: both are {output}; give them two names")


def _hand_out(wanted: "PolicyFile", output: Path, cache: Path | None, storage: str | None) -> Done:
    from search.cache import cache_of
    from search.export import apply as hand_out

    hand_out(wanted, output, cache=cache_of(wanted, cache, storage))
    document = {
        "path": str(output),
        "bytes": wanted.artifact.bytes,
        "sha256": wanted.artifact.sha256,
        "accuracy": wanted.score.accuracy,
        "expected_accuracy": wanted.score.accuracy,
        "same_file": True,
        "retrained": False,
    }
    return document, [f"{output}: {wanted.artifact.bytes:,} bytes, the file that scored {wanted.score.accuracy:.4f}"]


def _retrain(wanted: "PolicyFile", output: Path, workload: str | None) -> Done:
    from objectives.retraining import retrain
    from search.printing import retrained_lines

    made = retrain(wanted, output, workload=workload)
    return {**made.document(), "retrained": True}, list(retrained_lines(made))


def _deploy(packed: Path, onnx: Path, workload: str | None) -> Done:
    from objectives.deployment import deploy
    from search.printing import deployed_lines

    made = deploy(packed, onnx, workload=workload)
    return made.document(), list(deployed_lines(made))


def _report(wanted: "PolicyFile", workload: str | None) -> Done:
    from objectives.retraining import report
    from search.printing import report_lines, report_table

    found = report(wanted, workload=workload)
    return found.document(), [report_table(found), *report_lines(found)]


def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a packed model file, or its .onnx file")],
    policy: PolicyPath,
    tolerance: Annotated[
        float | None, typer.Option(metavar="A", help="accuracy by which scores may differ; else 0.002 or 0.005")
    ] = None,
    workload: WorkloadEntry = None,
    as_json: AsJson = False,
) -> None:
    """Check that a model file is what its policy says.

    Compared are its bytes, its hash, what was done to each site, and its accuracy on the same samples; of an ONNX
    file its accuracy alone. The exit code is 1 where one differs.
    """
    from objectives.verification import verify as check
    from search.printing import show, verification_lines
    from spaces.policy import read_policy

    if tolerance is not None and not tolerance >= 0:
        raise ConfigError(f"--tolerance: given {tolerance:g}, allowed a number from 0 on")
    found = check(model, read_policy(policy), workload=workload, tolerance=tolerance)
    if as_json:
        print_json(found.document())
    else:
        show(*verification_lines(found))
    if not found.ok:
        raise typer.Exit(1)
