"""Deep Compression's experiment (Han et al. 2016, arXiv:1510.00149, table 2) on the workload `lenet`, in real files.

`python -m benchmarks.deep_compression [--json FILE]`. Some policies of pruning and codebooks are carried out, each
stage of them as a file of its own: pruned (sparse float32 weights), with trained codebooks, entropy-coded. The smallest
that loses nothing on validation, and little by a paired bootstrap, is chosen; it alone is tested, once.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from compress.files import artifact_path
from compress.inputs import outputs
from objectives.evaluation import Evaluation, teach
from objectives.judging import FixedJudge
from objectives.score import Scorer
from objectives.splits import SplitName
from objectives.workload import load_workload
from spaces.policy import Choice, Codebook, Distillation, Float32, Policy, Unstructured, Weights
from spaces.target import CodingName

WORKLOAD = "objectives.workloads.lenet:workload"
CHUNK, STEPS = 200, 2000
SETTINGS = Distillation(temperature=2, alpha=0.9, learning_rate=3e-4, batch_size=64, grids="learned")
SITES = ("fc1", "fc2", "fc3")
POLICIES = (  # shares of weights pruned and bits of a code, layer by layer
    ((0.85, 0.60, 0.2), (4, 4, 5)),
    ((0.87, 0.65, 0.2), (4, 4, 5)),
    ((0.90, 0.70, 0.2), (4, 4, 5)),
    ((0.92, 0.75, 0.2), (4, 4, 5)),
    ((0.94, 0.80, 0.3), (4, 4, 5)),
    ((0.95, 0.85, 0.3), (3, 4, 5)),
)
STAGES: tuple[tuple[str, bool, CodingName], ...] = (
    ("pruned", False, "packed"),
    ("+ trained codebook", True, "packed"),
    ("+ entropy coding", True, "entropy"),
)
ALLOWED = 0.005  # accuracy that may be lost
RESAMPLES, CONFIDENCE = 10_000, 0.95


@dataclass(frozen=True)
class Stage:
    """One policy up to one stage.

    Attributes:
        ratio: how many times smaller than the float model's file.
        lost: accuracy lost against it on validation, and the bootstrap's upper bound of that.
    """

    policy: str
    stage: str
    bytes: int
    ratio: float
    accuracy: float
    lost: float
    lost_at_most: float


@dataclass(frozen=True)
class Tested:
    """The chosen policy on the test split, against the float model on the same samples."""

    policy: str
    ratio: float
    accuracy: float
    float_accuracy: float
    lost: float
    lost_at_most: float
    holds: bool


def bound(right: torch.Tensor, float_right: torch.Tensor) -> tuple[float, float]:
    """Accuracy lost, and its one-sided upper bound by a bootstrap of the samples, paired.

    Args:
        right: boolean, (samples,), whether the compressed model answered rightly.
        float_right: the same of the float model.
    """
    lost = float_right.double() - right.double()
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [lost[torch.randint(len(lost), (len(lost),), generator=generator)].mean() for _ in range(RESAMPLES)]
    )
    return float(lost.mean()), float(draws.quantile(CONFIDENCE))


def policy_of(ratios: Sequence[float], bits: Sequence[int], *, coded: bool) -> Policy:
    """Pruning by output error at every layer, and a codebook where it is `coded`."""
    sites = {}
    for name, ratio, width in zip(SITES, ratios, bits, strict=True):
        weights: Weights = Codebook(bits=width, rounding="gptq") if coded else Float32()
        sites[name] = Choice(prune=Unstructured(ratio=ratio, criterion="hessian"), weights=weights)
    return Policy(sites=sites, distillation=SETTINGS)


def run(folder: Path) -> tuple[list[Stage], Tested | None]:
    """All stages of all policies, and the test of the chosen one; None where none is good enough on validation."""
    loaded = load_workload(WORKLOAD)
    stages: list[Stage] = []
    chosen: tuple[int, Path, Stage] | None = None

    def right(model: torch.nn.Module, split: SplitName) -> torch.Tensor:
        data = loaded.splits[split]
        if data.targets is None:
            raise ValueError(f"the {split} split has no targets")
        return outputs(model, data.inputs, CHUNK).argmax(dim=1) == data.targets

    float_right = right(loaded.model, "validation")
    for name, coded, coding in STAGES:
        evaluation = Evaluation(0, CHUNK, 1, "cpu", (STEPS,), folder, coding=coding, max_bytes=0, distillation=SETTINGS)
        scorer = Scorer(loaded, evaluation, teach(loaded, evaluation))
        whole = scorer.float_score().bytes
        for ratios, bits in POLICIES:
            policy = policy_of(ratios, bits, coded=coded)
            score = scorer.score(policy, FixedJudge())
            path = artifact_path(folder, str(score.artifact))
            lost, most = bound(right(scorer.models.family.load(path), "validation"), float_right)
            words = f"{' '.join(f'{one:.0%}' for one in ratios)}, {' '.join(map(str, bits))} bits"
            stage = Stage(words, name, score.bytes, whole / score.bytes, score.accuracy, lost, most)
            print(f"{words}: {name}: {score.bytes:,} bytes, {stage.ratio:.1f}x, {score.accuracy:.4f}", flush=True)
            stages.append(stage)
            if name == STAGES[-1][0] and lost <= 0 and most <= ALLOWED and (chosen is None or score.bytes < chosen[0]):
                chosen = (score.bytes, path, stage)
    if chosen is None:
        return stages, None
    _, path, stage = chosen
    found, reference = right(scorer.models.family.load(path), "test"), right(loaded.model, "test")
    lost, most = bound(found, reference)
    accuracy = [float(one.double().mean()) for one in (found, reference)]
    return stages, Tested(stage.policy, stage.ratio, accuracy[0], accuracy[1], lost, most, most <= ALLOWED)


def show(stages: Sequence[Stage], tested: Tested | None) -> None:
    """Print the table and what was tested."""
    table = Table(title=f"lenet, {STEPS} steps, losses on validation in points", title_justify="left")
    for heading in ("pruned, codes", "stage", "bytes", "smaller", "accuracy", "lost", "at most"):
        table.add_column(heading, justify="left" if heading in ("pruned, codes", "stage") else "right")
    for one in sorted(stages, key=lambda stage: -stage.ratio):
        numbers = (f"{one.bytes:,}", f"{one.ratio:.1f}x", f"{one.accuracy:.4f}")
        table.add_row(one.policy, one.stage, *numbers, f"{100 * one.lost:+.2f}", f"{100 * one.lost_at_most:+.2f}")
    Console(width=120).print(table)
    if tested is None:
        print(f"none loses nothing on validation, and at most {100 * ALLOWED:g} points at {CONFIDENCE:.0%} confidence")
        return
    print(
        f"chosen on validation: {tested.policy}: {tested.ratio:.1f}x; on test {tested.accuracy:.4f}, float "
        f"{tested.float_accuracy:.4f}: loses {100 * tested.lost:+.2f} points, at most {100 * tested.lost_at_most:+.2f} "
        f"at {CONFIDENCE:.0%} confidence ({'within' if tested.holds else 'more than'} {100 * ALLOWED:g})"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deep_compression", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stages, tested = run(Path(folder))
    show(stages, tested)
    if options.json:
        document = {"stages": [asdict(one) for one in stages], "tested": asdict(tested) if tested else None}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
