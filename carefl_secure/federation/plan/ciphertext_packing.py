"""How much room an encrypted sum needs: the field that no sum of a plan overflows."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError
from carefl_secure.secagg import EncodingPlan
from carefl_secure.secagg.encoding.quantize import NORM_SLACK
from carefl_secure.secagg.primitives.packing import FIELD_BITS, field_limit

WORD_BITS = 32
"""Size of the words of every encrypted sum; shorter ones are widened, so that all of them fit."""

_SHORT = 16
_SHORTEST = 1 << _SHORT - 1  # magnitude of the lowest word of 16 bits

_EXCESS = 2.0**-100
_STEPS = np.geomspace(1e-9, 30.0, 4000)


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
    proxy = longest**2 / plan.padded + 0.25
    growth = plan.share_variance() * 2 * np.sinh(_STEPS / 2) ** 2
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
    signed = words.view(f"i{words.dtype.itemsize}")
    return signed.astype(np.int32).view(np.uint32)


def narrow(words: NDArray[Any], bits: int) -> NDArray[Any]:
    """Reduce a sum of widened words modulo ``2**bits`` again."""
    return words.astype(np.uint16 if bits == _SHORT else np.uint32)


def leave_room(plan: EncodingPlan) -> EncodingPlan:
    """Return a plan without noise with two bits less, which fits the widest field, so all protocols agree."""
    reach = field_limit(FIELD_BITS[-1]) // plan.clients - 2
    scale = reach / (plan.vector_bound * (1 + NORM_SLACK))
    return dataclasses.replace(plan, scale=min(plan.scale, scale))
