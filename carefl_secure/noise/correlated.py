"""Noise that later rounds take back: the integer recursion of a banded Toeplitz factorisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


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
