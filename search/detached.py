"""Searches that run as jobs of a Ray cluster: launch --detach, logs and stop."""

import os
import secrets
import shlex
import time
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final

import typer

from search.address import hide_password
from search.options import StorageUrl, StudyName
from spaces.errors import ConfigError, StudyError

if TYPE_CHECKING:
    from search.config import Config
    from search.lease import Holder
    from search.pool.jobs import Job, Jobs
    from search.storage import Storage

JobsUrl = Annotated[
    str | None,
    typer.Option(
        "--jobs",
        metavar="URL",
        help="the cluster's dashboard; else the study's ray.jobs, else $RAY_API_SERVER_ADDRESS, else "
        "http://127.0.0.1:8265",
    ),
]

DEFAULT_JOBS: Final = "http://127.0.0.1:8265"
STARTS_S: Final = 600.0  # a running job gets so long to load its workload, measure it, and take the lease
STOPS_S: Final = 60.0  # beside its grace
_LOOKS_S: Final = 0.5
_SAYS_S: Final = 15.0
_TAIL: Final = 20  # lines of a failed job's log
_RESERVED: Final = 40  # characters of the study's name in a job's id, which fits the lease's column


def jobs_url(given: str | None) -> str:
    """The URL of the cluster's dashboard: the one given, else $RAY_API_SERVER_ADDRESS, else this machine's."""
    url = given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_JOBS
    return url if "://" in url else f"http://{url}"


def detach(config: "Config", *, takeover: bool = False, starts_s: float = STARTS_S) -> "Job":
    """Submit a search as a job of the cluster, and wait until its driver holds the study's lease in our database.

    Args:
        config: the search.
        takeover: as `launch` has it, for the job.
        starts_s: how long a running job may take until then, in s.

    Returns:
        The job, which may have searched to the end already.

    Raises:
        ConfigError: the search cannot be shipped, or Ray's job client is not installed.
        StudyError: somebody searches this study, cluster or database do not answer, or the job failed.
    """
    from search.pool.jobs import STORE, STUDY, Jobs
    from search.progress import say
    from search.shipment import packed, storage_for_job
    from search.storage import check_storage_url, open_storage

    url = config.resolved_storage()
    check_storage_url(url)
    with packed(config) as shipment, closing(open_storage(url, create=True)) as storage:
        held = _holder(storage, config.study)
        if held is not None and held.alive and not takeover:
            raise StudyError(
                f"study {config.study!r} is being searched by {_who(held)}: wait for it, or end it with "
                f"`slimfront stop {shlex.quote(config.study)}`"
            )
        jobs = Jobs(jobs_url(config.ray.jobs))
        job_id = f"slimfront-{config.study[:_RESERVED]}-{secrets.token_hex(4)}"
        elsewhere = storage_for_job(url) is None
        if elsewhere:
            say("the storage has a password, which stays here: the cluster's nodes take theirs from $SLIMFRONT_STORAGE")
        say(f"study {config.study}: submitting job {job_id} to {jobs.url}")
        entrypoint = _entrypoint(job_id, shipment.config, takeover=takeover, elsewhere=elsewhere)
        jobs.submit(job_id, entrypoint, shipment.runtime_env, {STUDY: config.study, STORE: store_mark(url)})
        try:
            return _wait_for_lease(storage, config.study, jobs, job_id, starts_s)
        except KeyboardInterrupt:
            say(f"job {job_id} goes on without this command: slimfront logs {shlex.quote(config.study)}")
            raise


def store_mark(url: str) -> str:
    """What tells the databases of jobs apart, without saying anything about them."""
    return sha256(hide_password(url).encode()).hexdigest()[:16]


def _entrypoint(job_id: str, config: str, *, takeover: bool, elsewhere: bool) -> str:
    needed = ': "${SLIMFRONT_STORAGE:?is not set on this node, and the URL of the study database has a password}" && '
    words = ["python3", "-m", "search.cli", "launch", config, *(["--takeover"] if takeover else [])]
    return f"{needed if elsewhere else ''}SLIMFRONT_JOB={job_id} {shlex.join(words)}"


def _wait_for_lease(storage: "Storage", study: str, jobs: "Jobs", job_id: str, starts_s: float) -> "Job":
    """Wait until a job holds the lease, or has searched to the end."""
    from search.progress import say

    seen, said, begun = 0, "", time.monotonic()
    next_words = begun + _SAYS_S
    while True:
        held, job = _holder(storage, study), jobs.find(job_id)
        ours = held is not None and held.alive and held.job == job_id
        seen = seen + 1 if ours else 0
        if job is None:
            raise StudyError(f"job {job_id} is no longer known to the cluster at {jobs.url}: was it restarted?")
        if job.ended:
            return _ended(storage, study, jobs, job)
        if seen > 1:  # and not refused at once
            return job
        now = time.monotonic()
        if job.status == "PENDING" or (held is not None and held.alive):
            begun = now  # its environment is made, or it waits for another driver, as it was told to
        if now - begun > starts_s:
            raise StudyError(_not_here(storage.url, study, job_id, starts_s))
        if now > next_words:
            lines = jobs.log(job_id).strip().splitlines()
            if lines and lines[-1] != said:
                said = lines[-1]
                say(f"the job says: {said}")
            next_words = now + _SAYS_S
        time.sleep(_LOOKS_S)


def _ended(storage: "Storage", study: str, jobs: "Jobs", job: "Job") -> "Job":
    """The job, if it has searched to the end and in our database."""
    if job.status == "SUCCEEDED":
        if _trials(storage, study):
            return job
        raise StudyError(f"job {job.id} has searched to its end, {_other_store(storage.url)}")
    lines = jobs.log(job.id).strip().splitlines()[-_TAIL:]
    tail = "".join(f"\n  {line}" for line in lines)
    hint = ""
    if any("No module named search" in line or "python3: not found" in line for line in lines):
        hint = "\nSlimfront must be installed on the cluster's nodes, in the Python that `ray start` finds as python3"
    raise StudyError(f"job {job.id} {job.outcome} before it searched: {job.message}{tail}{hint}")


def _not_here(url: str, study: str, job_id: str, starts_s: float) -> str:
    return (
        f"job {job_id} runs, but has not begun to search within {starts_s:.0f} s: either it is still measuring the "
        f"model (`slimfront logs {shlex.quote(study)}` tells; then there is nothing to do), or it does so "
        f"{_other_store(url)}. `slimfront stop {shlex.quote(study)}` ends it"
    )


def _other_store(url: str) -> str:
    return (
        f"but not in {hide_password(url)}: an SQLite file must be on a disk that the cluster shares, a server must "
        "have the same name there, and $SLIMFRONT_STORAGE on the cluster's nodes must mean the same database"
    )


def _study_id(storage: "Storage", study: str) -> int | None:
    try:
        return storage.get_study_id_from_name(study)
    except KeyError:
        return None


def _trials(storage: "Storage", study: str) -> int:
    study_id = _study_id(storage, study)
    return 0 if study_id is None else storage.get_n_trials(study_id)


def _holder(storage: "Storage", study: str) -> "Holder | None":
    from search.lease import holder

    study_id = _study_id(storage, study)
    return None if study_id is None else holder(storage, study_id)


def _who(held: "Holder") -> str:
    return f"process {held.pid} on {held.host}{f', job {held.job}' if held.job else ''}"


def logs(
    study: StudyName = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until the job ends, or Ctrl-C")] = False,
    jobs: JobsUrl = None,
    storage: StorageUrl = None,
) -> None:
    """What a detached search has printed.

    It is the job that searches the study, or the latest one that did.
    """
    from search.config import storage_url
    from search.pool.jobs import Jobs

    name, held, configured, error = _look(study, storage)
    if held is not None and held.alive and not held.job:
        raise StudyError(f"study {name!r} is searched by {_who(held)}, which is no job: what it prints is shown there")
    cluster = Jobs(jobs_url(jobs or configured))
    job = _job_of(cluster, name, held, storage)
    if job is None:
        if error is not None:
            raise error
        raise StudyError(
            f"the cluster at {cluster.url} knows no job of study {name!r}: it was searched without --detach, or the "
            "cluster was restarted, or is another one (--jobs URL)"
        )
    if job.store != store_mark(storage_url(storage)):
        typer.echo(f"note: job {job.id} was launched with another address of the database", err=True)
    if follow:
        cluster.follow(job.id, lambda text: typer.echo(text, nl=False))
        job = cluster.find(job.id) or job
    else:
        typer.echo(cluster.log(job.id), nl=False)
    typer.echo(f"job {job.id}: {job.outcome}", err=True)


def _look(study: str | None, storage: str | None) -> "tuple[str, Holder | None, str | None, StudyError | None]":
    """A study's name, who searches it, the cluster of its config, and why it is not in the store if it is not."""
    from search.config import storage_url
    from search.lease import holder
    from search.storage import open_storage
    from search.stored import pick_study

    try:
        with closing(open_storage(storage_url(storage), create=False)) as store:
            found = pick_study(store, study)
            configured = found.attrs["config"].get("ray", {}).get("jobs")  # older studies have none
            return found.name, holder(store, found.id), configured, None
    except StudyError as error:
        if study is None:
            raise
        return study, None, None, error  # a job that ended before it made the study has a log all the same


def _job_of(cluster: "Jobs", study: str, held: "Holder | None", storage: str | None) -> "Job | None":
    """The job that searches a study; else the latest one that did, in this database if that is known."""
    from search.config import storage_url

    if held is not None and held.alive and held.job and (job := cluster.find(held.job)) is not None:
        return job
    found = cluster.of_study(study)
    ours = [job for job in found if job.store == store_mark(storage_url(storage))]
    return (ours or found)[-1] if found else None


def stop(study: StudyName = None, jobs: JobsUrl = None, storage: StorageUrl = None) -> None:
    """End a search politely, wherever it runs.

    What runs gets the study's grace time to finish; nothing told is lost, and the same launch goes on where it was.
    """
    from search.config import storage_url
    from search.lease import ask_to_stop
    from search.storage import open_storage
    from search.stored import pick_study

    name, held, configured, error = _look(study, storage)
    if held is None or not held.alive:
        if _stop_before_it_searched(name, jobs_url(jobs or configured), storage):
            return
        if error is not None:
            raise error
        killed = f": {_who(held)} was killed" if held is not None else ""
        raise StudyError(f"nobody searches study {name!r}{killed}; there is nothing to stop")
    with closing(open_storage(storage_url(storage), create=False)) as store:
        found = pick_study(store, name)
        grace_s = float(found.attrs["config"]["budget"].get("grace", 0.0))
        asked = ask_to_stop(store, found.id)
        if asked is not None:
            typer.echo(f"asked {_who(asked)} to stop: what runs gets {grace_s:g} s to finish", err=True)
            _wait_for_end(store, found.id, asked, name, grace_s + STOPS_S)
    typer.echo(f"study {name} is stopped; the same launch goes on where it was")


def _wait_for_end(store: "Storage", study_id: int, asked: "Holder", name: str, patience_s: float) -> None:
    from search.lease import holder

    end = time.monotonic() + patience_s
    while (held := holder(store, study_id)) is not None and held.alive and _who(held) == _who(asked):
        if time.monotonic() > end:
            raise StudyError(
                f"{_who(asked)} has not stopped searching study {name!r} within {patience_s:.0f} s, and was heard of "
                f"{held.age_s:.0f} s ago: end that process there; where its machine is gone, "
                "`slimfront launch CONFIG --takeover` goes on in its place"
            )
        time.sleep(_LOOKS_S)


def _stop_before_it_searched(study: str, url: str, storage: str | None) -> bool:
    """End the jobs of a study in this database that have not taken its lease yet; whether there were some."""
    from search.config import storage_url
    from search.pool.jobs import Jobs

    try:
        cluster = Jobs(url)
        found = [job for job in cluster.of_study(study) if job.store == store_mark(storage_url(storage))]
    except (ConfigError, StudyError):  # no cluster, no job
        return False
    running = [job for job in found if not job.ended]
    for job in running:
        cluster.stop(job.id)
        typer.echo(f"job {job.id} of study {study}, which did not search yet, is stopped")
    return bool(running)
