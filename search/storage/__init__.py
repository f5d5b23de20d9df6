"""The study database: Optuna's own tables, written a whole trial at a time; only here are they touched."""

from search.address import check_storage_url, hide_password
from search.storage.opening import MissingStoreError, open_storage
from search.storage.rdb import Storage, no_guard
from search.storage.writing import End, Start

__all__ = [
    "End",
    "MissingStoreError",
    "Start",
    "Storage",
    "check_storage_url",
    "hide_password",
    "no_guard",
    "open_storage",
]
