"""The study database: Optuna's own tables, written a whole trial at a time; only here are they touched."""

from search.address import check_storage_url, hide_password
from search.storage.opening import open_storage
from search.storage.rdb import Storage

__all__ = ["Storage", "check_storage_url", "hide_password", "open_storage"]
