"""The random rotation: signs from a key, then a fast Hadamard transform by BLAS."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError
from carefl_secure.noise import KeyStream

_FACTOR_BITS = 7  # factors of at most 128: small enough to stay in the cache, large for BLAS

Vector = npt.NDArray[np.float64]


def padded_length(dimension: int) -> int:
    """Return the smallest power of two that is at least ``dimension``."""
    return 1 << (dimension - 1).bit_length()


@functools.lru_cache(maxsize=8)
def _matrix(size: int) -> Vector:
    matrix = np.ones((1, 1))
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= math.sqrt(size)
    matrix.setflags(write=False)
    return matrix


def hadamard(vector: Vector) -> Vector:
    """Apply the orthonormal Walsh-Hadamard matrix of order ``2**m`` (its own inverse).

    ``H_{ab} = H_a x H_b`` (Kronecker), so the vector (float64, shape ``[2**m]``; not changed) is
    read as a box and each axis is multiplied by a small matrix: ``d (f_1 + ... + f_r)``
    multiplications for ``d = f_1 ... f_r``, done by BLAS.
    """
    size = vector.size
    if vector.ndim != 1 or size == 0 or size & (size - 1):
        raise ConfigError(f"the transform takes a flat vector of length 2**m, not {vector.shape}")
    bits = size.bit_length() - 1
    pieces = max(1, math.ceil(bits / _FACTOR_BITS))
    left, current = 1, vector
    for piece in range(pieces):
        factor = 1 << (bits // pieces + (piece < bits % pieces))
        right = size // (left * factor)
        if right == 1:
            current = current.reshape(left, factor) @ _matrix(factor)
        else:
            current = np.matmul(_matrix(factor), current.reshape(left, factor, right))
        left *= factor
    return current.reshape(size)


def _signs(key: bytes, length: int) -> npt.NDArray[np.int8]:
    raw = np.frombuffer(KeyStream(key).take((length + 7) // 8), np.uint8)
    bits = np.unpackbits(raw, count=length, bitorder="little").view(np.int8)
    signs: npt.NDArray[np.int8] = np.int8(1) - np.int8(2) * bits
    return signs


def rotate(vector: Vector, padded: int, key: bytes) -> Vector:
    """Pad with zeros, flip signs by the key stream of ``key``, apply :func:`hadamard`.

    Keeps the Euclidean norm. Over a uniform key each coordinate of the result is sub-Gaussian with
    variance proxy ``|vector|^2 / padded``, whatever the vector.
    """
    box = np.zeros(padded)
    np.multiply(vector, _signs(key, padded)[: vector.size], out=box[: vector.size])
    return hadamard(box)


def rotate_back(rotated: Vector, dimension: int, key: bytes) -> Vector:
    """Undo :func:`rotate` and return the first ``dimension`` coordinates."""
    flat = hadamard(rotated)[:dimension]
    return flat * _signs(key, rotated.size)[:dimension]
