"""Searches as jobs of a Ray cluster, which is spoken to over HTTP alone."""

import asyncio
import contextlib
import logging
import os
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from search.address import hide_password
from spaces.errors import ConfigError, StudyError

STUDY: Final = "slimfront_study"  # keys of a job's metadata
STORE: Final = "slimfront_store"
_ADDRESS: Final = "RAY_API_SERVER_ADDRESS"
_ANSWERS_S: Final = 10.0
_UNAUTHORIZED: Final = 401
_ESCAPES: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-_])")
_MISSING: Final = "detached searches need Ray's job client: pip install 'slimfront[cluster]'"
_TOO_LARGE: Final = ("exceeds the maximum size", "status code 413")


@dataclass(frozen=True)
class Job:
    """A job of the cluster that searches a study, or did.

    Attributes:
        id: its submission id.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        message: what Ray says about it.
        study: the study's name.
        store: the mark of the study's database.
        started: when it was submitted.
    """

    id: str
    status: str
    message: str
    study: str
    store: str
    started: datetime

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status not in ("PENDING", "RUNNING")

    @property
    def outcome(self) -> str:
        """How it is doing, or how it ended, in a word; a search that was interrupted politely did not fail."""
        interrupted = self.status == "FAILED" and self.message.endswith("exit code 130")
        return "stopped" if interrupted else self.status.lower()


class Jobs:
    """The jobs of one Ray cluster.

    Args:
        url: of the cluster's dashboard, as in http://head:8265.

    Raises:
        ConfigError: Ray's job client is not installed.
        StudyError: no Ray cluster answers there.
    """

    def __init__(self, url: str) -> None:
        self.url = hide_password(url)
        self._client = self._connected(url)

    def _connected(self, url: str) -> Any:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ConfigError(f"{_MISSING} ({error})") from error
        for handler in logging.getLogger("ray").handlers:  # "Uploading package ..." is not for our users
            handler.setLevel(logging.ERROR)
        with self._asking("reach"):
            headers = _token() if _knock(url) == _UNAUTHORIZED else {}
            with _address(url):  # Ray would let its variables win over what it is given
                try:
                    return JobSubmissionClient(url, headers=headers)
                except RuntimeError as error:
                    if "ray[default]" in str(error):
                        raise ConfigError(_MISSING) from error
                    raise

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Hand a job in.

        Args:
            job_id: its submission id, which no job of the cluster had before.
            entrypoint: the shell command that it runs.
            runtime_env: Ray's; folders of this machine in it are uploaded.
            metadata: what anybody who reaches the cluster may read.

        Raises:
            ConfigError: what it needs is too large.
            StudyError: the cluster did not take it.
        """
        with self._asking("submit to"):
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job_id,
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
            except (RuntimeError, ValueError) as error:
                if any(words in str(error) for words in _TOO_LARGE):
                    raise ConfigError(
                        "the folder that the job needs is too large for the cluster, where Ray takes 100 MB: leave "
                        "files out with ray.runtime_env.excludes, and keep data where all nodes see them"
                    ) from error
                raise

    def find(self, job_id: str) -> Job | None:
        """The job with this id, if the cluster knows it.

        Raises:
            StudyError: the cluster does not answer.
        """
        return next((job for job in self._all() if job.id == job_id), None)

    def of_study(self, study: str) -> list[Job]:
        """The jobs that searched studies of this name, the earliest first.

        Raises:
            StudyError: the cluster does not answer.
        """
        return sorted((job for job in self._all() if job.study == study), key=lambda job: (job.started, job.id))

    def _all(self) -> list[Job]:
        with self._asking("ask"):
            listed = self._client.list_jobs()
        return [_job(one) for one in listed if one.submission_id and STUDY in (one.metadata or {})]

    def log(self, job_id: str) -> str:
        """What a job has printed up to now, as plain lines.

        Raises:
            StudyError: the cluster does not answer.
        """
        with self._asking("read a log of"):
            return plain(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], None]) -> None:
        """Hand on what a job prints, as plain lines, until it ends.

        Raises:
            StudyError: the cluster does not answer, or the connection was lost.
        """

        async def tail() -> None:
            rest = ""
            async for text in self._client.tail_job_logs(job_id):
                whole, newline, rest = (rest + text).rpartition("\n")
                if newline:
                    write(plain(whole + newline))
            if rest:
                write(plain(rest + "\n"))

        with self._asking("read a log of"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray's, about how it calls aiohttp
            asyncio.run(tail())

    def stop(self, job_id: str) -> None:
        """End a job, SIGTERM first and SIGKILL some seconds later.

        Raises:
            StudyError: the cluster does not answer.
        """
        with self._asking("stop a job of"):
            self._client.stop_job(job_id)

    @contextlib.contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        """Say it in one sentence when the cluster does not do what it is asked to."""
        try:
            yield
        except (ConfigError, StudyError):
            raise
        except Exception as error:  # of requests, aiohttp, Ray, or of the JSON of another program
            raise StudyError(
                f"cannot {doing} the Ray cluster at {self.url}: {_said(error)}; see that it runs, and that "
                "ray.jobs, --jobs or $RAY_API_SERVER_ADDRESS names its dashboard"
            ) from error


def _said(error: Exception) -> str:
    """The line that says what is wrong: the first one, of a traceback from the server the last one."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    lines = str(reason).strip().rstrip(".").splitlines() or [type(error).__name__]
    return hide_password(lines[-1 if lines[0].endswith("Traceback (most recent call last):") else 0].strip())


def plain(text: str) -> str:
    r"""A log without colours, other escape sequences, and what a carriage return wrote over.

    >>> plain("\x1b[36m(pid=7)\x1b[0m 10 %\r20 %\n")
    '20 %\n'
    """
    lines = _ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def _job(found: Any) -> Job:
    metadata = found.metadata or {}
    return Job(
        id=found.submission_id,
        status=str(getattr(found.status, "value", found.status)),
        message=plain(found.message or "").partition("\n")[0].partition(", last available logs")[0],
        study=metadata[STUDY],
        store=metadata.get(STORE, ""),
        started=datetime.fromtimestamp((found.start_time or 0) / 1000, UTC),
    )


def _knock(url: str) -> int:
    """Ask for the version, with a time limit, which Ray's client has none of; the HTTP status of the answer."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/version", timeout=_ANSWERS_S) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _token() -> dict[str, str]:
    """The header with the cluster's token, where Ray keeps it; its job client looks there in some modes only."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    with contextlib.suppress(OSError):
        token = token or Path(named or "~/.ray/auth_token").expanduser().read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextlib.contextmanager
def _address(url: str) -> Iterator[None]:
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before
