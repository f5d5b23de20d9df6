"""Uniform symmetric quantization per output channel, clipped where the squared error is least.

The scale search is the one of Banner et al. 2019 (arXiv:1810.05723, "ACIQ") by enumeration instead of by a
distribution: among shares of the largest magnitude, the one with the least squared error is taken.
"""

import torch

CLIPS = tuple(i / 32 for i in range(4, 33))  # shares of the largest magnitude that are tried as the clip


def top(bits: int) -> int:
    """The largest code: codes run from -top to top (2 bits: -1, 0, 1)."""
    return (1 << (bits - 1)) - 1


def exponent_of(scale: torch.Tensor) -> int:
    """The power of two that brings the largest scale of a site to [1, 2), so that float16 never overflows.

    At least -126, since 2**126 is the largest power that float32 holds together with its inverse.
    """
    largest = float(scale.max())
    return max(-126, int(torch.frexp(torch.tensor(largest)).exponent) - 1) if largest > 0 else 0


def quantize(rows: torch.Tensor, kept: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Round each channel's kept weights to integers times a scale.

    Args:
        rows: weights, (channels, n).
        kept: boolean, (channels, n); what is not kept gets code 0.
        bits: 2 to 8.

    Returns:
        codes int8 (channels, n), scales float32 (channels, 1) that are exact in float16 times 2**exponent, exponent.
    """
    weights = torch.where(kept, rows, 0.0)
    largest = weights.abs().amax(dim=1, keepdim=True)  # (channels, 1)
    exponent = exponent_of(largest / top(bits))
    # in units of 2**exponent, which changes no digit: the square of 1e-30 or 1e30 is none that float32 holds
    units, largest = weights * 2.0**-exponent, largest * 2.0**-exponent
    best = torch.full_like(largest, torch.inf)
    found = torch.zeros_like(largest)
    for clip in CLIPS:
        scale = (largest * clip / top(bits)).half().float()
        error = (dequantize(encode(units, scale, bits), scale) - units).square().sum(dim=1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        found = torch.where(better, scale, found)
    scales = found * 2.0**exponent
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, 0.0, scales)  # its inverse would be infinite
    return encode(weights, scales, bits), scales, exponent


def encode(rows: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Nearest codes, int8; a channel whose scale is zero gets zeros."""
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    return (rows * inverse).round_().clamp_(-top(bits), top(bits)).to(torch.int8)


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes times scales, float32."""
    return codes.float() * scales
