"""Threads: torch as many as asked for, numpy's linear algebra one: for good in a search, for a while in a sampler."""

from collections.abc import Iterator

import numpy as np
import optuna
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from objectives.threads import set_threads
from search.samplers.front_sampler import FrontSampler
from search.samplers.one_thread import one_thread
from tests.worlds import searched, world


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    with threadpool_limits(limits=2, user_api="blas"):
        yield
    torch.set_num_threads(threads)


def blas() -> set[int]:
    """Threads of numpy's; other tests load scipy's, which nothing here computes with."""
    np.linalg.eigh(np.eye(3))  # it is loaded
    known = [one for one in threadpool_info() if one["user_api"] == "blas"]
    return {one["num_threads"] for one in known if len(known) == 1 or "numpy" in one["filepath"]}


def test_a_search_computes_with_the_threads_it_says() -> None:
    set_threads(1)
    assert (torch.get_num_threads(), blas()) == (1, {1})


def test_a_sampler_uses_one_and_gives_the_others_back() -> None:
    before = blas()
    assert one_thread(blas)() == {1}
    assert blas() == before

    @one_thread
    def failing() -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        failing()
    assert blas() == before


def test_proposals_do_not_depend_on_threads() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given, found = world(0, 6), []
    for threads in (1, 2):
        with threadpool_limits(limits=threads, user_api="blas"):
            sampler = FrontSampler([given.table], seed=0, uniform=3, predicted=6)
            found.append([trial.params for trial in searched(given, sampler, 30).trials])
    assert found[0] == found[1]
