"""What each technique does to each shipped workload, one-shot: accuracy, bytes of the file, seconds.

`python -m benchmarks.compression [digits animals lenet] [--json FILE]`. The same choice is made at every site; where a
site cannot have it (N:M and scales per group, whose sizes must divide its weights a channel), what it has instead is
printed. Bytes are those of a written file, entropy-coded. SmoothQuant has no row: it moves ranges of activations behind
a LayerNorm into the weights, and none of these models has one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from objectives.evaluation import Evaluation, teach
from objectives.judging import FixedJudge
from objectives.score import Scorer
from objectives.workload import load_workload
from spaces.errors import CandidateError
from spaces.policy import (
    Activations,
    ChannelPruning,
    Choice,
    Codebook,
    DynamicActivations,
    Float32,
    NoPruning,
    Policy,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Weights,
)

WORKLOADS = ("digits", "animals", "lenet")
CHUNK = 200
CRITERIA = ("magnitude", "random", "taylor", "apoz", "wanda", "hessian")
CHANNEL_CRITERIA = ("l1", "l2", "random", "taylor", "apoz", "batchnorm", "wanda", "hessian")


@dataclass(frozen=True)
class Row:
    """One technique at one setting on one workload.

    Attributes:
        accuracy: on validation, one-shot.
        loss: divergence from the float model's outputs on calibration data.
        bytes: of the written file; `share` of the float model's.
        seconds: to compress all sites and score the model.
    """

    workload: str
    technique: str
    setting: str
    accuracy: float
    loss: float
    bytes: int
    share: float
    seconds: float


def choices() -> Iterator[tuple[str, str, Choice]]:
    """Technique, setting and choice of all rows that make the same choice at every site."""
    for bits in (2, 3, 4, 8):
        kinds: dict[str, Weights] = {
            "uniform, nearest": Uniform(bits=bits),
            "uniform, nearest, per tensor": Uniform(bits=bits, scale_per="tensor"),
            "uniform, nearest, per group of 8": Uniform(bits=bits, scale_per="group", group_size=8),
            "uniform, nearest, asymmetric": Uniform(bits=bits, symmetric=False),
            "uniform, AdaRound": Uniform(bits=bits, rounding="adaround"),
            "uniform, GPTQ": Uniform(bits=bits, rounding="gptq"),
            "codebook": Codebook(bits=bits),
            "codebook, Fisher": Codebook(bits=bits, fisher=True),
            "codebook, GPTQ": Codebook(bits=bits, rounding="gptq"),
        }
        for name, weights in kinds.items():
            yield name, f"{bits} bits", Choice(weights=weights)
    for ratio in (0.5, 0.7, 0.9):
        for criterion in CRITERIA:
            prune = Unstructured.model_validate({"ratio": ratio, "criterion": criterion})
            yield f"unstructured, {criterion}", f"{ratio:.0%}", Choice(prune=prune)
    for value in (0.02, 0.05, 0.1):
        yield "threshold", f"below {value}", Choice(prune=Threshold(value=value))
    for n, m in ((2, 4), (4, 8), (1, 4)):
        for name in ("magnitude", "hessian"):
            pattern = SemiStructured.model_validate({"n": n, "m": m, "criterion": name})
            yield f"N:M, {name}", f"{n}:{m}", Choice(prune=pattern)
    for joint in (("magnitude", "nearest"), ("hessian", "gptq")):
        prune = Unstructured.model_validate({"ratio": 0.6, "criterion": joint[0]})
        weights = Uniform.model_validate({"bits": 4, "rounding": joint[1]})
        yield f"joint, {joint[0]} and {joint[1]}", "60% and 4 bits", Choice(prune=prune, weights=weights)
    for bits in (4, 6, 8):
        grids: dict[str, Activations] = {
            "activations, static, mse": StaticActivations(bits=bits),
            "activations, static, min-max": StaticActivations(bits=bits, range="minmax"),
            "activations, dynamic": DynamicActivations(bits=bits),
        }
        for name, activations in grids.items():
            yield name, f"{bits} bits", Choice(activations=activations)


def measure(name: str, folder: Path) -> Iterator[Row]:
    """All rows of a workload."""
    loaded = load_workload(f"objectives.workloads.{name}:workload")
    evaluation = Evaluation(0, CHUNK, 1, "cpu", (), folder, coding="entropy", max_bytes=0, gradients=True)
    teacher = teach(loaded, evaluation)
    whole = Scorer(loaded, evaluation, teacher).float_score().bytes
    scorer = Scorer(loaded, evaluation, teacher)
    scorer.models.statistics(None)  # once for all: not a technique's own time

    def row(technique: str, setting: str, policy: Policy) -> Row | None:
        start = time.perf_counter()
        try:
            score = scorer.score(policy, FixedJudge(0, kept=False))
        except CandidateError as error:
            print(f"{name}: {technique}, {setting}: {error}", flush=True)
            return None
        seconds = time.perf_counter() - start
        rung = score.rungs[-1]
        return Row(name, technique, setting, score.accuracy, rung.loss, score.bytes, score.bytes / whole, seconds)

    policies = [(t, s, _everywhere(scorer, t, s, choice)) for t, s, choice in choices()]
    policies += list(_structures(scorer))
    for technique, setting, policy in policies:
        if (found := row(technique, setting, policy)) is not None:
            yield found


def _everywhere(scorer: Scorer, technique: str, setting: str, choice: Choice) -> Policy:
    """The choice at every site; one that it does not fit has the nearest that does, and that is printed."""
    sites, instead = {}, dict[str, list[str]]()
    for site in scorer.loaded.sites:
        sites[site.name], other = _fitting(choice, site.size // site.channels)
        if other:
            instead.setdefault(other, []).append(f"{site.name} ({site.size // site.channels})")
    for other, names in instead.items():
        where = f"{len(names)} of {len(sites)} sites (weights a channel): {', '.join(names)}"
        print(f"{scorer.loaded.entry}: {technique}, {setting}: {other} at {where}", flush=True)
    return Policy(sites=sites)


def _fitting(choice: Choice, columns: int) -> tuple[Choice, str | None]:
    """The choice as a site with so many weights a channel can have it, and what it has instead of what was asked."""
    prune, weights = choice.prune, choice.weights
    if isinstance(prune, SemiStructured) and columns % prune.m:
        return choice.model_copy(update={"prune": NoPruning()}), "not pruned"
    if isinstance(weights, Uniform) and weights.group_size is not None and columns % weights.group_size:
        plain = weights.model_copy(update={"scale_per": "channel", "group_size": None})
        return choice.model_copy(update={"weights": plain}), "a scale per channel"
    return choice, None


def _structures(scorer: Scorer) -> Iterator[tuple[str, str, Policy]]:
    """Channel pruning by each criterion, and each residual block left out."""
    member = scorer.models.member(None)
    plain = {site.name: Choice(weights=Float32()) for site in member.sites}
    for ratio in (0.25, 0.5):
        for criterion in CHANNEL_CRITERIA:
            how = ChannelPruning.model_validate({"criterion": criterion})
            channels = {group.name: ratio for group in member.groups}
            if channels:
                policy = Policy(sites=plain, channels=channels, channel_pruning=how)
                yield f"channels, {criterion}", f"{ratio:.0%}", policy
    for block in member.blocks:
        sites = {name: choice for name, choice in plain.items() if not name.startswith(f"{block}.")}
        yield "blocks", f"without {block}", Policy(sites=sites, dropped=(block,))


def show(rows: Sequence[Row]) -> None:
    """Print a table for each workload."""
    for name in dict.fromkeys(row.workload for row in rows):
        table = Table(title=f"{name}, one-shot", title_justify="left")
        for heading in ("technique", "setting", "accuracy", "KL", "bytes", "of float", "seconds"):
            table.add_column(heading, justify="left" if heading in ("technique", "setting") else "right")
        for row in (one for one in rows if one.workload == name):
            numbers = (
                f"{row.accuracy:.4f}",
                f"{row.loss:.4f}",
                f"{row.bytes:,}",
                f"{row.share:.1%}",
                f"{row.seconds:.2f}",
            )
            table.add_row(row.technique, row.setting, *numbers)
        Console(width=120).print(table)
        print(f"median seconds: {statistics.median(row.seconds for row in rows if row.workload == name):.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in options.workloads for row in measure(name, Path(folder))]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
