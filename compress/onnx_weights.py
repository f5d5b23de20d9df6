"""Coded weights inside an ONNX file: integers of 4 or 8 bits, halves or a codebook, and the nodes that decode them.

The decoding nodes (Cast, Sub, Mul, Gather) work on constants, so ONNX Runtime computes them once, when it loads the
file: inference is as fast and exactly as good as with float32 weights. A DequantizeLinear in their place is computed
again for each batch, and before a MatMul it is fused into MatMulNBits, which rounds the activations to 8 bits (measured
with 1.31: output error 5e-3). It is used where the site's inputs are rounded anyway: there it gives integer kernels.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compress.coding import CodedWeight, Kind
from compress.quantization.uniform import spread
from compress.sites import Site
from spaces.errors import CandidateError

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

Array = npt.NDArray[Any]
Constants = dict[tuple[tuple[int, ...], bytes], list[str]]  # names, by shape and bytes
OPSET = 21  # the first with integers of 4 bits
_MIDDLE = 128  # zero of symmetric codes as uint8: products of uint8 and int8 saturate on CPUs without VNNI


def store_coded(
    graph: "GraphProto",
    model: nn.Module,
    sites: Sequence[Site],
    coded: Mapping[str, CodedWeight],
    factors: Mapping[str, torch.Tensor],
    rounded: set[str],
) -> dict[str, str]:
    """Replace float32 weights in an exported graph, in place, by their codes and the nodes that decode them.

    A weight is found by its values, as it is or transposed; what the exporter turned into something else stays float32.

    Args:
        graph: of the exported model.
        model: the model that was exported, BatchNorms folded.
        sites: its sites.
        coded: their coded weights, before folding.
        factors: what folding multiplied the output channels by, (channels,).
        rounded: sites whose inputs are rounded.

    Returns:
        How each site is stored: a type's name.

    Raises:
        CandidateError: the model does not hold the weights that are coded.
    """
    constants = _constants(graph)
    nodes: list[NodeProto] = []
    new: list[TensorProto] = []
    stored, replaced = dict[str, str](), set[str]()
    for site in sites:
        parameter = model.get_parameter(site.parameter).detach()
        stored[site.name] = str(parameter.dtype).removeprefix("torch.")
        one, factor = coded.get(site.name), factors.get(site.name)
        if one is None or parameter.dtype != torch.float32:
            continue
        rows = one.decode() if factor is None else one.decode() * factor[:, None]
        if not torch.allclose(site.rows(parameter), rows, rtol=1e-5, atol=1e-30):
            raise CandidateError(f"site {site.name}: the model's weights are not those that are coded")
        targets = _find(constants, parameter.numpy())
        if targets and one.kind is not Kind.FLOAT32:
            block = _Block(site, one, factor)
            integer = site.name in rounded and one.grid is not None and one.grid.step.shape[1] == 1 and one.bits > 4
            stored[site.name] = block.dequantize(targets) if integer else block.decode(targets)
            nodes += block.nodes
            new += block.constants
            replaced |= set(targets)
    nodes += list(graph.node)
    new += [tensor for tensor in graph.initializer if tensor.name not in replaced]
    for field, values in (("node", nodes), ("initializer", new)):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    return stored


def _constants(graph: "GraphProto") -> Constants:
    from onnx import TensorProto, numpy_helper

    found: Constants = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor)
            found.setdefault((array.shape, array.tobytes()), []).append(tensor.name)
    return found


def _find(constants: Constants, weight: Array) -> dict[str, bool]:
    """Names of the constants that are this weight, and whether they hold it transposed; they are taken out."""
    found = dict.fromkeys(constants.pop((weight.shape, weight.tobytes()), []), False)
    if weight.ndim == 2:
        turned = np.ascontiguousarray(weight.T)
        found |= dict.fromkeys(constants.pop((turned.shape, turned.tobytes()), []), True)
    return found


class _Block:
    """The nodes and constants that give one site's weight.

    Args:
        site: the site.
        coded: its coded weight, uniform, a codebook or float16.
        factor: what its channels are multiplied by besides, (channels,).
    """

    def __init__(self, site: Site, coded: CodedWeight, factor: torch.Tensor | None) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._site, self._coded = site, coded
        self._factor = torch.ones(site.channels) if factor is None else factor

    def decode(self, targets: Mapping[str, bool]) -> str:
        """Add nodes on constants alone that end in the targets.

        Args:
            targets: names to give the weight, and whether it is transposed under them.

        Returns:
            The type of the codes.
        """
        from onnx import TensorProto

        one, channels = self._coded, self._site.channels
        kind = _kind(one)
        codes = self._constant("codes", self._stored().reshape(channels, self._groups, -1).numpy(), kind)
        scale = self._factor[:, None]
        if one.entries is not None:
            table = torch.cat([torch.zeros(1), one.entries.cpu()])  # code 0 is the number zero
            index = self._node("Cast", codes, to=TensorProto.INT32)
            rows = self._node("Gather", self._constant("entries", table.numpy()), index)
        else:
            rows = self._node("Cast", codes, to=TensorProto.FLOAT)
        if one.grid is not None:
            scale = scale * one.grid.step.cpu()
            if one.grid.low is not None:
                zero = -one.grid.low.cpu().float()[..., None]
                rows = self._node("Sub", rows, self._constant("zero", zero.numpy()))
        if bool((scale != 1).any()):
            rows = self._node("Mul", rows, self._constant("scale", scale[..., None].numpy()))
        moved = torch.empty(self._site.shape, device="meta").movedim(self._site.channel_axis, 0).shape
        weight = self._node("Reshape", rows, self._constant("shape", np.array(moved, np.int64), "int64"))
        order = list(range(1, len(moved)))
        order.insert(self._site.channel_axis, 0)  # the inverse of `Site.rows`
        for target, turned in targets.items():
            self._node("Transpose", weight, output=target, perm=order[::-1] if turned else order)
        return kind

    def dequantize(self, targets: Mapping[str, bool]) -> str:
        """Add a DequantizeLinear from uint8 for each target, with a positive scale a channel; else as `decode`."""
        grid, site = self._coded.grid, self._site
        assert grid is not None  # noqa: S101 - asked for by the caller
        sign = torch.where(self._factor < 0, -1, 1)[:, None]
        if grid.low is None:
            zero = torch.full((site.channels, 1), _MIDDLE)
        else:
            low = grid.low.cpu().int().expand(site.channels, 1)
            zero = torch.where(sign > 0, -low, low + (1 << self._coded.bits) - 1)
        codes = site.weight((self._coded.values.cpu().int() * sign + zero).to(torch.uint8)).numpy()
        scale = (self._factor.abs() * grid.step.cpu().expand(site.channels, 1)[:, 0]).numpy()
        for i, (target, turned) in enumerate(targets.items()):
            parts = (
                self._constant(f"codes{i}", codes.T if turned else codes, "uint8"),
                self._constant(f"scale{i}", scale),
                self._constant(f"zero{i}", zero[:, 0].numpy(), "uint8"),
            )
            axis = 1 - site.channel_axis if turned else site.channel_axis
            self._node("DequantizeLinear", *parts, output=target, axis=axis)
        return "uint8"

    @property
    def _groups(self) -> int:
        return 1 if self._coded.grid is None else self._coded.grid.step.shape[1]

    def _stored(self) -> torch.Tensor:
        """The values as the file has them, (channels, n); asymmetric codes count from their smallest."""
        one = self._coded
        values = one.values.cpu()
        if one.grid is None or one.grid.low is None:
            return values
        return values.int() - spread(one.grid.low.cpu().int(), values.shape[1])

    def _constant(self, name: str, array: Array, kind: str = "float") -> str:
        from onnx import TensorProto, helper

        name = f"{self._site.parameter}.{name}"
        if kind.endswith("int4"):
            nibbles = array.astype(np.int16).ravel() & 15
            nibbles = np.append(nibbles, 0)[: nibbles.size + nibbles.size % 2]
            raw = (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()
        else:
            raw = array.astype("float32" if kind == "float" else kind).tobytes()
        data_type = TensorProto.DataType.Value(kind.upper())
        self.constants.append(helper.make_tensor(name, data_type, array.shape, raw, raw=True))
        return name

    def _node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{self._site.parameter}.{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output


def _kind(coded: CodedWeight) -> str:
    """The name of ONNX's smallest type that holds the codes."""
    match coded.kind:
        case Kind.FLOAT32 | Kind.FLOAT16:
            return coded.kind.name.lower()
        case Kind.CODEBOOK:
            return "uint4" if coded.bits <= 4 else "uint8"
        case Kind.UNIFORM:
            signed = "int4" if coded.bits <= 4 else "int8"
            return signed if coded.grid is not None and coded.grid.low is None else f"u{signed}"
        case _:
            assert_never(coded.kind)
