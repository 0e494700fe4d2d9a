"""Several signed integers in one number, and masks on such numbers modulo a prime.

Adding the numbers adds all integers in them, so sums can travel inside ciphertexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError
from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.crypto import refuse

FIELD_BITS = (20, 30)
"""Widths of a field: three of 20 bits or two of 30 bits in a number of 60 bits."""

_WIDTH = 60
_TILE = 1 << 15
_BATCH = 256


def _fields(field_bits: int) -> int:
    if field_bits not in FIELD_BITS:
        raise ConfigError(f"a field has 20 or 30 bits, not {field_bits}")
    return _WIDTH // field_bits


def field_limit(field_bits: int) -> int:
    """Return the largest sum in a field, ``2**(field_bits - 1) - 2``: numbers stay below half of ``2**60``."""
    _fields(field_bits)
    return (1 << field_bits - 1) - 2


def check_fields(value_bound: int, field_bits: int, clients: int, bits: int) -> None:
    """Refuse a bound on one client's integers under which a sum could leave its field."""
    most = min(field_limit(field_bits) // clients, (1 << bits - 1) - 1)
    if not 1 <= value_bound <= most:
        raise ConfigError(
            f"value_bound for {clients} clients, {bits}-bit words and {field_bits}-bit fields must lie in 1 .. "
            f"{most}, not {value_bound}: the sum could overflow; use field_bits=30 or fewer clients"
        )


def slots(dimension: int, field_bits: int) -> int:
    """Return how many numbers hold ``dimension`` integers."""
    return -(-dimension // _fields(field_bits))


def pack_fields(integers: npt.NDArray[np.int64], field_bits: int) -> npt.NDArray[np.int64]:
    """Return ``number_s = sum_j 2**(field_bits * j) * integer_{j S + s}``, signed, for ``S`` numbers in all."""
    count = slots(integers.size, field_bits)
    limit = field_limit(field_bits)
    if integers.size and not -limit <= integers.min() <= integers.max() <= limit:
        raise refuse("field overflow", f"an integer does not fit a field of {field_bits} bits")
    box = np.zeros(_fields(field_bits) * count, np.int64)
    box[: integers.size] = integers
    rows: npt.NDArray[Any] = box.reshape(-1, count)
    packed: npt.NDArray[np.int64] = rows[-1].copy()
    for row in rows[-2::-1]:
        packed <<= field_bits
        packed += row
    return packed


def unpack_fields(numbers: npt.NDArray[np.int64], dimension: int, field_bits: int) -> npt.NDArray[np.int64]:
    """Undo :func:`pack_fields` on a sum of packed numbers; refuse one that left its range."""
    half = 1 << field_bits - 1
    rows = np.empty((_fields(field_bits), numbers.size), np.int64)
    rest = numbers.copy()
    for row in rows:
        np.add(rest, half, out=row)
        row &= (1 << field_bits) - 1
        row -= half
        rest -= row
        rest >>= field_bits
    if rest.any():
        raise refuse("field overflow", "the opened sum does not fit its fields; it is no sum")
    return rows.reshape(-1)[:dimension]


def to_residues(signed: npt.NDArray[np.int64], modulus: int) -> npt.NDArray[np.uint64]:
    """Return signed numbers of magnitude below ``modulus / 2`` as residues."""
    return (signed + (signed >> 63 & modulus)).view(np.uint64)


def from_residues(residues: npt.NDArray[np.uint64], modulus: int) -> npt.NDArray[np.int64]:
    """Return residues as signed numbers of magnitude below ``modulus / 2``."""
    signed = residues.astype(np.int64)
    signed[signed > modulus // 2] -= modulus
    return signed


def draw_residues(stream: KeyStream, count: int, modulus: int) -> npt.NDArray[np.uint64]:
    """Draw exactly uniform residues: the upper 60 bits of each word of 64, without those >= ``modulus``."""
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
            for key, sign in zip(keys[first : first + _BATCH], signs[first : first + _BATCH], strict=True)
        ]
        for start in range(0, accumulator.size, _TILE):
            tile = accumulator[start : start + _TILE]
            for stream, sign in batch:
                mask = draw_residues(stream, tile.size, modulus)
                tile += mask if sign > 0 else whole - mask
                np.minimum(tile, tile - whole, out=tile)  # tile - whole wraps where tile < whole
