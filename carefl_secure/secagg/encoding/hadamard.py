"""The random rotation: signs from a key, then a fast Hadamard transform by BLAS."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError
from carefl_secure.noise import KeyStream

_FACTOR_BITS = 7  # factors of at most 128: small enough to stay in the cache, large for BLAS
_LARGEST_ORDER = 256  # of Paley's matrices; steps between lengths are then at most 1/15

Vector = npt.NDArray[np.float64]


@functools.cache
def _paley_primes() -> dict[int, int]:
    """Return the least prime q of Paley's constructions by the order of the matrix."""
    orders: dict[int, int] = {}
    for q in range(3, _LARGEST_ORDER, 2):
        if all(q % i for i in range(3, math.isqrt(q) + 1, 2)):
            orders.setdefault(q + 1 if q % 4 == 3 else 2 * (q + 1), q)
    return {order: q for order, q in orders.items() if order <= _LARGEST_ORDER}


@functools.lru_cache(maxsize=64)
def padded_length(dimension: int) -> int:
    """Return the least length from ``dimension`` on that has a Hadamard matrix here; above 128 at most 1/15 more."""
    # The least 2^k for which order 2^k reaches the dimension.
    return min(order << (-(-dimension // order) - 1).bit_length() for order in (1, *_paley_primes()))


def _paley(order: int) -> Vector:
    """Return Paley's Hadamard matrix of an order, entries 1 and -1 (J. Math. Phys. 12, 1933)."""
    q = _paley_primes()[order]
    squares = {i * i % q for i in range(1, q)}
    symbol = np.array([0] + [1 if i in squares else -1 for i in range(1, q)])
    core = np.zeros((q + 1, q + 1))
    core[1:, 1:] = symbol[np.subtract.outer(np.arange(q), np.arange(q)) % q]
    core[0, 1:] = 1
    core[1:, 0] = 1 if q % 4 == 1 else -1
    if q % 4 == 3:
        return core + np.eye(q + 1)
    return np.kron(core, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1), [[1, -1], [-1, -1]])


@functools.lru_cache(maxsize=16)
def _matrix(size: int) -> Vector:
    """Return an orthonormal Hadamard matrix: Paley's, or Sylvester's for a power of two."""
    matrix = np.ones((1, 1)) if size & (size - 1) == 0 else _paley(size)
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= math.sqrt(size)
    matrix.setflags(write=False)
    return matrix


def _factors(size: int) -> list[int]:
    """Split a length into the orders of its matrices: Paley's, least possible, then powers of two."""
    order = next((o for o in (1, *sorted(_paley_primes())) if size % o == 0 and size // o & (size // o - 1) == 0), 0)
    if not order:
        raise ConfigError(f"no Hadamard matrix of order {size} is made here; see padded_length")
    bits = (size // order).bit_length() - 1
    pieces = max(1, math.ceil(bits / _FACTOR_BITS))
    powers = [1 << (bits // pieces + (piece < bits % pieces)) for piece in range(pieces)]
    return powers if order == 1 else [order, *powers]


def hadamard(vector: Vector, *, transposed: bool = False) -> Vector:
    """Apply an orthonormal Hadamard matrix, or its transpose, which is its inverse.

    ``H_{ab} = H_a x H_b`` (Kronecker), so the vector (float64, shape ``[d]`` with d a padded
    length; not changed) is read as a box and each axis is multiplied by a small matrix: ``d (f_1 +
    ... + f_r)`` multiplications for ``d = f_1 ... f_r``, done by BLAS.
    """
    size = vector.size
    if vector.ndim != 1 or size == 0:
        raise ConfigError(f"the transform takes a flat vector, not one of shape {vector.shape}")
    left, current = 1, vector
    for factor in _factors(size):
        right = size // (left * factor)
        matrix = _matrix(factor).T if transposed else _matrix(factor)
        if right == 1:
            current = current.reshape(left, factor) @ matrix.T
        else:
            current = np.matmul(matrix, current.reshape(left, factor, right))
        left *= factor
    return current.reshape(size)


def _signs(key: bytes, length: int) -> npt.NDArray[np.int8]:
    raw = np.frombuffer(KeyStream(key).take((length + 7) // 8), np.uint8)
    bits = np.unpackbits(raw, count=length, bitorder="little").view(np.int8)
    signs: npt.NDArray[np.int8] = np.int8(1) - np.int8(2) * bits
    return signs


def rotate(vector: Vector, padded: int, key: bytes) -> Vector:
    """Pad with zeros, flip signs by the key stream of ``key``, apply :func:`hadamard`.

    Keeps the Euclidean norm. All entries of the matrix are ``1 / sqrt(padded)`` in magnitude, so over a uniform key
    each coordinate of the result is sub-Gaussian with variance proxy ``|vector|^2 / padded``, whatever the vector.
    """
    box = np.zeros(padded)
    np.multiply(vector, _signs(key, padded)[: vector.size], out=box[: vector.size])
    return hadamard(box)


def rotate_back(rotated: Vector, dimension: int, key: bytes) -> Vector:
    """Undo :func:`rotate` and return the first ``dimension`` coordinates."""
    flat = hadamard(rotated, transposed=True)[:dimension]
    return flat * _signs(key, rotated.size)[:dimension]
