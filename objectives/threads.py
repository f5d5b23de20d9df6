"""How many threads this process computes with: the last bits of a sum depend on it."""

import torch
from threadpoolctl import threadpool_limits


def set_threads(threads: int) -> None:
    """Let torch compute with so many threads, and numpy's linear algebra with one.

    Its matrices are small here, and OpenBLAS waits for ever for its threads where another thread forks meanwhile, as
    starting Ray does.

    Args:
        threads: of torch, from 1.
    """
    torch.set_num_threads(threads)
    threadpool_limits(limits=1, user_api="blas")
