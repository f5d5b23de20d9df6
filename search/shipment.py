"""What a detached search takes along to the cluster: its folder, and its config as it was resolved here."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from search.address import full_address, hide_password, sqlite_file
from search.config import Config
from search.config_places import file_of
from search.goals import moment_of
from search.pool.bringing import EXCLUDES
from spaces.errors import ConfigError

CONFIG: Final = "slimfront-job.yaml"


@dataclass(frozen=True)
class Shipment:
    """What a job needs: `config` is the config's path in the folder that it starts in."""

    config: str
    runtime_env: dict[str, Any]


@contextlib.contextmanager
def packed(config: Config) -> Iterator[Shipment]:
    """A shipment, which can be uploaded until the block ends.

    Raises:
        ConfigError: the workload's file is not in the folder, or the folder is none that may be uploaded.
    """
    root, at = _places(config)
    wanted = config.ray.runtime_env
    with tempfile.TemporaryDirectory(prefix="slimfront-job-") as folder:
        stage = Path(folder) / "stage"
        _mirror(root, stage, at.parts)
        text = yaml.safe_dump(job_document(config, os.path.relpath(root, root / at)), sort_keys=False)
        (stage / at / CONFIG).write_text(text, encoding="utf-8")
        runtime_env: dict[str, Any] = {
            "working_dir": str(stage),
            "excludes": [*EXCLUDES, *_own(config.cache_folder(), root), *wanted.excludes],
        }
        if wanted.py_modules:
            runtime_env["py_modules"] = [str(config.folder / one) for one in wanted.py_modules]
        if wanted.pip:
            runtime_env["pip"] = list(wanted.pip)
        if wanted.env_vars:
            runtime_env["env_vars"] = dict(wanted.env_vars)
        yield Shipment(str(at / CONFIG), runtime_env)


def job_document(config: Config, root: str = ".") -> dict[str, Any]:
    """The config for the job: the same search, and nothing in it that means something else on another machine.

    Its storage is left out where that URL holds a password, and so is what the job brings to the nodes beside the
    folder that it starts in: `root`, as seen from the config.

    Raises:
        ConfigError: its storage is no URL, or its `until` has passed.
    """
    document = config.model_dump(mode="json")
    document["storage"] = storage_for_job(config.resolved_storage())
    document["ray"] = {
        "address": "auto",
        "jobs": config.ray.jobs,
        "resources": config.ray.resources.model_dump(mode="json"),
        "runtime_env": {"working_dir": root},
    }
    folder, shared = config.cache.folder, config.cache.shared
    document["cache"]["folder"] = folder and _absolute(folder)
    document["cache"]["shared"] = shared if shared is None or "://" in shared else _absolute(shared)
    if config.budget.until is not None:
        document["budget"]["until"] = moment_of(config.budget.until, datetime.now(UTC)).isoformat()
    return document


def storage_for_job(url: str) -> str | None:
    """The URL as a job may carry it, an SQLite file with its absolute path; None where it holds a password."""
    if hide_password(url) != url:
        return None
    address = full_address(url)
    file = sqlite_file(address)
    return url if file is None else address.set(database=str(file.absolute())).render_as_string()


def _own(cache: Path, root: Path) -> list[str]:
    """Patterns for the folders in which we keep what a search makes."""
    inside = cache != root and cache.is_relative_to(root)
    return ["/artifacts", *([f"/{cache.relative_to(root)}"] if inside else [])]


def _absolute(folder: str) -> str:
    return folder if folder.startswith("~") else os.path.abspath(folder)


def _places(config: Config) -> tuple[Path, Path]:
    """The folder to ship, and where in it the config goes.

    A config whose workload is a file keeps its place, which that file is named from.
    """
    here = Path(os.path.abspath(config.folder))
    named = config.ray.runtime_env.working_dir
    if named is not None and "://" in named:
        raise ConfigError(f"ray.runtime_env.working_dir: given {named}, but --detach uploads a folder of this machine")
    root = Path(os.path.abspath(here / Path(named).expanduser())) if named is not None else here
    if not root.is_dir():
        raise ConfigError(f"ray.runtime_env.working_dir: given {named}, but there is no folder {root}")
    if Path.home().is_relative_to(root):
        raise ConfigError(
            f"--detach: would upload {root}, which holds more than a search: put the config and its workload into a "
            "folder of their own, or name one in ray.runtime_env.working_dir"
        )
    file = file_of(config.workload, here)
    if file is not None:
        path = Path(os.path.abspath(file[0]))
        if not path.is_relative_to(root) or not here.is_relative_to(root):
            raise ConfigError(
                f"workload: given {config.workload}, which the job will not find: the config's folder {here} and the "
                f"file must be in {root}; name a folder that holds both in ray.runtime_env.working_dir"
            )
        if Path(config.workload.rpartition(":")[0]).is_absolute():
            raise ConfigError(
                f"workload: given {config.workload}, but --detach runs on other machines: write it relative to the "
                f"config's folder, {os.path.relpath(path, here)}:{file[1]}"
            )
    return root, here.relative_to(root) if here.is_relative_to(root) else Path()


def _mirror(real: Path, copy: Path, way: tuple[str, ...]) -> None:
    """Make a folder of links to what is in another one; the folders on the way to the config are real."""
    copy.mkdir()
    try:
        entries = sorted(real.iterdir())
    except OSError as error:
        raise ConfigError(f"--detach: {real} cannot be read: {error.strerror}") from error
    for entry in entries:
        if way and entry.name == way[0]:
            _mirror(entry, copy / entry.name, way[1:])
        elif way or entry.name != CONFIG:
            (copy / entry.name).symlink_to(entry)
