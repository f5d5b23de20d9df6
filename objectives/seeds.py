"""Seeds of whatever is random, each from the study's seed and a text that says what it is for."""

import hashlib


def seed_of(seed: int, text: str) -> int:
    """A 63-bit seed from the study's seed and a text such as a policy digest."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8]) >> 1
