"""docker-compose.yml, the Dockerfile and .env.example: what they promise."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose import FILE, ROOT, SECRETS, NotSetError, Service, filled_in, services, variables

EXAMPLE = variables((ROOT / ".env.example").read_text(encoding="utf-8"))
DOCUMENT: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES = services({**EXAMPLE, **dict.fromkeys(SECRETS, "secret")})
LASTING = [one for one in SERVICES.values() if one.name != "slimfront"]
OURS = [one for one in SERVICES.values() if one.name != "db"]


def name_of(service: Service) -> str:
    return service.name


every = pytest.mark.parametrize("service", SERVICES.values(), ids=name_of)
lasting = pytest.mark.parametrize("service", LASTING, ids=name_of)


def test_the_services_are_there() -> None:
    assert set(SERVICES) == {"db", "ray-head", "ray-worker", "dashboard", "slimfront"}
    assert {"container_name", "ports"}.isdisjoint(SERVICES["ray-worker"].document)  # or it could not be scaled
    assert SERVICES["slimfront"].document["profiles"] == ["commands"]  # `up` does not start it


@every
def test_a_service_may_do_little(service: Service) -> None:
    document = service.document
    assert document["cap_drop"] == ["ALL"]
    assert document["security_opt"] == ["no-new-privileges:true"]
    assert document["user"] in ("postgres", EXAMPLE["SLIMFRONT_UID"])
    assert document["init"] is True
    assert {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices", "env_file"}.isdisjoint(document)
    assert document.get("read_only") is (None if service.name.startswith("ray-") else True)
    assert all(one["type"] in ("volume", "bind") for one in document.get("volumes", []))


@every
def test_an_image_is_pinned(service: Service) -> None:
    name, _, tag = service.document["image"].rpartition(":")
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(-\w+)?", tag)
    assert ("build" in service.document) is name.startswith("localhost/")


def test_our_image_has_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {one.document["image"] for one in OURS} == {f"localhost/slimfront:{project['version']}"}


@lasting
def test_a_service_that_lasts_is_watched_and_started_again(service: Service) -> None:
    assert service.health
    assert service.document["healthcheck"].keys() == {"test", "interval", "timeout", "retries", "start_period"}
    assert service.document["restart"] == "unless-stopped"
    assert service.document["deploy"]["resources"]["limits"]["memory"]
    for name, condition in service.document.get("depends_on", {}).items():
        assert SERVICES[name].health
        assert condition == {"condition": "service_healthy"}


def test_only_the_dashboard_is_published_and_to_this_machine() -> None:
    ports = {one.name: one.document["ports"] for one in SERVICES.values() if "ports" in one.document}
    assert ports == {"dashboard": ["127.0.0.1:8080:8080"]}
    assert "expose" not in FILE.read_text(encoding="utf-8")


def test_who_reaches_whom() -> None:
    reached = {one.name: set(one.document["networks"]) for one in SERVICES.values()}
    assert DOCUMENT["networks"]["store"] == {"internal": True}
    assert reached["db"] == {"store"}
    assert reached["ray-worker"] == {"cluster"}  # one that it shares with the head: one address, which Ray stays with
    for one in SERVICES.values():
        assert ("store" in reached[one.name]) is ("SLIMFRONT_STORAGE" in one.environment or one.name == "db")
        assert ("cluster" in reached[one.name]) is ("RAY_AUTH_TOKEN" in one.environment)


def test_there_is_no_secret_in_the_file() -> None:
    assert {name for name, value in EXAMPLE.items() if not value} == {*SECRETS, "TORCH_PIP_ARGS"}
    for missing in SECRETS:
        with pytest.raises(NotSetError, match=f"{missing}: write one into .env"):
            services({**EXAMPLE, **dict.fromkeys(SECRETS, "secret"), missing: ""})
    for one in SERVICES.values():
        for name, value in one.environment.items():
            assert isinstance(value, str)
            assert ("secret" in value) is (name in (*SECRETS, "SLIMFRONT_STORAGE")), name
        assert "secret" not in " ".join((*one.command, *one.health))  # which `ps` shows


def test_every_variable_is_explained_and_has_its_default_in_the_example() -> None:
    used = re.findall(r"\$\{(\w+)(?::-([^}]*))?", FILE.read_text(encoding="utf-8"))
    assert {name for name, _ in used} == set(EXAMPLE)
    assert {(name, default) for name, default in used if name not in SECRETS} == {
        (name, value) for name, value in EXAMPLE.items() if name not in SECRETS
    }
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/.env" in ignored


def test_the_cluster_asks_for_a_token_and_notices_lost_nodes() -> None:
    head, worker, commands = SERVICES["ray-head"], SERVICES["ray-worker"], SERVICES["slimfront"]
    for one in (head, worker, commands):
        assert (one.environment["RAY_AUTH_MODE"], one.environment["RAY_AUTH_TOKEN"]) == ("token", "secret")
    period, timeout, threshold = (
        int(head.environment[f"RAY_health_check_{key}"]) for key in ("period_ms", "timeout_ms", "failure_threshold")
    )
    assert (period + timeout) * threshold <= 5000


def test_the_object_store_fits_into_the_shared_memory() -> None:
    for one in (SERVICES["ray-head"], SERVICES["ray-worker"]):
        (store,) = (int(word.partition("=")[2]) for word in one.command if word.startswith("--object-store-memory="))
        assert one.document["shm_size"] == "1gb"
        assert store < 2**30


def test_folders_are_shared_by_those_who_need_them() -> None:
    mounted = {
        one.name: {
            volume["target"]: (volume["source"], volume.get("read_only", False))
            for volume in one.document.get("volumes", [])
        }
        for one in SERVICES.values()
    }
    for node in ("ray-head", "ray-worker"):
        assert mounted[node] == {"/var/cache/slimfront": ("cache", False), "/work": ("./configs", True)}
    assert mounted["slimfront"] == {"/var/cache/slimfront": ("cache", False), "/work": ("./configs", False)}
    assert mounted["db"] == {"/var/lib/postgresql": ("database", False)}
    assert set(DOCUMENT["volumes"]) == {"cache", "database"}
    assert "SLIMFRONT_CACHE=/var/cache/slimfront" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_variables_are_filled_in_as_compose_does() -> None:
    given = {"A": "1", "EMPTY": ""}
    assert filled_in("${A}-${A:-2}-${EMPTY:-3}-${B:-4}-${B:-}-$${A}", given) == "1-1-3-4--${A}"
    with pytest.raises(NotSetError, match="B: say it"):
        filled_in("${B:?say it}", given)


def test_the_dockerfile_is_pinned_and_ends_as_a_plain_user() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (.+)$", text, flags=re.M) == ["python:3.11.14-slim-bookworm"]
    assert re.findall(r"^USER (.+)$", text, flags=re.M) == ["$UID"]
    assert all("-c constraints.txt" in line for line in re.findall(r"pip install [^&\n]+", text))
    assert "http" not in text  # no registry is named
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (named,) = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert set(named.split(",")) <= set(extras)


def test_what_the_image_is_given_is_a_whole_package(tmp_path: Path) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.M)
    assert sorted(word for line in copied for word in line.split()) == sorted(allowed)
    for name in allowed:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    assert len(list((tmp_path / "dist").glob("slimfront-*.whl"))) == 1
