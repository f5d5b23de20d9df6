"""Lossless entropy coding of integer codes: a context model that both sides share, and a range coder below it."""

from compress.entropy.coder import decode, encode

__all__ = ["decode", "encode"]
