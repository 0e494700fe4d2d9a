"""Uniform numbers from a key stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carefl_secure.noise.keystream import KeyStream


def uniform(stream: KeyStream, count: int) -> npt.NDArray[np.float64]:
    """Draw ``count`` uniform numbers in ``[0, 1)`` as float64.

    Each is ``floor(w / 2**11) * 2**-53`` for one 64-bit word ``w`` of the stream: all 53 bits of a
    double are random, and 1 is never reached.
    """
    words = stream.words(count, np.uint64)
    words >>= np.uint64(11)
    return words.astype(np.float64) * 2.0**-53
