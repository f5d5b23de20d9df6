"""Sizes of files as people write them."""

import pytest

from search.sizes import parse_size
from spaces.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("31240", 31_240),
        ("1.2MB", 1_200_000),
        ("500kB", 500_000),
        ("500 KB", 500_000),
        ("30KiB", 30_720),
        ("1MiB", 1_048_576),
        ("2gib", 2 * 2**30),
        (" .5 GB ", 500_000_000),
        ("0.0015kB", 1),
        ("1.1MB", 1_100_000),
        ("64 b", 64),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e6", "1.2.3", "0", "0.5", "12 bits", "1M", "nan", "¹kB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="500kB"):
        parse_size(text)
