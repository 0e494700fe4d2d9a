"""The error of running sums where clients miss rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from carefl_secure.privacy.banded import norm


def exact_error(correlation: Sequence[float], attended: NDArray[np.bool_], momentum: float = 0.0) -> float:
    """Return `running_error` where clients miss rounds: ``attended`` has shape [clients, rounds].

    A sum of s of n clients counts n / s times, as in the mean gradient; no round may have lost all of them.
    """
    clients, rounds = attended.shape
    sums = np.cumsum(lfilter([1.0], [1.0, -momentum], np.eye(rounds), axis=0), axis=0)
    sums *= clients / attended.sum(axis=0)
    ratios, square = np.asarray(correlation, np.float64) / correlation[0], 0.0
    for rounds_of in attended:
        noise, before = np.zeros((rounds, rounds)), list[int]()
        for number in map(int, np.flatnonzero(rounds_of)):
            before = [earlier for earlier in before if number - earlier < len(ratios)]
            noise[number] = -sum(ratios[lag] * noise[earlier] for lag, earlier in enumerate(reversed(before), 1))
            noise[number, number] += 1.0
            before.append(number)
        square += float(np.sum((sums @ noise) ** 2))
    return math.sqrt(square / clients / rounds) * norm(correlation)
