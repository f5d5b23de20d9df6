"""Which folder a policy's packed file is looked for in."""

from pathlib import Path

from compress.files import artifact_path
from search.config import Config, storage_url
from search.storage import open_storage
from spaces.errors import ConfigError, StudyError
from spaces.policy import PolicyFile


def default_cache() -> Path:
    """The folder of a search whose config names none: $SLIMFRONT_CACHE, else ~/.cache/slimfront."""
    return Config(study="any", workload="any:any").cache_folder()


def cache_of(policy: PolicyFile, given: Path | None, storage: str | None) -> Path:
    """The folder given; else the first that has the file, of those the study recorded and the default one.

    Args:
        policy: what was exported.
        given: the folder named on the command line.
        storage: URL of the store to ask; None is the one that commands take by default. It need not answer.
    """
    if given is not None:
        return given
    folders = [*_recorded(policy.provenance.study, storage), default_cache()]
    sha256 = policy.artifact.sha256
    found = (folder for folder in folders if sha256 and artifact_path(folder, sha256).exists())
    return next(found, folders[0])


def _recorded(study: str, storage: str | None) -> list[Path]:
    """The cache folders of a study's launches, the latest first."""
    try:
        store = open_storage(storage_url(storage), create=False)
    except (ConfigError, StudyError):
        return []
    try:
        attrs = store.get_study_user_attrs(store.get_study_id_from_name(study))
        return [Path(folder) for folder in [attrs.get("cache"), *attrs.get("earlier_caches", ())] if folder]
    except KeyError:
        return []
    finally:
        store.close()
