"""A model written as an ONNX file: BatchNorms folded, any batch size, coded weights as the smallest types ONNX has.

ONNX Runtime is asked whether the file gives torch's outputs before it is handed out.
"""

import contextlib
import copy
import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.coding import CodedWeight
from compress.files import write_file
from compress.folding import fold_batchnorms
from compress.inputs import Inputs, chunks, count, first_tensor, named, outputs, positional, take
from compress.onnx_weights import OPSET, store_coded
from compress.quantization.activations import (
    InputGrid,
    QuantizeInput,
    input_grids,
    leave_inputs_float,
    quantize_inputs,
)
from compress.sites import Site
from spaces.errors import ArtifactError, CandidateError, ConfigError

CHUNK = 32
TOLERANCE = 1e-4  # of the largest output, where nothing is rounded on the way
ROUNDED_TOLERANCE = 0.25  # root mean square, of the outputs': rounding inputs turns a last bit into a whole step
_LARGEST_BYTES = 2**31 - 1  # of a protobuf message


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        file_bytes: its size.
        stored: how each site's weights are kept in it, such as "int8", "uint4", "float16" or "float32".
        folded: layers that took in the BatchNorm behind them.
        difference: largest absolute difference of ONNX Runtime's outputs to torch's on the example.
    """

    path: Path
    file_bytes: int
    stored: Mapping[str, str]
    folded: tuple[str, ...]
    difference: float


def export(
    model: nn.Module,
    example: Inputs,
    path: Path,
    *,
    coded: Mapping[str, CodedWeight] | None = None,
    sites: Sequence[Site] = (),
) -> ExportReport:
    """Write a model as one ONNX file with a batch dimension of any size.

    Weights of `coded` sites are kept as codes and decoded by the file itself, exactly to the weights that were scored.
    Inputs that `quantize_inputs` rounds are rounded in the file, too.

    Args:
        model: is not touched.
        example: samples that the model takes, on which the file is checked.
        path: where to write; replaced whole or not at all.
        coded: the coded weights that `model` holds, by site name; None keeps all weights as float32.
        sites: the model's sites, where `coded` is given.

    Raises:
        ConfigError: the extra packages are not installed.
        CandidateError: the model has something that ONNX or its exporter lacks.
        ArtifactError: ONNX Runtime's outputs for the file are not torch's.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        _require(package)
    if any(part.dtype == torch.bfloat16 for part in (*positional(example), *named(example).values())):
        raise CandidateError("ONNX Runtime takes no bfloat16 inputs: convert the model with .float() first")
    model = copy.deepcopy(model).cpu().eval()
    wanted = outputs(copy.deepcopy(model), example, CHUNK)
    grids = input_grids(model)
    leave_inputs_float(model)
    folded = fold_batchnorms(model, example, CHUNK)
    quantize_inputs(folded.model, grids)
    proto = _export(folded.model, example, grids)
    stored = store_coded(proto.graph, folded.model, sites, coded or {}, folded.factors, set(grids))
    blob: bytes = proto.SerializeToString()
    difference = _compare(path, wanted, _infer(path, blob, example, CHUNK), bool(grids))
    write_file(path, blob)
    return ExportReport(path, len(blob), stored, tuple(folded.factors), difference)


def check(path: Path, model: nn.Module, inputs: Inputs) -> float:
    """The largest absolute difference of ONNX Runtime's outputs for a file to those of a model.

    Raises:
        ConfigError: the extra packages are not installed.
        ArtifactError: the outputs have other shapes, or NaN where the model has none.
    """
    return _difference(path, outputs(copy.deepcopy(model).cpu(), inputs, CHUNK), run(path, inputs))


def run(path: Path, inputs: Inputs, chunk: int = CHUNK) -> torch.Tensor:
    """The first output of an ONNX file for all samples, by ONNX Runtime on one thread, (samples, ...).

    Raises:
        ConfigError: the extra packages are not installed.
        ArtifactError: ONNX Runtime cannot read or run the file.
    """
    return _infer(path, str(path), inputs, chunk)


def _infer(path: Path, source: str | bytes, inputs: Inputs, chunk: int) -> torch.Tensor:
    onnxruntime = _require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        parts = []
        for part in chunks(inputs, chunk):
            given = {**dict(zip(names, positional(part), strict=False)), **named(part)}
            feed = {name: given[name].numpy() for name in names}
            parts.append(torch.from_numpy(session.run(None, feed)[0]).float())
    except Exception as error:  # its errors have no base of their own
        raise ArtifactError(f"{path}: ONNX Runtime cannot run it: {error}") from error
    return torch.cat(parts)


def _difference(path: Path, wanted: torch.Tensor, got: torch.Tensor) -> float:
    if wanted.shape != got.shape or not torch.equal(torch.isfinite(wanted), torch.isfinite(got)):
        raise ArtifactError(
            f"{path}: outputs of shape {tuple(got.shape)} in ONNX Runtime and {tuple(wanted.shape)} in torch, "
            f"{int((~torch.isfinite(got)).sum())} and {int((~torch.isfinite(wanted)).sum())} of them not finite"
        )
    finite = torch.isfinite(wanted)
    return float((wanted[finite] - got[finite]).abs().max()) if bool(finite.any()) else 0.0


def _compare(path: Path, wanted: torch.Tensor, got: torch.Tensor, rounded: bool) -> float:
    difference = _difference(path, wanted, got)
    if rounded:
        error, limit = (got - wanted).square().mean().sqrt(), ROUNDED_TOLERANCE * wanted.square().mean().sqrt()
    else:
        error, limit = torch.tensor(difference), TOLERANCE * wanted.abs().max().clamp(min=1.0)
    if bool(error > limit):
        raise ArtifactError(
            f"{path}: ONNX Runtime's outputs differ from torch's by {float(error):.2g}, "
            f"more than {float(limit):.2g}: do not use this file, and please report it"
        )
    return difference


class _Positional(nn.Module):
    """A model that takes tensors by position and returns the one that is scored."""

    def __init__(self, model: nn.Module, keywords: Sequence[str]) -> None:
        super().__init__()
        self.model, self._keywords = model, tuple(keywords)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self._keywords:
            return first_tensor(self.model(**dict(zip(self._keywords, inputs, strict=True))))
        return first_tensor(self.model(*inputs))


@dataclass(frozen=True)
class _OnnxInput(QuantizeInput):
    """Rounds to a static grid with ONNX's own operators, which a runtime may fuse into integer kernels."""

    def quantize(self, values: torch.Tensor) -> torch.Tensor:
        grid, shape = self.grid, values.shape
        step, zero = torch.tensor(grid.step), torch.tensor(grid.zero, dtype=torch.uint8)
        if grid.top < 255:
            values = values.clamp(-grid.zero * grid.step, (grid.top - grid.zero) * grid.step)
        inputs, kind = (values, step, zero), torch.uint8
        codes = torch.onnx.ops.symbolic("QuantizeLinear", inputs, dtype=kind, shape=shape, version=OPSET)
        inputs, kind = (codes, step, zero), torch.float32
        return torch.onnx.ops.symbolic("DequantizeLinear", inputs, dtype=kind, shape=shape, version=OPSET)


def _export(model: nn.Module, example: Inputs, grids: Mapping[str, InputGrid]) -> Any:
    """The ModelProto of a folded model, without notes on where each node comes from."""
    for name, grid in grids.items():
        hooks = model.get_submodule(name)._forward_pre_hooks
        for key, hook in hooks.items():
            if isinstance(hook, QuantizeInput) and grid.low is not None:
                hooks[key] = _OnnxInput(name, grid)
    model.requires_grad_(False)
    two = take(example, torch.tensor([0, min(1, count(example) - 1)]))  # an axis of size 1 would be taken as fixed
    keywords = list(named(two))
    arguments = (*positional(two), *named(two).values())
    names = keywords or _input_names(model, len(arguments))
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Positional(model, keywords).eval(),
                arguments,
                input_names=names,
                output_names=["output"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes={"inputs": tuple({0: batch} for _ in arguments)},
                verbose=False,
            )
    except Exception as error:  # the exporter raises classes of many packages
        reason = str(error.__cause__ or error).strip().splitlines()
        raise CandidateError(
            f"{type(model).__name__} cannot be exported to ONNX: {reason[0] if reason else type(error).__name__}"
        ) from error
    if program is None:
        raise CandidateError(f"{type(model).__name__} cannot be exported to ONNX: the exporter gave nothing")
    proto = program.model_proto
    if proto.ByteSize() > _LARGEST_BYTES:
        raise CandidateError(
            f"{type(model).__name__} takes {proto.ByteSize()} bytes; one ONNX file holds 2 GiB at most"
        )
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for name in ("metadata_props", "value_info"):
        proto.graph.ClearField(name)
    proto.ClearField("metadata_props")
    return proto


def _input_names(model: nn.Module, number: int) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [one.name for one in inspect.signature(model.forward).parameters.values() if one.kind in kinds]
    return known[:number] if len(known) >= number else [f"input_{i}" for i in range(number)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what the exporter prints, logs and warns of gets out; what goes wrong is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        lost = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(lost), contextlib.redirect_stderr(lost):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _require(name: str) -> Any:
    """A module of the optional packages."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"ONNX files need {error.name or name}: run `pip install slimfront[onnx]`") from error
