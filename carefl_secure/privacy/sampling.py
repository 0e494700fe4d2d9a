"""Poisson sampling of records from a key stream, and the longest sample that is used."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import bdtrc

from carefl_secure.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carefl_secure.noise.keystream import KeyStream

OVERFLOW = 2.0**-40
"""Most probability, for a client and a sum, that a sample is longer than its bound."""

_WORDS = 2**64


def any_of(sample_rate: float, records: int) -> float:
    """Return the probability, never below the true one, that any of k >= 1 records is drawn: :math:`1 - (1 - q)^k`."""
    if records == 1:
        return sample_rate
    rate = -math.expm1(records * math.log1p(-min(sample_rate, 1.0 - 1e-16)))
    return min(1.0, rate * (1.0 + 1e-12))


@functools.lru_cache(maxsize=64)
def sample_bound(records: int, sample_rate: float, most_each: int = 1) -> int:
    r"""Return how many records of a Poisson sample are used; those beyond are left out.

    The smallest :math:`B` with :math:`P[\mathrm{Bin}(m - 1, q) \ge B] \le 2^{-40}`, an exact tail,
    where m is ``records`` rounded up to four binary digits. Work that is padded to B takes the same
    time for every sample, and tells the number of records to one part in eight at most. Where one
    unit may hold several records, ``most_each``, the bound is larger by all but one of them.

    Guarantees
    ----------
    A sum over a truncated Poisson sample is as private as over the whole one, but for a probability of `OVERFLOW`, to
    be added to delta: given the draws of all other units, one unit more or less changes nothing but its own terms
    unless they fill the bound, and that has at most this probability, whatever the number of records up to m
    (hockey-stick divergences are jointly convex).
    """
    step = 1 << max(0, records.bit_length() - 4)
    most = -(-records // step) * step
    if most == 0:
        return 0
    tails = bdtrc(np.arange(most), most - 1, sample_rate)  # tails[k] = P[more than k others]
    tails[-1] = 0.0  # there are no more
    return min(most, int(np.argmax(tails <= OVERFLOW)) + most_each)


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
    The draws are independent, and the true probability of each is at most ``sample_rate`` and less than ``2**-64``
    below it, so an account made for ``sample_rate`` covers them. This needs a stream that nobody else can predict, and
    that the size and content of the sample stay with the client.
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
    return np.flatnonzero(stream.words(records, np.uint64) < np.uint64(threshold)).astype(np.int64)
