"""Channels taken out of a model: multiply-accumulates and time of the exported ONNX file, against the whole model's.

`python -m benchmarks.channels [WORKLOAD] [--ratio 0.5] [--multiple 8] [--json FILE]`. Every channel group is pruned at
the same ratio, by the default criterion. Times are medians of runs of ONNX Runtime on one thread, turn by turn.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from compress.inputs import Inputs, count, named, outputs, positional, take
from compress.onnx import export
from compress.pruning.channel_scores import kept_channels, scores
from compress.pruning.channels import find_groups
from compress.statistics import collect
from compress.structure import Structure, masked, restructure
from objectives.workload import LoadedWorkload, load_workload
from spaces.policy import ChannelPruning

BATCH = 32
CHUNK = 200
RUNS = 300


@dataclass(frozen=True)
class Row:
    """One exported file.

    Attributes:
        milliseconds: median of a batch.
        onnx_difference: largest difference of ONNX Runtime's outputs to torch's.
        masked_difference: largest difference, in torch, to the whole model with zeros for what was removed, and the
            largest of its outputs.
    """

    model: str
    macs: int
    file_bytes: int
    milliseconds: float
    onnx_difference: float
    masked_difference: float
    largest_output: float


def prune(loaded: LoadedWorkload, ratio: float, multiple: int) -> tuple[nn.Module, nn.Module]:
    """The smaller model, and the whole one with zeros for what was removed."""
    model, criterion = loaded.model, ChannelPruning().criterion
    groups, _ = find_groups(model, loaded.workload.example_input)
    known = collect(model, loaded.sites, loaded.splits["calibration"].inputs, CHUNK)
    kept = {
        group.name: kept_channels(scores(model, group, criterion, known), ratio, group.step(multiple))
        for group in groups
    }
    smaller = restructure(model, groups, Structure(kept))
    return smaller.model, masked(model, smaller.index)


def macs(path: Path) -> int:
    """Multiply-accumulates of one sample in an ONNX file: each constant weight once for each position it is used at."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    sizes = {tensor.name: torch.Size(tensor.dims).numel() for tensor in graph.initializer}
    channels = {tensor.name: tensor.dims for tensor in graph.initializer}
    shapes = {
        value.name: [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]  # the batch has no number
        for value in (*graph.value_info, *graph.output)
    }
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in sizes:
            shape = torch.Size(shapes[node.output[0]])
            outputs_at_a_position = shape[1] if node.op_type == "Conv" else shape[-1]
            if outputs_at_a_position not in channels[node.input[1]]:
                raise ValueError(f"{path}: {node.name} puts out {shape}, its weight has {channels[node.input[1]]}")
            total += sizes[node.input[1]] * shape.numel() // outputs_at_a_position
    return total


def times(paths: list[Path], batch: Inputs, runs: int) -> list[float]:
    """Median milliseconds of a batch for each file, turn by turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(path), options) for path in paths]
    names = [entry.name for entry in sessions[0].get_inputs()]
    feed = {**dict(zip(names, positional(batch), strict=False)), **named(batch)}
    arrays = {name: feed[name].numpy() for name in names}
    spent: list[list[float]] = [[] for _ in sessions]
    for number in range(runs + 10):
        for found, session in zip(spent, sessions, strict=True):
            since = time.perf_counter()
            session.run(None, arrays)
            if number >= 10:
                found.append((time.perf_counter() - since) * 1e3)
    return [statistics.median(found) for found in spent]


def measure(entry: str, ratio: float, multiple: int, folder: Path, runs: int = RUNS) -> list[Row]:
    """The whole and the smaller model of a workload."""
    loaded = load_workload(entry)
    model, samples = loaded.model, loaded.splits["calibration"].inputs
    batch = take(samples, torch.arange(BATCH) % count(samples))
    smaller, zeros = prune(loaded, ratio, multiple)
    pairs = {"whole": (model, model), f"{ratio:.0%} of channels removed": (smaller, zeros)}
    paths = [folder / f"{i}.onnx" for i in range(len(pairs))]
    reports = [export(one, batch, path) for (one, _), path in zip(pairs.values(), paths, strict=True)]
    rows = []
    for (name, (one, reference)), report, spent in zip(pairs.items(), reports, times(paths, batch, runs), strict=True):
        got, wanted = outputs(one, batch, BATCH), outputs(reference, batch, BATCH)
        difference, largest = float((got - wanted).abs().max()), float(wanted.abs().max())
        rows.append(Row(name, macs(report.path), report.file_bytes, spent, report.difference, difference, largest))
    return rows


def main() -> None:
    """Measure, print, and write a JSON file if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", nargs="?", default="objectives.workloads.animals:workload")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given.workload, given.ratio, given.multiple, Path(folder))
    whole = rows[0]
    table = Table(title=f"{given.workload} in ONNX Runtime, one thread, batch {BATCH}, median of {RUNS} runs in turn")
    for column in ("", "MACs", "share", "bytes", "a batch", "times as fast", "to torch", "to masked"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.macs:,}",
            f"{row.macs / whole.macs:.1%}",
            f"{row.file_bytes:,}",
            f"{row.milliseconds:.2f} ms",
            f"{whole.milliseconds / row.milliseconds:.2f}",
            f"{row.onnx_difference:.1e}",
            f"{row.masked_difference:.1e} of {row.largest_output:.1f}",
        )
    Console(width=120).print(table)
    if given.json:
        found = {
            "rows": [asdict(row) for row in rows],
            "macs_share": rows[1].macs / whole.macs,
            "speedup": whole.milliseconds / rows[1].milliseconds,
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
