"""How long a search waits for what it cannot go on without: its database, its Ray cluster, room in its cache folder."""

from typing import Final

PATIENCE_SECONDS: Final = 600.0
