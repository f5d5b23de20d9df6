"""Ctrl-C and SIGTERM: the first is polite while a search runs, and ends what is before and after it at once."""

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from search.signals import ended_by_sigterm, stopped_politely
from tests.commands import start
from tests.searches import STUDY, url_of

OURS = signal.SIGINT, signal.SIGTERM


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in OURS]


def politely(signals: Sequence[signal.Signals], stop: threading.Event, hurry: Callable[[], None]) -> None:
    """Get these signals in a search; the first one must not end it."""
    with stopped_politely(stop, hurry):
        for number in signals:
            signal.raise_signal(number)


def ended(stop: threading.Event, left: list[str]) -> None:
    """Get a SIGTERM in a search, and one after it."""
    with ended_by_sigterm():
        try:
            politely([signal.SIGTERM], stop, lambda: left.append("searched"))
            signal.raise_signal(signal.SIGTERM)
            left.append("went on")
        finally:
            left.append("given back")


class TestPolitely:
    @pytest.mark.parametrize("number", OURS)
    def test_the_first_one_asks_and_the_second_ends_at_once(self, number: signal.Signals) -> None:
        before, stop, hurried = handlers(), threading.Event(), list[bool]()
        politely([], stop, lambda: hurried.append(stop.is_set()))
        assert (stop.is_set(), hurried) == (False, [])
        politely([number], stop, lambda: hurried.append(stop.is_set()))
        assert (stop.is_set(), hurried, handlers()) == (True, [True], before)
        for other in OURS:
            stop.clear()
            with pytest.raises(KeyboardInterrupt):
                politely([number, other], stop, lambda: hurried.append(stop.is_set()))
            assert handlers() == before
        assert hurried == [True] * 3

    def test_in_another_thread_it_leaves_signals_alone(self) -> None:
        before, seen = handlers(), list[object]()

        def work() -> None:
            with stopped_politely(threading.Event()), ended_by_sigterm():
                seen.extend(handlers())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == handlers() == before


def test_sigterm_is_ctrl_c_around_a_search_polite_within_it_and_what_it_was_outside() -> None:
    before, stop, left = handlers(), threading.Event(), list[str]()
    with pytest.raises(KeyboardInterrupt):
        ended(stop, left)
    assert stop.is_set()
    assert left == ["searched", "given back"]
    assert handlers() == before


SLOW = """
import os
import time
from tests import tiny
def workload():
    if {when!r} == "loading":
        pause()
    return tiny.workload(metric)
def metric(outputs, targets):
    if {when!r} == "scoring the float model":
        pause()
    return tiny.accuracy(outputs, targets)
def pause():
    os.write(1, b"now\\n")
    time.sleep(60)
"""


@pytest.mark.parametrize("when", ["loading", "scoring the float model"])
def test_a_launch_that_has_not_begun_to_search_ends_with_130(tmp_path: Path, when: str) -> None:
    (tmp_path / "own.py").write_text(SLOW.format(when=when))
    (tmp_path / "own.yaml").write_text(
        f"study: {STUDY}\nworkload: own.py:workload\nworkers: 0\nstorage: {url_of(tmp_path)}\ncache: {tmp_path}/cache\n"
    )
    before = {path.name for path in tmp_path.iterdir()}
    process = start(tmp_path, "launch", "own.yaml")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=50)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before
