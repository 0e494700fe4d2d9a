"""Masks modulo a prime, for sums that travel inside ciphertexts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.checks import refuse

__all__ = ["add_residue_masks", "draw_residues", "from_residues", "to_residues"]

_TILE = 1 << 15
_BATCH = 256


def to_residues(signed: npt.NDArray[np.int64], modulus: int) -> npt.NDArray[np.uint64]:
    """Return signed numbers of magnitude below ``modulus / 2`` as residues."""
    return (signed + (signed >> 63 & modulus)).view(np.uint64)


def from_residues(residues: npt.NDArray[np.uint64], modulus: int) -> npt.NDArray[np.int64]:
    """Return residues as signed numbers of magnitude below ``modulus / 2``."""
    signed = residues.astype(np.int64)
    signed[signed > modulus // 2] -= modulus
    return signed


def draw_residues(stream: KeyStream, count: int, modulus: int) -> npt.NDArray[np.uint64]:
    """Draw exactly uniform residues modulo a number just below ``2**60``.

    Takes the upper 60 bits of each 64-bit word of the stream and skips values >= ``modulus``.
    """
    drawn = stream.words(count, np.uint64) >> np.uint64(4)
    while (drawn >= modulus).any():
        kept = drawn[drawn < modulus]
        more = stream.words(count - kept.size, np.uint64) >> np.uint64(4)
        drawn = np.concatenate([kept, more])
    return drawn


def add_residue_masks(
    accumulator: npt.NDArray[np.uint64], keys: Sequence[bytes], signs: Sequence[int], modulus: int
) -> None:
    """Add one signed mask per key to residues, in place; ``2**59 < modulus < 2**60``."""
    if not 1 << 59 < modulus < 1 << 60:
        raise refuse("mask modulus", "it must lie between 2**59 and 2**60")
    if accumulator.dtype != np.uint64 or (accumulator >= modulus).any():
        raise refuse("mask range", "the accumulator must hold uint64 below the modulus")
    if len(keys) != len(signs) or not set(signs) <= {1, -1}:
        raise refuse("mask signs", "one sign, +1 or -1, per key")
    whole = np.uint64(modulus)
    for first in range(0, len(keys), _BATCH):
        batch = [
            (KeyStream(key), sign)
            for key, sign in zip(
                keys[first : first + _BATCH], signs[first : first + _BATCH], strict=True
            )
        ]
        for start in range(0, accumulator.size, _TILE):
            tile = accumulator[start : start + _TILE]
            for stream, sign in batch:
                mask = draw_residues(stream, tile.size, modulus)
                tile += mask if sign > 0 else whole - mask
                np.minimum(tile, tile - whole, out=tile)  # tile - whole wraps where tile < whole
