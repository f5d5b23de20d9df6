"""Looking whether a cluster's head answers: where nothing listens, and where nobody takes a call."""

import socket
import time
from collections.abc import Iterator

import pytest

from search.pool.head import NOTICE, HeadWatch
from spaces.errors import StudyError


@pytest.fixture
def silent() -> Iterator[str]:
    """Where calls wait without an answer, as those of a machine that was cut off."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as door:
        waiting = [socket.socket() for _ in range(4)]  # more than may wait
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(door.getsockname())
        yield f"127.0.0.1:{door.getsockname()[1]}"
        for one in waiting:
            one.close()


@pytest.fixture
def nothing() -> str:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return f"127.0.0.1:{door.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["silent", "nothing"])
def test_it_gives_up_after_half_of_what_ray_allows(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "16")
    said: list[str] = []
    address = request.getfixturevalue(kind)
    began = time.monotonic()
    watch = HeadWatch(address, said.append)
    while not watch.lost and time.monotonic() < began + 60:
        time.sleep(0.05)
    took = time.monotonic() - began
    watch.close()
    with pytest.raises(StudyError, match=rf"the head of the Ray cluster at {address} is lost: .* launch again"):
        watch.check()
    assert len(said) == 1
    assert f"the head of the Ray cluster at {address} does not answer" in said[0]
    assert took > NOTICE  # it is not a hiccup that ends a search
    if kind == "silent":
        assert took < 14  # nor does it take twice as long where a look waits in vain


def test_a_head_that_answers_again_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    watch = HeadWatch(f"127.0.0.1:{port}", said.append)
    while not said:
        time.sleep(0.05)
    with socket.create_server(("127.0.0.1", port)):
        while len(said) < 2:
            time.sleep(0.05)
    watch.check()
    watch.close()
    assert said[1] == f"the head of the Ray cluster at 127.0.0.1:{port} answers again: the search goes on"
