"""The bytes of an array of integer codes, and the array of the bytes.

The first byte says how: nothing follows for an array of zeros; evenly likely codes follow; or, behind one byte for the
prior, one for the group where there is one, and the classes of rows and columns, codes under the model of `contexts`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compress.entropy import tree
from compress.entropy.contexts import PATTERN, Classes, Contexts, Near
from compress.entropy.fitting import Model, fit
from compress.entropy.learning import CLASSES, Prior, Tables
from compress.entropy.stream import Port, Reader, Writer
from compress.entropy.tree import Codes
from spaces.errors import ArtifactError

ZEROS, UNIFORM, MODEL = 0, 1, 2  # the first byte; from MODEL on: MODEL + (1 with rows) + (2 with columns) + 4 * near
LIMIT = 255  # of a code's magnitude


def encode(codes: Codes, low: int, high: int) -> bytes:
    """Code an array without loss.

    Args:
        codes: (channels, n) of any integer type, within low to high.
        low: the smallest code there may be, -255 to 0.
        high: the largest code there may be, 0 to 255.

    Returns:
        Bytes from which `decode` makes the array, given channels, n, low and high; the same on every machine for the
        same choice of contexts.

    Raises:
        ValueError: a code is not within low to high, or the limits are none.
    """
    _check(low, high)
    if codes.ndim != 2 or codes.size == 0 or codes.min() < low or codes.max() > high:
        raise ValueError(f"codes of shape {codes.shape} are not (channels, n) of {low} to {high}")
    copy: npt.NDArray[np.int16] = np.array(codes, np.int16, order="C")  # `_pass` writes what it has read
    if not copy.any():
        return bytes([ZEROS])
    model = fit(copy, low, high)
    writer = Writer()
    if model is None:
        writer.uniform(copy.ravel().astype(np.int32) - low, high - low + 1)
        return bytes([UNIFORM]) + writer.bytes()
    contexts = model.contexts
    sides = (contexts.rows, contexts.columns)
    tag = MODEL + sum(bool(classes.any()) << bit for bit, classes in enumerate(sides)) + 4 * contexts.near
    head = [tag, model.prior.number]
    if contexts.near is not Near.NOTHING:
        head.append((contexts.height - 1) * 16 + contexts.width - 1)
    for classes in sides:
        if classes.any():
            _pass_classes(classes, writer)
    _pass(copy, model, writer)
    return bytes(head) + writer.bytes()


def decode(data: bytes | memoryview, channels: int, n: int, low: int, high: int) -> npt.NDArray[np.int16]:
    """The array that `encode` was given.

    Args:
        data: what it returned.
        channels: rows of the array.
        n: columns of the array.
        low: as it was given.
        high: as it was given.

    Raises:
        ArtifactError: the bytes are damaged. Not all damage shows: other codes within low to high may come out.
        ValueError: there are no such limits, or no such arrays.
    """
    _check(low, high)
    if channels < 1 or n < 1:
        raise ValueError(f"there are no codes of shape ({channels}, {n})")
    head = _Head(memoryview(data))
    tag = head.take()
    codes = np.zeros((channels, n), np.int16)
    if tag == ZEROS:
        if head.data:
            raise ArtifactError(f"{len(head.data)} bytes too many behind an entropy-coded site: the file is damaged")
        return codes
    if tag == UNIFORM:
        numbers = Reader(head.data).uniform(np.zeros(codes.size, np.int32), high - low + 1)
        return (numbers + low).astype(np.int16).reshape(channels, n)
    prior = Prior.numbered(head.take(), low, high)
    near, height, width = _read_group(tag, head, n)
    reader = Reader(head.data)
    rows, columns = np.zeros(channels, np.int16), np.zeros(n, np.int16)
    for bit, classes in enumerate((rows, columns)):
        if (tag - MODEL) >> bit & 1:
            _pass_classes(classes, reader)
    _pass(codes, Model(prior, Contexts(prior.expected, rows, columns, near, height, width)), reader)
    if codes.min() < low or codes.max() > high:
        raise ArtifactError(f"an entropy-coded site has codes outside {low} to {high}: the file is damaged")
    return codes


def _check(low: int, high: int) -> None:
    if not (-LIMIT <= low <= 0 <= high <= LIMIT and low < high):
        raise ValueError(f"codes of {low} to {high}: expected limits around 0, at most {LIMIT} away from it")


@dataclass
class _Head:
    """The bytes before the range coder's, taken one by one."""

    data: memoryview

    def take(self) -> int:
        if not self.data:
            raise ArtifactError("an entropy-coded site ends in its first bytes: the file is truncated")
        byte, self.data = self.data[0], self.data[1:]
        return byte


def _read_group(tag: int, head: _Head, n: int) -> tuple[Near, int, int]:
    """What a code's group tells of it, and the group's height and width."""
    try:
        near = Near((tag - MODEL) // 4)
    except ValueError as error:
        raise ArtifactError(f"unknown entropy coding {tag}: the file is damaged or from a later version") from error
    if near is Near.NOTHING:
        return near, 1, 1
    height, width = (part + 1 for part in divmod(head.take(), 16))
    if n % (height * width) or (near is Near.PATTERN and height * width > PATTERN):
        raise ArtifactError(f"groups of {height} x {width} do not go with {n} columns: the file is damaged")
    return near, height, width


def _pass_classes(classes: Classes, port: Port) -> None:
    """Pass the classes of rows or columns, (count,); a reader fills them in."""
    plain = Contexts(1.0, np.zeros(1, np.int16), np.zeros(len(classes), np.int16))
    _pass(classes[None], Model(CLASSES, plain), port)


def _pass(codes: npt.NDArray[np.int16], model: Model, port: Port) -> None:
    """Pass an array, (channels, n), contiguous: a writer sends it, a reader fills it in."""
    bits, learned = model.prior.bits, Tables(model.prior, model.contexts)
    for part, tables, mirror in model.contexts.walk(codes):
        signs = np.where(mirror, -1, 1).ravel()
        symbols, tables = tree.leaves(part.ravel() * signs, bits), tables.ravel()
        for piece in learned.pieces(part.size):
            order = np.argsort(tables[piece], kind="stable")
            in_order = tables[piece][order]
            stops = [*(np.flatnonzero(np.diff(in_order)) + 1).tolist(), len(order)]
            distributions = learned.distributions(in_order[np.array(stops) - 1])
            passed = port.runs(symbols[piece][order], stops, distributions)
            symbols[piece][order] = passed  # what a reader received
            learned.count(in_order, passed)
        part[...] = (tree.codes(symbols, bits) * signs).reshape(part.shape)
