"""Which folder a policy's packed file is looked for in."""

import os
from pathlib import Path

from search.config import Config, storage_url
from search.storage import open_storage
from spaces.errors import ConfigError, StudyError
from spaces.policy import PolicyFile


def default_cache() -> Path:
    """The folder of a search whose config names none: $SLIMFRONT_CACHE, else ~/.cache/slimfront."""
    return Config(study="any", workload="any:any").cache_folder()


def cache_of(policy: PolicyFile, given: Path | None, storage: str | None) -> Path:
    """The folder given, else $SLIMFRONT_CACHE, else the one that the policy's study recorded, else the default.

    Args:
        policy: what was exported.
        given: the folder named on the command line.
        storage: URL of the store to ask; None is the one that commands take by default. It need not answer.
    """
    if given is not None:
        return given
    recorded = None if os.environ.get("SLIMFRONT_CACHE") else _recorded(policy.provenance.study, storage)
    return recorded or default_cache()


def _recorded(study: str, storage: str | None) -> Path | None:
    try:
        store = open_storage(storage_url(storage), create=False)
    except (ConfigError, StudyError):
        return None
    try:
        folder = store.get_study_user_attrs(store.get_study_id_from_name(study)).get("cache")
        return None if folder is None else Path(folder)
    except KeyError:
        return None
    finally:
        store.close()
