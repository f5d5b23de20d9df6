"""The dashboard on a real study: its JSON, its page in a browser, and how the command starts and ends."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from search.dashboard import Dashboard
from search.front import Front, front
from search.loop import launch
from spaces.errors import ConfigError, StudyError
from tests.searches import STUDY, tiny, url_of

ROOT = Path(__file__).parents[2]
TRIALS = 8


@dataclass(frozen=True)
class Served:
    """A running dashboard and the study it shows."""

    address: str
    study: str
    front: Front

    def json(self, path: str) -> Any:
        """What the dashboard answers to its own page."""
        with urllib.request.urlopen(self.address.partition("/dashboard")[0] + path, timeout=30) as answer:
            return json.load(answer)


@contextlib.contextmanager
def serving(dashboard: Dashboard) -> Iterator[Dashboard]:
    thread = threading.Thread(target=dashboard.serve)
    thread.start()
    try:
        yield dashboard
    finally:
        dashboard.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a searched study is."""
    made = tmp_path_factory.mktemp("dashboard")
    launch(tiny(made, trials=TRIALS))
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(Dashboard(url_of(folder), port=0)) as dashboard:
        yield Served(dashboard.address, STUDY, front(STUDY, url_of(folder)))


class TestJson:
    def test_it_lists_the_study(self, served: Served) -> None:
        (study,) = served.json("/api/studies")["study_summaries"]
        assert study["study_name"] == served.study
        assert study["directions"] == ["maximize", "minimize"]
        assert served.address.endswith(f"/dashboard/studies/{study['study_id']}")

    def test_its_axes_are_named_and_its_front_is_ours(self, served: Served) -> None:
        detail = served.json("/api/studies/1?after=0")
        assert detail["objective_names"] == ["accuracy", "bytes"]
        assert len(detail["trials"]) == TRIALS
        best = {tuple(trial["values"]) for trial in detail["best_trials"]}
        assert best == {(point.accuracy, point.bytes) for point in served.front.points}

    def test_it_shows_the_axes_of_the_space(self, served: Served) -> None:
        names = {axis["name"] for axis in served.json("/api/studies/1?after=0")["union_search_space"]}
        assert {"first/bits", "first/ratio", "head/bits", "temperature", "alpha"} <= names


@pytest.fixture(scope="module")
def page(served: Served) -> Iterator[Any]:
    """The study's page in a browser; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    quiet = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=quiet)
        try:
            opened = browser.new_page()
            failed: list[str] = []
            opened.on("pageerror", lambda error: failed.append(str(error)))
            opened.goto(served.address)
            yield opened
            assert failed == []
        finally:
            browser.close()


class TestPage:
    def test_it_names_study_and_objectives(self, page: Any, served: Served) -> None:
        page.get_by_text(served.study).first.wait_for(timeout=30_000)
        for objective in ("accuracy", "bytes"):
            page.get_by_text(objective).first.wait_for(timeout=30_000)

    def test_it_draws_every_candidate_over_named_axes(self, page: Any, served: Served) -> None:
        card = page.locator(".MuiCard-root").filter(has_text="Pareto Front").first
        card.locator(".point").nth(len(served.front.complete) - 1).wait_for(timeout=30_000, state="attached")
        words = card.inner_text().split()
        assert [words[words.index(axis) + 1] for axis in ("X:", "Y:")] == ["accuracy", "bytes"]
        assert card.locator(".point").count() == len(served.front.complete)


class TestCommand:
    def start(self, folder: Path, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "search.cli", "dashboard", "--port", "0", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, "--storage", url_of(folder)], env=environment, stdout=pipe, stderr=pipe, text=True
        )

    @pytest.mark.parametrize(("words", "warned"), [((), False), (("--host", "0.0.0.0"), True)])
    def test_ctrl_c_ends_it_well(self, folder: Path, words: tuple[str, ...], warned: bool) -> None:
        process = self.start(folder, *words)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, process.communicate(timeout=10)
            port = re.sub(r".*:(\d+)/.*", r"\1", address[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/meta", timeout=30) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, out) == (0, "")
        assert ("has no password" in err) is warned
        assert len(err.splitlines()) == warned  # no line for each request


class TestRefusals:
    def test_a_port_in_use(self, folder: Path) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(ConfigError, match=f"port {port} .* in use .*--port {port + 1}"):
                Dashboard(url_of(folder), port=port)

    def test_a_port_that_is_none(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="65535"):
            Dashboard(url_of(folder), port=70_000)

    @pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
    def test_a_host_that_is_not_this_machine(self, folder: Path, host: str) -> None:
        with pytest.raises(ConfigError, match="no address of this machine"):
            Dashboard(url_of(folder), host=host, port=0)

    def test_a_study_that_is_not_there(self, folder: Path) -> None:
        with pytest.raises(StudyError, match="'other'"):
            Dashboard(url_of(folder), port=0, study="other")

    def test_a_store_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match="slimfront launch"):
            Dashboard(url_of(tmp_path), port=0)
