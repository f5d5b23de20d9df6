"""What went wrong while a candidate was made or scored, sorted by what is to be done about it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from spaces.errors import CandidateError, RetryableError, SlimfrontError


@contextlib.contextmanager
def sorted_failures(cache: Path, where: str = "") -> Iterator[None]:
    """Raise what a block raises as one of our errors.

    Args:
        cache: the folder that the block writes to.
        where: what the messages start with, such as "site stem: ".

    Raises:
        RetryableError: out of memory, or the folder cannot be written.
        CandidateError: anything else that is no error of ours already.
    """
    try:
        yield
    except SlimfrontError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RetryableError(f"{where}out of memory: {error}") from error
    except OSError as error:
        raise RetryableError(f"{where}the cache folder {cache} cannot be written: {error}") from error
    except Exception as error:
        raise CandidateError(f"{where}{type(error).__name__}: {error}") from error
