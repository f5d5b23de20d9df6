"""What went wrong while a candidate was made or scored, sorted by what is to be done about it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from spaces.errors import CandidateError, RetryableError, SlimfrontError

_NO_MEMORY = ("can't allocate memory", "std::bad_alloc")  # on a CPU torch raises plain RuntimeErrors


@contextlib.contextmanager
def sorted_failures(where: str = "") -> Iterator[None]:
    """Raise what a block raises as one of our errors.

    Args:
        where: what the messages start with, such as "site stem: ".

    Raises:
        RetryableError: out of memory, or the system refuses something: it may be so on this machine, or now, only.
        CandidateError: anything else that is no error of ours already.
    """
    try:
        yield
    except SlimfrontError:
        raise
    except OSError as error:
        raise RetryableError(f"{where}{type(error).__name__}: {error}") from error
    except Exception as error:
        if _is_out_of_memory(error):
            raise RetryableError(f"{where}out of memory: {error}") from error
        raise CandidateError(f"{where}{type(error).__name__}: {error}") from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


@contextlib.contextmanager
def cache_written(cache: Path) -> Iterator[None]:
    """Raise what goes wrong in a block that writes below the cache folder as what it is: no candidate's fault.

    Raises:
        RetryableError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RetryableError(f"the cache folder {cache} cannot be written: {error}") from error
