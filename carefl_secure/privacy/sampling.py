"""Poisson sampling of records from a key stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from carefl_secure.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carefl_secure.noise.keystream import KeyStream

__all__ = ["any_of", "poisson_sample"]

_WORDS = 2**64


def any_of(sample_rate: float, records: int) -> float:
    r"""Return the probability that at least one of some records is drawn, :math:`1 - (1 - q)^k`.

    For q in (0, 1] and k >= 1. Never below the true value; q itself for one record.
    """
    if records == 1:
        return sample_rate
    rate = -math.expm1(records * math.log1p(-min(sample_rate, 1.0 - 1e-16)))
    return min(1.0, rate * (1.0 + 1e-12))


def poisson_sample(records: int, sample_rate: float, stream: KeyStream) -> NDArray[np.int64]:
    """Draw each record on its own with probability ``sample_rate``, in (0, 1].

    Record ``i`` is taken where the ``i``-th 64-bit word of the stream lies below
    ``floor(sample_rate * 2**64)``. The stream must be secret and used for nothing else.

    Returns
    -------
    ndarray of int64, shape [sampled]
        The indices drawn, ascending. It may be empty, and then the step must still be made, with
        noise alone: leaving it out would reveal that nobody was drawn.

    Guarantees
    ----------
    The draws are independent, and the true probability of each is at most ``sample_rate`` and
    less than ``2**-64`` below it, so an account made for ``sample_rate`` covers them. This needs a
    stream that nobody else can predict, and that the size and content of the sample stay with the
    client.
    """
    if records < 0:
        raise ConfigError(f"records is {records}; it must be zero or more")
    if not 0.0 < sample_rate <= 1.0:
        raise ConfigError(f"sample_rate is {sample_rate}; choose it above 0 and at most 1")
    if records == 0:
        return np.empty(0, dtype=np.int64)
    threshold = int(sample_rate * _WORDS)  # exact: scaling a float by a power of two rounds nothing
    if threshold == _WORDS:
        return np.arange(records, dtype=np.int64)
    drawn = stream.words(records, np.uint64) < np.uint64(threshold)
    return np.flatnonzero(drawn).astype(np.int64)
