"""A thread of one's own for what may hang: one thing after another, given up where it takes too long."""

import gc
import threading
import weakref

import pytest

from compress.lane import Lane


def test_it_does_one_thing_after_another_and_hands_back_what_comes_of_it() -> None:
    lane, done = Lane(), list[int]()
    for number in range(20):
        lane.post(lambda number=number: done.append(number))  # type: ignore[misc]
    assert lane.call(lambda: threading.current_thread() is threading.main_thread(), 5) is False
    assert done == list(range(20))
    with pytest.raises(ZeroDivisionError):
        lane.call(lambda: 1 // 0, 5)
    assert lane.call(lambda: "still there", 5) == "still there"


def test_an_error_of_that_name_is_the_work_s_own() -> None:
    def fails() -> None:
        raise TimeoutError("the network")

    lane, hold = Lane(), threading.Event()
    with pytest.raises(TimeoutError, match="the network"):
        lane.call(fails, 5)
    lane.post(hold.wait, 3)
    assert lane.waiting == 3  # nothing was given up
    hold.set()


def test_what_hangs_is_left_to_itself() -> None:
    lane, hold, done = Lane(), threading.Event(), list[str]()
    try:
        with pytest.raises(TimeoutError):
            lane.call(hold.wait, 0.01)
        assert lane.call(lambda: "the next one", 5) == "the next one"
        lane.give_up()
        lane.post(hold.wait)
        lane.post(lambda: done.append("never begun"), 7)
        assert lane.waiting == 7
        lane.give_up()
        assert (lane.waiting, lane.busy) == (0, 0.0)
    finally:
        hold.set()
    assert lane.call(lambda: "after", 5) == "after"
    assert done == []


def test_it_says_how_long_the_work_in_hand_has_taken() -> None:
    lane, begun, hold = Lane(), threading.Event(), threading.Event()
    assert (lane.waiting, lane.busy) == (0, 0.0)

    def work() -> None:
        begun.set()
        hold.wait()

    lane.post(work, 5)
    assert begun.wait(5)
    assert lane.busy > 0
    assert lane.waiting == 5
    hold.set()
    lane.call(lambda: None, 5)
    assert lane.waiting == 0


def test_what_was_done_is_not_held_on_to() -> None:
    class Large:
        pass

    lane, large = Lane(), Large()
    reference = weakref.ref(large)
    lane.post(lambda one=large: None).result(5)  # type: ignore[misc]
    lane.call(lambda: None, 5)
    del large
    gc.collect()
    assert reference() is None
