"""What is installed, what the machine has, and whether store and Ray answer."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from search.address import full_address, sqlite_file
from search.cache import default_cache
from search.config import storage_url
from search.storage import check_storage_url, hide_password, open_storage
from spaces.errors import SlimfrontError

State = Literal["ok", "note", "broken"]
OUR_NAMES = ("spaces", "compress", "objectives", "search", "slimfront")
LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `broken` ones must be put right before a search can run."""

    name: str
    state: State
    found: str
    fix: str = ""


def examine(storage: str | None = None, *, say: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Look at everything a search needs.

    Args:
        storage: URL of the store; None is the one that commands take by default.
        say: is told what takes long.
    """
    quick = [python(), *packages(), *other_owners(), device(), *machine(), cache(), store(storage)]
    say("starting Ray, which takes some seconds ...")
    return [*quick, ray()]


def python() -> Finding:
    """The Python that runs this."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < LEAST_PYTHON:
        return Finding("Python", "broken", found, "install Python 3.11 or newer")
    return Finding("Python", "ok", found)


def packages() -> Iterator[Finding]:
    """The installed versions against the ranges of our metadata; the packages of an extra may be missing."""
    try:
        needed = [Requirement(text) for text in metadata.requires("slimfront") or ()]
        ours = metadata.metadata("slimfront")
    except metadata.PackageNotFoundError:
        yield Finding("slimfront", "broken", "not installed", "pip install -e . in its folder")
        return
    yield Finding("slimfront", "ok", ours["Version"])
    extras = [name for name in ours.get_all("Provides-Extra") or () if name != "dev"]
    seen = set()
    for one in needed:
        asked_by = [name for name in ("", *extras) if one.marker is None or one.marker.evaluate({"extra": name})]
        if asked_by and one.name not in seen:  # ray[tune] is ray, which was looked at
            seen.add(one.name)
            yield _package(one, asked_by[0])


def _package(one: Requirement, extra: str) -> Finding:
    name = f"{one.name} ({extra})" if extra else one.name
    bad: State = "note" if extra else "broken"
    fix = f"pip install 'slimfront[{extra}]'" if extra else f"pip install '{one.name}{one.specifier}'"
    try:
        version = metadata.version(one.name)
    except metadata.PackageNotFoundError:
        return Finding(name, bad, "not installed", fix)
    if not one.specifier.contains(version, prereleases=True):
        return Finding(name, bad, f"{version}, and Slimfront needs {one.specifier}", fix)
    return Finding(name, "ok", version)


def other_owners() -> Iterator[Finding]:
    """Another distribution that installs a package of our name: one of the two hides the other."""
    owners = metadata.packages_distributions()
    for name in OUR_NAMES:
        for owner in sorted(set(owners.get(name, ())) - {"slimfront"}):
            yield Finding(
                f"package {name}",
                "broken",
                f"the distribution {owner} installs a package of this name, too",
                f"pip uninstall {owner}, or give Slimfront an environment of its own",
            )


def device() -> Finding:
    """Whether torch loads, and where it computes."""
    try:
        import torch

        if not torch.cuda.is_available():
            return Finding("device", "ok", f"CPU, {torch.get_num_threads()} torch threads")
        count = torch.cuda.device_count()
        return Finding("device", "ok", f"CUDA: {count} x {torch.cuda.get_device_name(0)}")
    except Exception as error:  # a broken install fails in many ways
        return Finding("device", "broken", f"torch does not load: {error}", "install torch again: see pytorch.org")


def machine() -> Iterator[Finding]:
    """Cores and memory that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok", f"{usable} of {os.cpu_count()}")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    granted = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    memory = whole if granted == "max" else min(whole, int(granted))
    yield Finding("memory", "ok", f"{memory / 2**30:.1f} GiB")


def cache() -> Finding:
    """Whether packed models can be kept; the folder is not made."""
    folder = default_cache()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    elsewhere = "name another folder in $SLIMFRONT_CACHE"
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding("cache", "broken", f"{folder} cannot be written: {error.strerror}", elsewhere)
    found = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return Finding("cache", "note", found, f"make room, or {elsewhere}")
    return Finding("cache", "ok", found)


def store(storage: str | None = None) -> Finding:
    """Whether the store answers; nothing is written into it."""
    try:
        url = storage_url(storage)
        shown = hide_password(url)
        check_storage_url(url)
        if (empty := _empty(url)) is not None:
            return Finding("store", "ok", f"{shown}: {empty}; the first launch makes it")
        opened = open_storage(url, create=False)
        try:
            version = ".".join(str(part) for part in opened.engine.dialect.server_version_info or ())
            kind = f"{opened.engine.dialect.name} {version}".strip()
            return Finding("store", "ok", f"{shown}: {kind}, studies: {len(opened.get_all_studies())}")
        finally:
            opened.close()
    except SlimfrontError as error:
        return Finding("store", "broken", str(error), "see --storage and $SLIMFRONT_STORAGE")


def _empty(url: str) -> str | None:
    """What a store that was not used yet lacks; None for any other one, whether it answers or not."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    address = full_address(url)
    file = sqlite_file(address)
    if file is not None and not file.exists():
        return "there is no such file yet"
    try:
        with create_engine(address, poolclass=NullPool).connect() as connection:
            return None if inspect(connection).get_table_names() else "it answers and has no tables yet"
    except (SQLAlchemyError, ImportError):
        return None  # open_storage says what is wrong


def ray() -> Finding:
    """Whether Ray starts and runs a task."""
    try:
        from search.pool import ray_answers

        return Finding("Ray", "ok", ray_answers())
    except Exception as error:  # whatever it is, the other findings are still to be shown
        return Finding("Ray", "broken", str(error), "--workers 0 searches without it")
