"""What a running search shows, on a terminal and elsewhere."""

import os
import pty
import re
import select
import sys

import pytest

from search.progress import SearchProgress

FLOAT_BYTES = 16_000


def test_elsewhere_the_last_trial_gets_a_line_and_quick_ones_before_it_get_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SearchProgress(5, 0, FLOAT_BYTES) as progress:
        progress.start()
        progress.show((0.95, 4000.0))
        progress.show((0.96, 4001.0))
        progress.show((0.80, 1000.0))
        progress.show((0.70, 900.0))
        assert capsys.readouterr().err == ""
        progress.show(None)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"5/5  \d+\.\d\d/s  failed 1  best at 1/4: 0\.9500, 1/8: 0\.8000, 1/16: 0\.8000  0 s left\n", err
    )


def test_what_is_not_known_yet_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchProgress(1, 0, FLOAT_BYTES) as progress:
        progress.show((0.5, 2001.0))
    assert "best at 1/4: 0.5000, 1/8: -, 1/16: -" in capsys.readouterr().err


def test_trials_of_earlier_launches_count_but_not_for_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchProgress(4, 3, FLOAT_BYTES) as progress:
        progress.show((0.9, 100.0), now=False)
        progress.show(None, now=False)
        progress.show((0.95, 3000.0), now=False)
        assert capsys.readouterr().err == ""
        progress.start()
        progress.show((0.8, 100.0))
    err = capsys.readouterr().err
    assert err.startswith("4/4  ")
    assert "failed 1  best at 1/4: 0.9500, 1/8: 0.9000, 1/16: 0.9000" in err


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = "trial 3 has no test accuracy: mine.py:car: [red]layers[0] " + "x" * 200
    with SearchProgress(1, 0, FLOAT_BYTES) as progress:
        progress.say(words)
    assert capsys.readouterr().err == words + "\n"


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with SearchProgress(4, 1, FLOAT_BYTES) as progress:
            progress.start()
            progress.show((0.9, 100.0), now=False)
            progress.say("goes on")
            progress.show((0.95, 100.0))
        terminal.flush()
        shown = b""
        while select.select([master], [], [], 0.2)[0]:
            shown += os.read(master, 65536)
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "goes on" in text
    assert "1/4" in text
    assert re.search(r"2/4 .*failed 0 +best at 1/4: 0\.9500", text)
