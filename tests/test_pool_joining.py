"""Which Ray is used, what is brought to a cluster, and what is said where it cannot be joined."""

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RaySystemError,
    WorkerCrashedError,
)

import search.pool.connecting as connecting
from search.config import Config
from search.pool.bringing import brought, hide_variables
from search.pool.connecting import joined_address
from search.pool.losses import loss_of
from search.pool.seats import Call, FreeSeats, Seat
from spaces.errors import ConfigError, StudyError
from tests.clusters import free_port


def config(folder: Path, **ray: Any) -> Config:
    """A search of the file `work.py` in that folder."""
    (folder / "work.py").touch()
    settings = {"study": "any", "workload": "work.py:made", "cache": str(folder / "kept"), "ray": ray}
    return Config.model_validate(settings, context={"folder": folder})


class TestAddress:
    @pytest.mark.parametrize(
        ("given", "variable", "expected"),
        [
            (None, "", None),
            (None, "local", None),
            (None, "http://127.0.0.1:8265", None),
            (None, "10.0.0.1:6379", "10.0.0.1:6379"),
            ("ray://head:10001", "10.0.0.1:6379", "ray://head:10001"),
        ],
    )
    def test_the_config_comes_before_the_variable(
        self, given: str | None, variable: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
        assert joined_address(config(tmp_path, address=given)) == expected

    @pytest.mark.parametrize("scheme", ["", "ray://"])
    def test_what_does_not_answer_is_said_with_the_fix(
        self, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connecting, "DOOR_SECONDS", 0.6)
        address = f"{scheme}127.0.0.1:{free_port()}"
        with pytest.raises(StudyError, match=rf"ray.address {address} does not answer \(.*refused\): check host"):
            connecting._join(address, config(tmp_path, address=address))

    def test_what_is_no_ray_is_left_after_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connecting, "JOIN_SECONDS", 1.0)
        monkeypatch.setattr(connecting, "_init", lambda settings, found: threading.Event().wait(3))
        with socket.create_server(("127.0.0.1", 0)) as door:
            address = f"127.0.0.1:{door.getsockname()[1]}"
            with pytest.raises(StudyError, match=rf"ray.address {address} did not let us in within 1 s: check host"):
                connecting._join(address, config(tmp_path, address=address))

    def test_a_client_server_that_died_as_it_was_forked_is_asked_for_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        race = RuntimeError("RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err")
        ends: list[Exception | None] = [race, race, None, race, race, race]
        monkeypatch.setattr(connecting, "_init", lambda settings, found: found.append(ends.pop(0)))
        with socket.create_server(("127.0.0.1", 0)) as door:
            address = f"ray://127.0.0.1:{door.getsockname()[1]}"
            connecting._join(address, config(tmp_path, address=address))
            assert ends == [race] * 3
            with pytest.raises(StudyError, match=r"GRPC_ENABLE_FORK_SUPPORT=0 for `ray start` on the head"):
                connecting._join(address, config(tmp_path, address=address))

    def test_other_versions_are_said_with_the_fix(self) -> None:
        words = "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\n"
        assert connecting._refused("auto", words, "?") == (
            "ray.address auto: Version mismatch: The cluster was started with: Ray: 2.50.0 Python: 3.12.1. Install the "
            "same Ray and Python here and there, or use the same image"
        )


class TestBrought:
    def test_the_folder_of_a_file_is(self, tmp_path: Path) -> None:
        environment, entry = brought(config(tmp_path, runtime_env={"excludes": ["big/"], "pip": ["einops"]}))
        assert entry == "work.py:made"
        assert environment["working_dir"] == str(tmp_path)
        assert environment["pip"] == ["einops"]
        assert {"*.db*", ".env*", ".git", ".venv", "__pycache__", "/kept", "big/"} <= set(environment["excludes"])

    def test_a_folder_above_the_file_may_be(self, tmp_path: Path) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        environment, entry = brought(config(inner, runtime_env={"working_dir": ".."}))
        assert (environment["working_dir"], entry) == (str(tmp_path), "inner/work.py:made")

    def test_a_folder_without_the_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        with pytest.raises(ConfigError, match=r"ray.runtime_env.working_dir: given other, allowed a folder that holds"):
            brought(config(tmp_path, runtime_env={"working_dir": "other"}))
        with pytest.raises(ConfigError, match=r"ray.runtime_env.py_modules: given gone, allowed a folder that exists"):
            brought(config(tmp_path, runtime_env={"py_modules": ["gone"]}))

    def test_nothing_is_for_a_module(self) -> None:
        assert brought(Config(study="any", workload="tests.tiny:workload")) == ({}, "tests.tiny:workload")

    def test_a_job_brings_what_it_has_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"A": "1"}}}
        monkeypatch.setenv(connecting.JOB_VARIABLE, json.dumps(given))
        found = brought(config(tmp_path, runtime_env={"env_vars": {"A": "2", "B": "3"}, "pip": ["einops"]}))[0]
        assert connecting._not_in_job(found) == {"env_vars": {"B": "3"}, "pip": ["einops"]}

    def test_variables_are_not_shown(self, tmp_path: Path) -> None:
        secret = config(tmp_path, runtime_env={"env_vars": {"KEY": "hush-hush", "LONG": "hush-hush-hush"}})
        assert hide_variables(secret, "no hush-hush-hush and hush-hush") == "no *** and ***"


class TestLosses:
    def test_what_is_out_of_memory_is_the_tasks(self) -> None:
        loss = loss_of(OutOfMemoryError("Task was killed"))  # type: ignore[no-untyped-call]
        assert loss is not None
        assert loss.own
        assert loss.reason.startswith("out of memory")

    def test_what_a_trial_keeps_does_not_depend_on_what_ray_learned(self) -> None:
        told = ActorDiedError()
        told.error_msg = "The actor died. Worker exit detail: Worker exits with an exit code 7."
        known, unknown, crashed = loss_of(told), loss_of(ActorDiedError()), loss_of(WorkerCrashedError())
        assert known == unknown == crashed
        assert known is not None
        assert known.own

    @pytest.mark.parametrize(
        "error",
        [ActorUnavailableError("lost", None), NodeDiedError("lost")],  # type: ignore[no-untyped-call]
        ids=lambda error: type(error).__name__,
    )
    def test_nodes_are_not(self, error: Exception) -> None:
        loss = loss_of(error)
        assert loss is not None
        assert not loss.own

    def test_what_else_goes_wrong_is_no_loss(self) -> None:
        assert loss_of(ActorDiedError()) is not None
        assert loss_of(RaySystemError("?")) is None  # type: ignore[no-untyped-call]
        assert loss_of(ValueError("?")) is None


def test_the_freest_seats_come_first() -> None:
    free, seats = FreeSeats(2), [Seat(i, ready=i != 1) for i in range(3)]
    taken = []
    for seat in seats:
        free.offer(seat)
    for number in range(5):
        found = free.take(lambda seat: True)
        if found is not None:
            found.calls[Call(found, None, None, None, number)] = None  # type: ignore[arg-type]
            free.offer(found)
            free.offer(found)
        taken.append(None if found is None else found.index)
    assert taken == [0, 2, 0, 2, None]
    seats[2].calls.popitem()
    free.offer(seats[2])
    assert free.take(lambda seat: True) is seats[2]
    assert len(free._heap) == 0
