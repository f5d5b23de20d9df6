"""Packed files by their hash: whole, or none; a folder that cannot be written is nobody's fault."""

import hashlib
from pathlib import Path

import pytest

from compress.files import artifact_path
from objectives.packed import keep_packed, read_packed
from spaces.errors import RetryableError

BLOB = b"a packed file"
SHA256 = hashlib.sha256(BLOB).hexdigest()


def test_what_is_kept_is_read(tmp_path: Path) -> None:
    assert read_packed(tmp_path, SHA256) is None
    keep_packed(tmp_path, SHA256, BLOB)
    assert read_packed(tmp_path, SHA256) == BLOB
    before = artifact_path(tmp_path, SHA256).stat().st_mtime_ns
    keep_packed(tmp_path, SHA256, BLOB)
    assert artifact_path(tmp_path, SHA256).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", [b"", b"a packed fil", b"another file!"])
def test_a_damaged_one_is_none_and_is_replaced(damage: bytes, tmp_path: Path) -> None:
    keep_packed(tmp_path, SHA256, BLOB)
    artifact_path(tmp_path, SHA256).write_bytes(damage)
    assert read_packed(tmp_path, SHA256) is None
    keep_packed(tmp_path, SHA256, BLOB)
    assert read_packed(tmp_path, SHA256) == BLOB


def test_a_folder_that_cannot_be_written_is_to_blame(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RetryableError, match=r"^the cache folder .*file cannot be written: "):
        keep_packed(tmp_path / "file", SHA256, BLOB)
