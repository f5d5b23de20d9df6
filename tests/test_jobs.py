"""Jobs of a Ray cluster: what is said where there is none, and how their logs are made plain."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from search.pool.jobs import Job, Jobs, plain
from spaces.errors import ConfigError, StudyError
from tests.heads import free_ports

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def serving(answer: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def answering(status: int, body: bytes = b"hello") -> Iterator[tuple[str, list[str | None]]]:
    """The URL of a server that answers everything alike, and the tokens that it was given."""
    tokens: list[str | None] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Answer) as url:
        yield url, tokens


def test_where_nothing_listens_it_says_what_to_do() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(StudyError, match=r"refused.*see that it runs, and that ray\.jobs") as caught:
        Jobs(url)
    assert url in str(caught.value)


@pytest.mark.parametrize("status", [200, 404, 500])
def test_what_is_no_ray_is_refused(status: int) -> None:
    with answering(status) as (url, _), pytest.raises(StudyError, match=f"cannot reach the Ray cluster at {url}"):
        Jobs(url)


def test_what_is_too_large_is_said(tmp_path: Path) -> None:
    class Full(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/api/version"
            self._answer(200 if known else 404, b'{"ray_version": "99.0"}')

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(413, b"Request Entity Too Large")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "data.bin").write_bytes(b"1")
    with serving(Full) as url, pytest.raises(ConfigError, match=r"too large for the cluster.*: leave files out"):
        Jobs(url).submit("slimfront-a-1", "true", {"working_dir": str(tmp_path)}, {})


def test_our_address_wins_over_rays_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, b'{"ray_version": "99.0"}') as (url, seen):
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
        before = dict(os.environ)
        assert Jobs(f"{url}/").url == f"{url}/"
        assert seen
        assert dict(os.environ) == before


def test_a_cluster_that_wants_a_token_gets_the_one_that_ray_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with answering(401) as (url, tokens), pytest.raises(StudyError) as caught:
        Jobs(url)
    assert "Bearer t0ken" in tokens
    assert "t0ken" not in str(caught.value)


@pytest.mark.parametrize("missing", ["aiohttp", "ray.job_submission"])
def test_a_missing_extra_is_named(missing: str) -> None:
    script = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"  # what importing it then raises is what Python raises without it
        "from search.pool.jobs import Jobs\n"
        "Jobs(sys.argv[1])\n"
    )
    with answering(200, b'{"ray_version": "99.0"}') as (url, _):
        command = [sys.executable, "-c", script, url]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "ConfigError: detached searches need Ray's job client: pip install 'slimfront[cluster]'" in ended.stderr


def test_a_quick_command_loads_no_torch() -> None:
    script = "import sys, search.pool.jobs, search.detached, search.shipment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("printed", "plainly"),
    [
        ("\x1b[36m(pid=7)\x1b[0m done\n", "(pid=7) done\n"),
        ("10 %\r20 %\r\n", "20 %\n"),
        ("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", "alink\n"),
        ("\x1b[2K\x1b[1Aup", "up"),
        ("", ""),
        ("├─ 3 × 4\n\n", "├─ 3 × 4\n\n"),
    ],
)
def test_logs_are_plain(printed: str, plainly: str) -> None:
    assert plain(printed) == plainly


@pytest.mark.parametrize(
    ("status", "message", "outcome", "ended"),
    [
        ("PENDING", "", "pending", False),
        ("RUNNING", "", "running", False),
        ("SUCCEEDED", "Job finished successfully.", "succeeded", True),
        ("FAILED", "Job entrypoint command failed with exit code 130", "stopped", True),
        ("FAILED", "Job entrypoint command failed with exit code 1", "failed", True),
        ("STOPPED", "", "stopped", True),
    ],
)
def test_how_a_job_ended(status: str, message: str, outcome: str, ended: bool) -> None:
    job = Job("slimfront-a-1", status, message, "a", "", datetime.now(UTC))
    assert (job.outcome, job.ended) == (outcome, ended)
