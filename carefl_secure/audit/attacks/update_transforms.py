"""The transformations of an update on its way: clipped, summed, masked, or under noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carefl_secure.noise import KeyStream, SystemKeySource, add_masks, gaussian
from carefl_secure.secagg import wrap

Array = npt.NDArray[np.float64]
_SCALE = float(1 << 24)  # integer units; fine enough that rounding hides nothing


def clipped(update: Array, norm: float) -> Array:
    """Scale an update to length ``norm``, as normalised clipping does."""
    return np.asarray(update * (norm / max(float(np.linalg.norm(update)), 1e-30)))


def noisy(update: Array, deviation: float) -> Array:
    """Add Gaussian noise of the system's entropy, of one deviation for every entry."""
    stream = KeyStream(SystemKeySource().key("noise"))
    return update + gaussian(stream, update.size, deviation).reshape(update.shape)


def masked(update: Array) -> Array:
    """Return the words that leave a client: integers under one mask of the secure sum."""
    words = wrap(np.rint(update.ravel() * _SCALE).astype(np.int64), 32)
    add_masks(words, [SystemKeySource().key("mask")], [1])
    return words.view(np.int32).astype(np.float64).reshape(update.shape)
