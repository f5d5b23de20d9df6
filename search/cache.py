"""Which folder a policy's packed file is looked for in."""

import contextlib
from pathlib import Path

from compress.files import artifact_path
from compress.shared import fetch_artifact
from search.config import Config, storage_url
from search.storage import open_storage
from spaces.errors import ConfigError, StudyError
from spaces.policy import PolicyFile


def default_cache() -> Path:
    """The folder of a search whose config names none: $SLIMFRONT_CACHE, else ~/.cache/slimfront."""
    return Config(study="any", workload="any:any").cache_folder()


def cache_of(policy: PolicyFile, given: Path | None, storage: str | None) -> Path:
    """The folder given; else the first that has the file, of those the study recorded and the default one.

    Where none has it, it is fetched from what the study's nodes share, and kept in the default one.

    Args:
        policy: what was exported.
        given: the folder named on the command line.
        storage: URL of the store to ask; None is the one that commands take by default. It need not answer.
    """
    if given is not None:
        return given
    recorded, shared = _recorded(policy.provenance.study, storage)
    own, sha256 = default_cache(), policy.artifact.sha256
    folders = [*recorded, own]
    found = next((folder for folder in folders if sha256 and artifact_path(folder, sha256).exists()), None)
    if found is None and sha256 and shared:
        with contextlib.suppress(ConfigError):  # this machine lacks the driver
            found = own if fetch_artifact(shared, sha256, own) else None
    return found or folders[0]


def _recorded(study: str, storage: str | None) -> tuple[list[Path], str | None]:
    """The cache folders of a study's launches, the latest first, and what its nodes share."""
    try:
        store = open_storage(storage_url(storage), create=False)
    except (ConfigError, StudyError):
        return [], None
    try:
        attrs = store.get_study_user_attrs(store.get_study_id_from_name(study))
        folders = [attrs.get("cache"), *attrs.get("earlier_caches", ())]
        return [Path(folder) for folder in folders if folder], attrs.get("shared")
    except KeyError:
        return [], None
    finally:
        store.close()
