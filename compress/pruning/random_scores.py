"""Random pruning, the baseline that each criterion must beat (Gale et al. 2019, arXiv:1902.09574, section 3)."""

import hashlib

import torch


def random_scores(rows: torch.Tensor, name: str) -> torch.Tensor:
    """Scores between 0 and 1, (channels, n), that depend on the site's name and the shape alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows.shape, generator=generator).to(rows.device)
