"""Bytes of the shipped models' quantized weights: packed, at their entropy, by our coder and by DeepCABAC.

DeepCABAC is the coder of the standard ISO/IEC 15938-17 as its authors publish it, PyPI's nncodec. It is compared where
it is installed: `pip install --no-deps nncodec==2.1.3` in an environment of its own (it pins an older numpy, and needs
a C++ compiler and pybind11 to build). Only its extension is loaded, so nothing else that it names is needed.
"""

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from compress.entropy import decode, encode

WEIGHTS = Path(__file__).parent.parent / "objectives" / "workloads" / "weights"
MODELS = ("digits", "animals")
BITS = (2, 3, 4, 6, 8)
RATIOS = (0.0, 0.5, 0.8, 0.9)
CLIPS = np.linspace(0.25, 1, 31)  # shares of a row's largest weight that are tried as its largest code
MISSING = "nncodec is not installed: pip install --no-deps nncodec==2.1.3 (in an environment of its own)"

Codes = npt.NDArray[np.int16]
Length = Callable[[Codes, int], float]


def quantize(weight: npt.NDArray[np.float32], bits: int, ratio: float) -> Codes:
    """Codes (channels, n): the smallest weights of the site to zero, the rest rounded, each row clipped to its best."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    rows = np.where(np.abs(rows) < np.quantile(np.abs(rows), ratio), 0, rows)
    top = (1 << (bits - 1)) - 1
    step = np.maximum(np.abs(rows).max(axis=1), 1e-30) / top * CLIPS[:, None]  # (clips, channels)
    tried = (rows / step[..., None]).round().clip(-top, top)
    error = np.square(tried * step[..., None] - rows).sum(axis=2)
    best: Codes = tried[error.argmin(axis=0), np.arange(len(rows))].astype(np.int16)
    return best


def dense(codes: Codes, bits: int) -> int:
    """Bytes of all codes, packed."""
    return math.ceil(codes.size * bits / 8)


def bitmap(codes: Codes, bits: int) -> int:
    """Bytes of a bit for each code and the non-zero codes, packed."""
    beside_zero = max(1, ((1 << bits) - 3).bit_length())
    return math.ceil(codes.size / 8) + math.ceil(np.count_nonzero(codes) * beside_zero / 8)


def entropy(codes: Codes, bits: int) -> float:
    """Bytes that the shares of the codes allow at best, without what it takes to say them."""
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum() / 8)


def ours(codes: Codes, bits: int) -> int:
    """Bytes of our coder, after a look at whether they decode."""
    top = (1 << (bits - 1)) - 1
    data = encode(codes, -top, top)
    if not np.array_equal(decode(data, len(codes), codes.shape[1], -top, top), codes):
        raise AssertionError("the codes did not come back")
    return len(data)


def deepcabac(extension: ModuleType) -> Length:
    """The shortest that DeepCABAC gets over its settings, without the standard's headers."""

    def length(codes: Codes, bits: int) -> float:
        whole = np.ascontiguousarray(codes, np.int32)
        empty = (~whole.any(axis=1)).astype(np.int32)
        lengths = []
        for unary, tuned, skip_rows, scan in product((1, 2, 4, 10), (0, 1), (0, 1), range(5)):
            coder = extension.Encoder()
            coder.initCtxModels(unary, tuned)
            off = (extension.HdspMode.AlwaysOff, np.zeros(0, np.int8))
            coder.encodeLayer(whole, 0, scan, 1, 0, skip_rows, empty, *off, 0, 0)
            lengths.append(len(coder.finish()))
        return float(min(lengths))

    return length


def find_extension() -> ModuleType | None:
    """DeepCABAC's extension module of an installed nncodec, loaded without the rest of the package."""
    package = importlib.util.find_spec("nncodec")
    for folder in (package.submodule_search_locations or []) if package else []:
        for path in Path(folder, "extensions").glob("deepCABAC*.[sp][oy]*"):
            spec = importlib.util.spec_from_file_location("deepCABAC", path)
            if spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    return None


def timed(sites: list[Codes], bits: int) -> tuple[float, float]:
    """CPU seconds of coding and of decoding all sites."""
    top = (1 << (bits - 1)) - 1
    start = time.process_time()
    coded = [encode(codes, -top, top) for codes in sites]
    middle = time.process_time()
    for codes, data in zip(sites, coded, strict=True):
        decode(data, len(codes), codes.shape[1], -top, top)
    return middle - start, time.process_time() - middle


def main() -> None:
    """Measure and print; with --json FILE, write that too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    target: Path | None = parser.parse_args().json
    extension = find_extension()
    ways: dict[str, Length] = {"dense": dense, "bitmap": bitmap, "entropy": entropy, "ours": ours}
    if extension is not None:
        ways["deepcabac"] = deepcabac(extension)
    table = Table(title="Bytes of the sites' codes")
    for column in ("model", "bits", "zeros", *ways, "ours / entropy", "ours / deepcabac", "encode", "decode"):
        table.add_column(column, justify="right")
    found = []
    for model, bits, ratio in product(MODELS, BITS, RATIOS):
        tensors = load_file(WEIGHTS / f"{model}.safetensors").values()
        sites = [quantize(weight, bits, ratio) for weight in tensors if weight.ndim >= 2]
        lengths = {name: sum(way(codes, bits) for codes in sites) for name, way in ways.items()}
        seconds = timed(sites, bits)
        against = [lengths["ours"] / lengths[name] if name in lengths else None for name in ("entropy", "deepcabac")]
        found.append(
            {
                "model": model,
                "bits": bits,
                "ratio": ratio,
                "bytes": lengths,
                "encode_s": seconds[0],
                "decode_s": seconds[1],
            }
        )
        table.add_row(
            model,
            str(bits),
            f"{ratio:.0%}",
            *(f"{length:,.0f}" for length in lengths.values()),
            *("-" if share is None else f"{share:.4f}" for share in against),
            *(f"{spent * 1e3:.0f} ms" for spent in seconds),
        )
    Console(width=150).print(table)
    if extension is None:
        print(MISSING)
    if target is not None:
        target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
