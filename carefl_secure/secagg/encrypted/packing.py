"""Signed integers in the numbers of a ciphertext, masks on such numbers, and how much room a plan's sums need."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError
from carefl_secure.noise import KeyStream
from carefl_secure.secagg.encoding.quantize import NORM_SLACK, EncodingPlan
from carefl_secure.secagg.primitives.crypto import refuse

FIELD_BITS = (20, 30)
"""Widths of a field: three of 20 bits or two of 30 bits in a number of 60 bits."""

_WIDTH = 60
_TILE = 1 << 15
_BATCH = 256

WORD_BITS = 32
"""Size of the words of every encrypted sum; shorter ones are widened, so that all of them fit."""

_SHORT = 16
_SHORTEST = 1 << _SHORT - 1  # magnitude of the lowest word of 16 bits

_EXCESS = 2.0**-100
_STEPS = np.geomspace(1e-9, 30.0, 4000)


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


@dataclass(frozen=True)
class Room:
    """Fields of 20 or 30 bits, and the ``value_bound`` that no client exceeds and ``clients`` times fits one."""

    field_bits: int
    value_bound: int


def excess_probability(plan: EncodingPlan, bound: int) -> float:
    """Bound the probability that any client's integer in a round is larger than ``bound`` (R).

    Rotated plans: a coordinate of one client is a part that is sub-Gaussian over the rotation, of variance proxy ``a =
    (scale L)^2 / d + 1/4`` for vectors of norm L in d coordinates (rounding gives the quarter), and Skellam noise of
    variance m. By Chernoff, for any ``t > 0``, ``P(|x| > R) <= 2 exp(a t^2 / 2 + m (cosh t - 1) - t R)``; times d and
    the number of clients. Plans without noise: 0 or 1, by a hard bound. Words of 16 bits: 0 from ``2**15`` on.

    It holds for every vector that does not depend on the rotation, a hash over the round's adapter.
    """
    if plan.bits == _SHORT and bound >= _SHORTEST:
        return 0.0
    longest = plan.scale * plan.vector_bound * (1 + NORM_SLACK)
    if not plan.rotated:
        return float(longest + 1 > bound)
    proxy = plan.step**2 * (longest**2 / plan.padded + 0.25)
    growth = plan.round_variance() * 2 * np.sinh(_STEPS / 2) ** 2
    exponent = float(np.min(proxy * _STEPS**2 / 2 + growth - _STEPS * bound))
    return min(1.0, 2 * plan.padded * plan.clients * math.exp(min(0.0, exponent)))


@functools.lru_cache(maxsize=64)
def choose_fields(plan: EncodingPlan) -> Room:
    """Choose the narrowest field that holds every sum of a plan.

    A client cuts its integers to ``value_bound``, so no sum can overflow. A field is wide enough only if a cut has a
    probability of at most ``2**-100`` in a round. Raises ConfigError when not even 30 bits are enough.
    """
    for field_bits in FIELD_BITS:
        most = _SHORTEST if plan.bits == _SHORT else (1 << WORD_BITS - 1) - 1
        bound = min(field_limit(field_bits) // plan.clients, most)
        if bound >= 1 and excess_probability(plan, bound) <= _EXCESS:
            return Room(field_bits, bound)
    raise ConfigError(
        f"the sums of {plan.clients} clients fit no field of {FIELD_BITS[-1]} bits, so they cannot be encrypted; "
        "lower privacy.sample_rate or the number of clients, or set federation.aggregation to pairwise or committee"
    )


def widen(words: NDArray[Any]) -> NDArray[np.uint32]:
    """Return the same signed integers as words of 32 bits."""
    return words.view(f"i{words.dtype.itemsize}").astype(np.int32).view(np.uint32)


def narrow(words: NDArray[Any], bits: int) -> NDArray[Any]:
    """Reduce a sum of widened words modulo ``2**bits`` again."""
    return words.astype(np.uint16 if bits == _SHORT else np.uint32)


def leave_room(plan: EncodingPlan) -> EncodingPlan:
    """Return a plan without noise with two bits less, which fits the widest field, so all protocols agree."""
    reach = field_limit(FIELD_BITS[-1]) // plan.clients - 2
    scale = reach / (plan.vector_bound * (1 + NORM_SLACK))
    return dataclasses.replace(plan, scale=min(plan.scale, scale))
