"""Integer noise with the Skellam law, by inverting a 127-bit table of its distribution.

The Skellam law of variance ``v`` is the difference of two independent Poisson variables of mean ``v
/ 2``: ``P(X = k) = exp(-v) I_|k|(v)``. Sums of independent Skellam variables are Skellam, so the
noise in a sum over any set of clients has a known exact law.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import PrivacyError
from carefl_secure.noise.keystream import KeyStream

_BITS = 127  # of the table; one more bit of the stream is the sign
_REACH = 14.0  # standard deviations in the table; the mass beyond is below 2**-136
_SMALLEST = 1e-3
_LARGEST_PART = 2.0**32  # variance of one table: 920 000 entries
_CHUNK = 1 << 16


class _Table:
    """Distribution of ``|X|``: entry ``m`` is ``floor(2**127 * P(|X| <= m))`` as two words.

    For the leading bits of the first word, ``first`` is the first entry that can match and
    ``crowded`` says whether entries share those bits, so that the entry must be searched for.
    """

    def __init__(self, variance: float) -> None:
        entries = _cumulative(variance)
        packed = b"".join(value.to_bytes(16, "little") for value in entries)
        words = np.frombuffer(packed, "<u8").astype(np.uint64).reshape(-1, 2)
        self.low = words[:, 0].copy()
        self.high = words[:, 1].copy()  # 63 bits
        guide_bits = min(20, max(12, len(entries).bit_length() + 4))
        self.shift = np.uint64(63 - guide_bits)
        counts = np.bincount((self.high >> self.shift).astype(np.intp), minlength=1 << guide_bits)
        self.crowded = counts > 0
        self.first = (np.cumsum(counts) - counts).astype(np.int32)

    def magnitudes(self, words: npt.NDArray[np.uint64], stream: KeyStream) -> npt.NDArray[np.int32]:
        """Invert the table at 63-bit words; the stream is asked only where a word ties."""
        prefixes = (words >> self.shift).astype(np.intp)
        found: npt.NDArray[np.int32] = self.first[prefixes]
        places = np.flatnonzero(self.crowded[prefixes])
        sought = words[places]
        after = np.searchsorted(self.high, sought, "right")
        found[places] = after
        before = np.searchsorted(self.high, sought, "left")
        for tie in np.flatnonzero(before != after):
            second = stream.words(1, np.uint64)[0]
            tied = self.low[before[tie] : after[tie]]
            found[places[tie]] = before[tie] + int(np.count_nonzero(tied <= second))
        return found


def _cumulative(variance: float) -> list[int]:
    """Return ``floor(2**127 * P(|X| <= m))`` for ``m = 0, 1, ...`` up to the reach of the table.

    The recurrence ``I_{k-1}(v) = I_{k+1}(v) + (2k / v) I_k(v)`` is run downwards (Miller), which is
    stable, in integers with some 190 significant bits.
    """
    numerator, denominator = variance.as_integer_ratio()
    top = int(_REACH * math.sqrt(variance)) + 60
    point = 192 + max(0, math.ceil(math.log2(variance)))
    ratio = ((2 * denominator) << point) // numerator  # 2 / v in fixed point
    above, here, factor = 0, 1 << 96, ratio * top
    weights = [here]
    for _ in range(top):
        above, here = here, above + ((factor * here) >> point)
        factor -= ratio
        weights.append(here)
    weights.reverse()
    centre = weights[0]
    total = 2 * sum(weights) - centre
    doubled = itertools.accumulate(weights)  # sum of I_0 .. I_m
    return [((2 * value - centre) << _BITS) // total for value in itertools.islice(doubled, top)]


_table = functools.lru_cache(maxsize=8)(_Table)


class SkellamSampler:
    """Draws independent Skellam integers of one variance, at least 0.001 and finite.

    Each sample takes one 64-bit word of the stream: the lowest bit is the sign, the other 63 pick
    the magnitude from the table, and 64 more bits decide a tie with an entry. A variance too large
    for one table is shared equally between ``parts`` draws that are added up. Tables are cached by
    variance. A variance out of range raises PrivacyError.

    Guarantees
    ----------
    Given a uniform stream, each sample lies within total variation distance ``2**-106 * parts`` of the exact Skellam
    law (a table has fewer than ``2**20`` entries, each rounded by at most ``2**-127``, and the mass outside is below
    ``2**-127``). A million samples a round for a thousand rounds stay below ``2**-76 * parts``. The time a draw takes
    depends on the values drawn: someone who can time the sampler finely learns something about the noise.
    """

    def __init__(self, variance: float) -> None:
        if not (math.isfinite(variance) and variance >= _SMALLEST):
            raise PrivacyError(
                f"Skellam noise needs a finite variance of at least {_SMALLEST}, not {variance};"
                " check the noise multiplier and the scale of the encoding"
            )
        self.variance = float(variance)
        self.parts = max(1, math.ceil(self.variance / _LARGEST_PART))

    def _draw(self, table: _Table, stream: KeyStream, out: npt.NDArray[np.int64]) -> None:
        words: npt.NDArray[Any] = stream.words(out.size, np.uint64)
        negative = (words & np.uint64(1)).astype(np.int32)
        words >>= np.uint64(1)
        found = table.magnitudes(words, stream)
        out += (found ^ -negative) + negative  # two's complement negation where the bit is set

    def sample(self, stream: KeyStream, count: int) -> npt.NDArray[np.int64]:
        """Draw ``count`` int64 integers of mean 0; only the key and ``count`` determine them."""
        table = _table(self.variance / self.parts)
        drawn = np.zeros(count, np.int64)
        for start in range(0, count, _CHUNK):
            piece = drawn[start : start + _CHUNK]
            for _ in range(self.parts):
                self._draw(table, stream, piece)
        return drawn


def correlate(
    fresh: npt.NDArray[np.int64], past: Mapping[int, npt.NDArray[np.int64]], correlation: Sequence[int]
) -> npt.NDArray[np.int64]:
    r"""Return a round's noise, int64, from fresh noise and the noise of earlier rounds.

    With :math:`m` the ``correlation``, of b whole numbers, and :math:`w` fresh noise of the same shape,

    .. math:: n_t = w_t - \left\lfloor \tfrac12 + \tfrac1{m_0} \sum_{k=1}^{b-1} m_k\, n_{t-k} \right\rfloor .

    ``past`` holds :math:`n_{t-k}` by the lag k; a lag that is missing counts as zero.

    Guarantees
    ----------
    For a fixed past the map from ``fresh`` to the result is a bijection of the integers. If every :math:`n_{t-k}`
    is shifted by a multiple :math:`m_0 d_k` of :math:`m_0`, the result is shifted by exactly :math:`-\sum_k m_k d_k`:
    rounding adds nothing to the sensitivity. ``docs/accounting.md`` has what follows for privacy.
    """
    total = np.full_like(fresh, correlation[0] // 2)
    for lag, vector in past.items():
        total += correlation[lag] * vector
    return fresh - total // correlation[0]
