"""Bytes of a range coder, Martin 1979, "Range encoding", as the package `constriction` implements it.

Symbols that share a distribution are coded in one call; only as many bytes are kept as tell the last symbol.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from constriction import stream

from compress.entropy.tree import Floats, Leaves
from spaces.errors import ArtifactError

WORD = 4  # bytes
STATE_BITS = 64


class Port(Protocol):
    """One end of a stream: a writer sends the symbols it is given, a reader returns those that were sent."""

    def runs(self, symbols: Leaves, stops: list[int], distributions: Floats) -> Leaves:
        """Pass symbols, (n,), in runs that end before the `stops`, each with a row of `distributions`."""
        ...

    def uniform(self, symbols: Leaves, size: int) -> Leaves:
        """Pass symbols, (n,), of which each of 0 to size - 1 is as likely."""
        ...


class Writer:
    """The sending end."""

    def __init__(self) -> None:
        self._encoder = stream.queue.RangeEncoder()

    def runs(self, symbols: Leaves, stops: list[int], distributions: Floats) -> Leaves:
        """Send the symbols, and return them."""
        for start, stop, distribution in zip([0, *stops], stops, distributions, strict=False):
            self._encoder.encode(symbols[start:stop], stream.model.Categorical(distribution, perfect=False))
        return symbols

    def uniform(self, symbols: Leaves, size: int) -> Leaves:
        """Send the symbols, and return them."""
        self._encoder.encode(symbols, stream.model.Uniform(size))
        return symbols

    def bytes(self) -> bytes:
        """What was sent."""
        words = self._encoder.get_compressed()
        done, (low, width) = self._encoder.pos()
        if low + width > 1 << STATE_BITS:  # a carry is pending: take the coder's own end
            return _big_endian(words).rstrip(b"\0")
        length = 0
        while (number := _ceil(low, 1 << (STATE_BITS - 8 * length))) << (STATE_BITS - 8 * length) >= low + width:
            length += 1  # the fewest bytes that, with zeros behind them, lie in low .. low + width
        return (_big_endian(words[:done]) + number.to_bytes(length, "big")).rstrip(b"\0")


class Reader:
    """The receiving end.

    Args:
        data: what a writer's `bytes` returned.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        padded = bytes(data) + b"\0" * (-len(data) % WORD)
        self._decoder = stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def runs(self, symbols: Leaves, stops: list[int], distributions: Floats) -> Leaves:
        """Receive as many symbols as are given.

        Raises:
            ArtifactError: the bytes are not what a writer wrote.
        """
        received = [
            self._receive(stream.model.Categorical(distribution, perfect=False), stop - start)
            for start, stop, distribution in zip([0, *stops], stops, distributions, strict=False)
        ]
        return np.concatenate(received)

    def uniform(self, symbols: Leaves, size: int) -> Leaves:
        """Receive as many symbols as are given.

        Raises:
            ArtifactError: the bytes are not what a writer wrote.
        """
        return self._receive(stream.model.Uniform(size), len(symbols))

    def _receive(self, model: stream.model.Model, count: int) -> Leaves:
        try:
            received: Leaves = self._decoder.decode(model, count)
        except AssertionError as error:  # constriction's answer to bytes that no symbols have
            raise ArtifactError(f"entropy-coded codes do not decode: the file is damaged ({error})") from error
        return received


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)


def _big_endian(words: npt.NDArray[np.uint32]) -> bytes:
    return words.astype(">u4").tobytes()
