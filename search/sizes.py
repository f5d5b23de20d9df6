"""Sizes of files as people write them."""

import re
from decimal import Decimal

from spaces.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes in a text such as `31240`, `500 kB` (1000 each) or `1.2MiB` (1024 each), rounded down.

    Raises:
        ConfigError: it is no such text, or less than a byte.

    Example:
        >>> parse_size("1.2MB"), parse_size("30KiB")
        (1200000, 30720)
    """
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    size = int(Decimal(found[1]) * unit) if found and unit else 0
    if size < 1:
        raise ConfigError(f"size: given {text!r}, allowed a number of bytes such as 31240, 500kB, 1.2MB or 30KiB")
    return size
