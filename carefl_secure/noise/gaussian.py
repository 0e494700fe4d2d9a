"""Gaussian noise that an adversary can neither guess nor read off its last bits."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import PrivacyError
from carefl_secure.noise.keystream import KeyStream

_PARTS = 4


def uniform(stream: KeyStream, count: int) -> npt.NDArray[np.float64]:
    """Draw ``count`` uniform numbers in ``[0, 1)`` as float64.

    Each is ``floor(w / 2**11) * 2**-53`` for one 64-bit word ``w`` of the stream: all 53 bits of a
    double are random, and 1 is never reached.
    """
    words = stream.words(count, np.uint64)
    words >>= np.uint64(11)
    return words.astype(np.float64) * 2.0**-53


def _box_muller(stream: KeyStream, count: int) -> npt.NDArray[np.float64]:
    half = (count + 1) // 2
    radius = np.sqrt(-2.0 * np.log1p(-uniform(stream, half)))  # 1 - u lies in (0, 1]
    angle = (2.0 * math.pi) * uniform(stream, half)
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]


def gaussian(stream: KeyStream, count: int, stdev: float) -> npt.NDArray[np.float64]:
    """Draw ``count`` normal numbers of mean 0 as float64; add them to the signal before any cast.

    ``x = stdev * (g1 + g2 + g3 + g4) / 2`` with four independent standard normals, each by the Box-Muller transform of
    53-bit uniforms, all in double precision. A ``stdev`` that is not positive and finite raises PrivacyError.

    Guarantees
    ----------
    Summing four draws before rounding multiplies the number of ways in which one output can arise. This stops the
    attack that reads the signal from the gaps between the reachable doubles (Mironov 2012; Holohan and Braghin 2021,
    arXiv:2107.10138). The result is still a double, not an exact normal: each draw ends at 8.6 standard deviations, so
    the sum of four halves at about 17. Where the exact law matters, sum integers with Skellam noise.
    """
    if not (math.isfinite(stdev) and stdev > 0):
        raise PrivacyError(
            f"Gaussian noise needs a positive finite standard deviation, not {stdev};"
            " to run without noise set privacy.unit to none"
        )
    total = _box_muller(stream, count)
    for _ in range(_PARTS - 1):
        total += _box_muller(stream, count)
    total *= stdev / math.sqrt(_PARTS)
    return total
