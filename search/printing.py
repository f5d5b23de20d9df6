"""What the commands print for people: tables, sentences, and the next commands to paste."""

import contextlib
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.address import hide_password
from search.config import Config, storage_url
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from objectives.deployment import Deployed
    from objectives.retraining import Report, Retrained
    from objectives.verification import Verification
    from search.doctor import Finding
    from search.explain import Explanation
    from search.front import Front, Point
    from search.overview import Overview
    from search.status import Best, Status

WIDE = 200  # columns where the output is no terminal: nothing is cut
_SAMENESS = {True: "that of the policy", False: "another than the policy's", None: "the policy has none"}
STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}


def show(*parts: "Table | str") -> None:
    """Print tables and lines on standard output; text is printed as it is, in one piece."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=WIDE)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def show_front(front: "Front") -> None:
    """Print a front: its table, and the sentences that say how far to trust it."""
    from rich.console import Console

    from search.duels import sentences
    from search.plot import table

    console = Console()
    show(table(front, console.width if console.is_terminal else WIDE), *sentences(front))


def show_explanation(found: "Explanation") -> None:
    """Print why sites got their choices: the table, and what it is to be read with."""
    from rich.console import Console

    from search.explain_plot import lines, table

    console = Console()
    show(table(found, console.width if console.is_terminal else WIDE), *lines(found))


def point_line(point: "Point", front: "Front") -> str:
    """A point in a line."""
    smaller = front.float.bytes / point.bytes
    accuracy = f"accuracy {point.accuracy:.4f} (float {front.float.accuracy:.4f})"
    line = f"trial {point.trial}: {point.bytes:,} bytes, {smaller:.1f}x smaller than the float model, {accuracy}"
    return f"{line}, an estimate: its evaluation was stopped early" if point.stopped else line


def status_lines(status: "Status") -> Iterable[str]:
    """A status in a few lines."""
    told = sum(count for state, count in status.states.items() if state not in ("RUNNING", "WAITING"))
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(status.states.items()))
    yield f"study {status.study}: {told} of {status.trials} trials told ({states or 'none yet'})"
    yield f"ends: {status.ends}"
    yield f"rate: {'not known yet' if status.rate is None else f'{status.rate:.2f} candidates/s'}"
    for best in status.best:
        yield _best_line(best)
    if status.driver is None:
        yield "driver: none"
    else:
        where = f"process {status.driver.pid} on {status.driver.host}"
        heard = f"heard of {status.driver.age_s:.0f} s ago"
        yield f"driver: {where}, {'alive' if status.driver.alive else 'gone'}, {heard}"


def _best_line(best: "Best") -> str:
    within = f"best at 1/{best.share} of the float bytes ({best.limit:,})"
    if best.trial is None:
        return f"{within}: none yet"
    return f"{within}: accuracy {best.accuracy:.4f}, {best.bytes:,} bytes, trial {best.trial}"


def verification_lines(found: "Verification") -> Iterable[str]:
    """What was compared, what does not hold, and the verdict."""
    if found.expected_bytes is None:
        yield f"bytes: {found.measured_bytes:,}, of an ONNX file"
    else:
        yield f"bytes: {found.measured_bytes:,}, the policy says {found.expected_bytes:,}"
        yield f"hash: {_SAMENESS[found.same_file]}"
    for split, measured, expected in (
        ("validation", found.measured_accuracy, found.expected_accuracy),
        ("test", found.measured_test_accuracy, found.expected_test_accuracy),
    ):
        yield f"accuracy on {split}: {_accuracy(measured)}, the policy says {_accuracy(expected)}"
    yield from (f"note: {note}" for note in found.notes)
    yield from (f"differs: {reason}" for reason in found.reasons)
    held = "scores what the policy says" if found.kind == "onnx" else "is what the policy says"
    yield f"verified: the file {held}" if found.ok else "not verified"


def retrained_lines(made: "Retrained") -> Iterable[str]:
    """A file that was made again, and how it differs from the one that was scored."""
    yield f"{made.path}: {made.bytes:,} bytes, made again"
    yield f"hash: {_SAMENESS[made.same_file]}"
    yield f"accuracy on validation: {_accuracy(made.accuracy)}, the policy says {_accuracy(made.expected_accuracy)}"


def deployed_lines(made: "Deployed") -> Iterable[str]:
    """An ONNX file that was written."""
    yield f"{made.path}: {made.bytes:,} bytes, differs from torch by {made.difference:.1e} at most"
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(made.stored.values()).items()))
    yield f"weights of sites: {counts}"


def report_table(found: "Report") -> "Table":
    """What a policy does at each site."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title="what the policy does", title_justify="left")
    for name in ("site", "choice", "zeros", "bytes", "output error", "note"):
        made.add_column(name, justify="left" if name in ("site", "choice", "note") else "right", overflow="fold")
    for one in found.sites:
        numbers = f"{one.sparsity:.1%}", f"{one.bytes:,}", f"{one.error:.2g}"
        made.add_row(Text(one.site), Text(one.choice.label), *numbers, Text(one.note or ""))
    return made


def report_lines(found: "Report") -> Iterable[str]:
    """What the report holds for."""
    yield "output error: squared, of the output on calibration data, as a share of the output's square"
    if found.trained:
        yield "this is before training, which moved codes and bytes: the file that was scored was trained after it"


def _accuracy(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"


def findings_table(findings: Sequence["Finding"]) -> "Table":
    """What the doctor found."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title="slimfront doctor", title_justify="left")
    for name in ("what", "", "found", "fix"):
        made.add_column(name, overflow="fold")
    for one in findings:
        fix = "" if one.state == "ok" else one.fix
        made.add_row(Text(one.name), Text(one.state, STYLES[one.state]), Text(one.found), Text(fix))
    return made


def overview_table(seen: "Overview") -> "Table":
    """The sites of a model."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=f"sites of {seen.workload}", title_justify="left")
    for name in ("site", "shape", "weights", "share", "choices", "tied to"):
        made.add_column(name, justify="left" if name in ("site", "tied to") else "right", overflow="fold")
    for site in seen.sites:
        shape = "x".join(str(length) for length in site.shape)
        numbers = f"{site.weights:,}", f"{site.share:.1%}", str(site.choices)
        made.add_row(Text(site.name), shape, *numbers, Text(", ".join(site.tied)))
    return made


def groups_table(seen: "Overview") -> "Table":
    """The channels of a model that can be removed."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title="channels that can be removed", title_justify="left")
    for name in ("group", "channels", "put out by", "shares searched"):
        made.add_column(name, justify="right" if name == "channels" else "left", overflow="fold")
    for group in seen.groups:
        shares = ", ".join(f"{ratio:g}" for ratio in group.ratios) or "none"
        made.add_row(Text(group.name), str(group.channels), Text(", ".join(group.members)), shares)
    return made


def overview_lines(seen: "Overview") -> Iterable[str]:
    """The sizes of a model and its space."""
    for name, reason in seen.skipped.items():
        yield f"channels of {name.removeprefix('group-') or 'the model'} cannot be removed: {reason}"
    if seen.blocks:
        yield f"blocks that can be left out{_unless(seen.blocks_searched)}: {', '.join(seen.blocks)}"
    for student in seen.students:
        yield f"student {student.name}{_unless(student.searched)}: {student.weights:,} weights"
    accuracy = f"accuracy {seen.float_accuracy:.4f}, on test {seen.float_test_accuracy:.4f}"
    yield f"float model: {seen.float_bytes:,} bytes, {accuracy}, {seen.macs:,.0f} multiply-accumulates"
    smaller = seen.float_bytes / seen.smallest_bytes
    yield f"smallest file in the space: {seen.smallest_bytes:,} bytes, {smaller:.1f}x smaller; coding: {seen.coding}"
    for one in seen.forecast:
        yield f"predicted one-shot for 1/{one.share} of the bytes: loss {one.loss:.3g} with {one.bytes:,} bytes"
    groups = sum(bool(site.tied) for site in seen.sites)
    yield f"groups of sites that share one weight: {groups}"
    yield f"space: about 10^{seen.log10_policies:.0f} policies, {seen.axes} axes; scored on {seen.device}"


def _unless(searched: bool) -> str:
    return "" if searched else " (not searched)"


def next_commands(config: Config) -> Iterable[str]:
    """What to type after a search, ready to paste."""
    option, hint = _storage_option(config.resolved_storage())
    yield from hint
    study, command = shlex.quote(config.study), _command()
    yield f"{command} front {study} --plot front.png{option}"
    yield f"{command} export {study} --knee -o policy.json{option}"
    yield f"{command} apply policy.json -o model.safetensors{option}"
    yield f"{command} verify model.safetensors policy.json{_workload_option(config)}"
    yield f"{command} dashboard{option}"


def detached_commands(config: Config) -> Iterable[str]:
    """What to type once a search runs on a cluster, ready to paste."""
    option, hint = _storage_option(config.resolved_storage())
    yield from hint
    study, command = shlex.quote(config.study), _command()
    yield from (f"{command} {words}{option}" for words in (f"status {study}", f"logs {study} -f", f"stop {study}"))


def _command() -> str:
    """`slimfront`, or the path by which it was called where that is not what the shell would find."""
    called, found = Path(sys.argv[0]), shutil.which("slimfront")
    if called.name != "slimfront" or (found and Path(found).resolve() == called.resolve()):
        return "slimfront"
    return shlex.quote(str(called))


def _storage_option(url: str) -> tuple[str, list[str]]:
    """The option that makes other commands use this store, and what to say where it must not be shown."""
    try:
        if url == storage_url():
            return "", []
    except ConfigError:
        pass  # $SLIMFRONT_STORAGE is no URL
    if hide_password(url) != url:
        return "", [f"# first: export SLIMFRONT_STORAGE='{hide_password(url)}' with the password in it"]
    return f" --storage {shlex.quote(url)}", []


def _workload_option(config: Config) -> str:
    from objectives.replay import SHIPPED

    if config.workload in SHIPPED:
        return ""
    file, colon, function = config.workload_entry().rpartition(":")
    with contextlib.suppress(OSError):  # the working directory may be gone
        if file.endswith(".py") and Path(file).is_relative_to(Path.cwd()):
            file = os.path.relpath(file)
    return f" --workload {shlex.quote(f'{file}{colon}{function}')}"
