"""The key-additive cipher over vectors: encrypt, add, open with the sum of the keys. EXPERIMENTAL.

Integer ``(b F + j) N + k`` of a vector is field ``j`` of coefficient ``k`` of block ``b``, with
``F`` fields to a coefficient; what is missing at the end is zero. A coefficient of a ciphertext has
104 bits, which travel as three planes: the upper 64 bits of all coefficients of all blocks, then
the next 32, then the last 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.key_additive.parameters import AdditiveParameters
from carefl_secure.secagg.key_additive.ring import (
    CLIENT_NOISE,
    DROPPED_BITS,
    LIMB_BITS,
    LIMBS,
    RING_DEGREE,
    SCALE_BITS,
    carry,
    draw_small,
    public_blocks,
    times,
)
from carefl_secure.secagg.primitives.checks import refuse

__all__ = ["CIPHER_BYTES", "CipherSum", "Ciphertext", "encrypt", "open_sum"]

CIPHER_BYTES = 13
"""Bytes of one coefficient of a ciphertext."""

_TILE = 4  # blocks at a time: their limbs fit the cache
_LOW = np.uint64(8)  # bits of the last plane
_MIDDLE = 40  # bits of the last two planes
_KEPT = LIMB_BITS - DROPPED_BITS  # of the lowest limb

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ciphertext:
    """One client's ciphertext, as three planes of ``blocks * RING_DEGREE`` words."""

    high: npt.NDArray[np.uint64]
    middle: npt.NDArray[np.uint32]
    low: npt.NDArray[np.uint8]

    def encode(self) -> bytes:
        """Return the planes one after another, little-endian."""
        return b"".join(
            plane.astype(plane.dtype.newbyteorder("<"), copy=False).tobytes()
            for plane in (self.high, self.middle, self.low)
        )

    @classmethod
    def decode(cls, raw: memoryview) -> Ciphertext:
        """Read what :meth:`encode` gave, without a copy; the length must have been checked."""
        count = len(raw) // CIPHER_BYTES
        return cls(
            np.frombuffer(raw, "<u8", count),
            np.frombuffer(raw, "<u4", count, 8 * count),
            np.frombuffer(raw, "<u1", count, 12 * count),
        )


class CipherSum:
    """A running sum of ciphertexts, modulo ``2**104``.

    Parameters
    ----------
    blocks
        Ring elements per vector.
    """

    def __init__(self, blocks: int) -> None:
        self._high = np.zeros(blocks * RING_DEGREE, np.uint64)
        self._rest = np.zeros(blocks * RING_DEGREE, np.uint64)

    def add(self, part: Ciphertext) -> None:
        """Add one ciphertext, in place; room for 2**24 of them."""
        self._high += part.high
        self._rest += (part.middle.astype(np.uint64) << _LOW) + part.low

    def limbs(self, block: int) -> Integers:
        """Return the limbs of 16 times the sum for one block, shape ``[1, LIMBS, RING_DEGREE]``."""
        place = slice(block * RING_DEGREE, (block + 1) * RING_DEGREE)
        rest = self._rest[place]
        high = self._high[place] + (rest >> np.uint64(_MIDDLE))
        rest = rest & np.uint64((1 << _MIDDLE) - 1)
        mask = np.uint64((1 << LIMB_BITS) - 1)
        split = _MIDDLE - _KEPT  # bits of limb 1 that stand in the last two planes
        over = LIMB_BITS - split  # bits of limb 1 that stand in the first plane
        found = np.empty((1, LIMBS, RING_DEGREE), np.int64)
        found[0, 0] = (rest << np.uint64(DROPPED_BITS)) & mask
        found[0, 1] = (rest >> np.uint64(_KEPT)) | ((high << np.uint64(split)) & mask)
        found[0, 2] = (high >> np.uint64(over)) & mask
        found[0, 3] = high >> np.uint64(over + LIMB_BITS)
        return found


def _tiles(blocks: int) -> Iterator[range]:
    for start in range(0, blocks, _TILE):
        yield range(start, min(blocks, start + _TILE))


def _places(parameters: AdditiveParameters) -> list[tuple[int, int]]:
    """Return limb and shift of every field."""
    return [
        divmod(SCALE_BITS + parameters.field_bits * field, LIMB_BITS)
        for field in range(parameters.fields)
    ]


def encrypt(
    integers: Integers,
    secret: Integers,
    noise: KeyStream,
    parameters: AdditiveParameters,
    beacon: bytes,
) -> Ciphertext:
    """Encrypt one vector under a client's own secret.

    Parameters
    ----------
    integers
        Shape ``[dimension]``, magnitudes within ``value_bound``.
    secret
        Shape ``[RING_DEGREE]``, from ``draw_small``; for this vector only.
    noise
        A fresh secret stream, for the errors.
    parameters, beacon
        Of the round.
    """
    blocks, fields = parameters.blocks, parameters.fields
    box = np.zeros(blocks * fields * RING_DEGREE, np.int64)
    box[: integers.size] = integers
    rows = box.reshape(blocks, fields, RING_DEGREE)
    high = np.empty((blocks, RING_DEGREE), np.uint64)
    middle = np.empty((blocks, RING_DEGREE), np.uint32)
    low = np.empty((blocks, RING_DEGREE), np.uint8)
    context = parameters.context()
    for tile in _tiles(blocks):
        here = slice(tile.start, tile.stop)
        limbs = times(public_blocks(context, beacon, tile), secret)
        limbs[:, 0] += draw_small(noise, len(tile))
        limbs[:, 0] += 1 << DROPPED_BITS - 1
        for field, (limb, shift) in enumerate(_places(parameters)):
            limbs[:, limb] += rows[here, field] << shift
        carry(limbs)
        words: Any = limbs.view(np.uint64)
        split = np.uint64(_MIDDLE - _KEPT)
        over = np.uint64(LIMB_BITS) - split
        rest = (words[:, 0] >> np.uint64(DROPPED_BITS)) | (words[:, 1] << np.uint64(_KEPT))
        low[here] = rest & np.uint64(255)
        middle[here] = (rest >> _LOW) & np.uint64(0xFFFFFFFF)
        high[here] = words[:, 1] >> split
        high[here] |= words[:, 2] << over
        high[here] |= words[:, 3] << (over + np.uint64(LIMB_BITS))
    return Ciphertext(high.reshape(-1), middle.reshape(-1), low.reshape(-1))


def open_sum(
    total: CipherSum,
    key_sum: Integers,
    survivors: int,
    parameters: AdditiveParameters,
    beacon: bytes,
) -> Integers:
    """Open a sum of ciphertexts with the sum of exactly their keys.

    Parameters
    ----------
    total
        Sum over ``survivors`` clients.
    key_sum
        Shape ``[RING_DEGREE]``.
    survivors
        How many ciphertexts and keys were added.
    parameters, beacon
        Of the round.

    Returns
    -------
    numpy.ndarray
        int64, shape ``[dimension]``.

    Raises
    ------
    ProtocolError
        ``noise`` if the ciphertexts and the keys are not of the same clients in the same round:
        what is left is then uniform, and lies below the bound of ``50 * survivors`` in all 4096
        coefficients with a probability below ``2**-40000``. ``field overflow`` if the sum is
        larger than so many clients may make it.
    """
    opened = np.empty((parameters.blocks, parameters.fields, RING_DEGREE), np.int64)
    context, width = parameters.context(), parameters.field_bits
    places = _places(parameters)
    limit = CLIENT_NOISE * survivors
    for block in range(parameters.blocks):
        limbs = total.limbs(block)
        limbs -= times(public_blocks(context, beacon, [block]), key_sum)
        limbs[:, 0] += 1 << SCALE_BITS - 1
        for limb, shift in places:
            limbs[:, limb] += 1 << width - 1 + shift
        carry(limbs)
        error = _bits(limbs[0], 0, SCALE_BITS) - (1 << SCALE_BITS - 1)
        if max(error.max(), -error.min()) > limit:
            raise refuse(
                "noise",
                "the sum of the keys does not open the sum of the ciphertexts; they are not of the"
                " same clients, or a client sent something else than its ciphertext",
            )
        for field in range(parameters.fields):
            bits = _bits(limbs[0], SCALE_BITS + width * field, width)
            opened[block, field] = bits - (1 << width - 1)
        used = SCALE_BITS + width * parameters.fields
        if used < LIMBS * LIMB_BITS and _bits(limbs[0], used, LIMBS * LIMB_BITS - used).any():
            raise refuse("field overflow", "the opened sum does not fit its fields; it is no sum")
    flat = opened.reshape(-1)
    most = survivors * parameters.value_bound
    if max(flat.max(), -flat.min()) > most or flat[parameters.dimension :].any():
        raise refuse("field overflow", "the opened sum is larger than so many clients can make it")
    return flat[: parameters.dimension]


def _bits(limbs: Integers, start: int, width: int) -> Integers:
    """Return bits ``start .. start + width - 1`` of carried limbs, at most 54 of them."""
    first, shift = divmod(start, LIMB_BITS)
    found: Integers = limbs[first] >> shift
    reached = LIMB_BITS - shift
    for limb in limbs[first + 1 :]:
        if reached >= width:
            break
        found |= limb << reached
        reached += LIMB_BITS
    found &= (1 << width) - 1
    return found
