"""What Ray brings to the nodes of a cluster: the user's code and data, packages and variables."""

import os
from pathlib import Path
from typing import Any

from search.config import Config
from spaces.errors import ConfigError

EXCLUDES = (
    "*.db*",
    ".env*",
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    ".cache",
    "*.egg-info",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".ssh",
    ".aws",
    ".netrc",
    ".pgpass",
    ".git-credentials",
)


def brought(config: Config) -> tuple[dict[str, Any], str]:
    """The runtime environment of a search on a cluster, and the workload's entry as a worker there finds it.

    Where the workload is a file and no folder is named, the file's folder is brought.

    Raises:
        ConfigError: the workload's file is not inside the folder, or a folder is missing.
    """
    given = config.ray.runtime_env
    entry, folder = config.workload_entry(), given.working_dir
    source, _, function = entry.rpartition(":")
    environment: dict[str, Any] = {}
    if folder is not None and "://" in folder:
        environment["working_dir"] = folder
        if source.endswith(".py"):
            entry = f"{Path(source).name}:{function}"
    elif folder is not None or source.endswith(".py"):
        root = Path(source).parent if folder is None else _folder(config, "working_dir", folder)
        environment["working_dir"] = str(root)
        environment["excludes"] = [*EXCLUDES, *_inside(config.cache_folder(), root), *given.excludes]
        if source.endswith(".py"):
            if not Path(source).is_relative_to(root):
                raise ConfigError(
                    f"ray.runtime_env.working_dir: given {folder}, allowed a folder that holds the workload's file "
                    f"{source}"
                )
            entry = f"{Path(source).relative_to(root)}:{function}"
    if given.py_modules:
        environment["py_modules"] = [str(_folder(config, "py_modules", one)) for one in given.py_modules]
    if given.pip:
        environment["pip"] = list(given.pip)
    if given.env_vars:
        environment["env_vars"] = dict(given.env_vars)
    return environment, entry


def _folder(config: Config, key: str, given: str) -> Path:
    """A folder of the config, absolute."""
    found = (config.folder / given).resolve()
    if not found.is_dir():
        raise ConfigError(
            f"ray.runtime_env.{key}: given {given}, allowed a folder that exists: there is none at {found}"
        )
    return found


def _inside(folder: Path, root: Path) -> list[str]:
    """A pattern for a folder that lies in another one; none if it does not."""
    inner = Path(os.path.realpath(folder))
    return [f"/{inner.relative_to(root)}"] if inner != root and inner.is_relative_to(root) else []


def hide_variables(config: Config, text: str) -> str:
    """A text without the values of the environment variables, which may be secrets."""
    for value in sorted(config.ray.runtime_env.env_vars.values(), key=len, reverse=True):
        if len(value) > 3:
            text = text.replace(value, "***")
    return text
