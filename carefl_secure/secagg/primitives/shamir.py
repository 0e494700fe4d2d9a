"""Shamir's secret sharing over the prime field of ``2**256 + 297`` elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.checks import refuse

__all__ = ["PRIME", "SHARE_BYTES", "combine", "read_element", "split", "weights"]

PRIME = (1 << 256) + 297
"""The smallest prime above ``2**256``, so that any 32 bytes are a secret."""

SHARE_BYTES = 33
"""Length of one share, little-endian."""

_COEFFICIENT_BYTES = 48  # reduced modulo the prime; off uniform by less than 2**-127


def split(secret: int, threshold: int, points: Sequence[int], stream: KeyStream) -> list[int]:
    """Share a secret in ``0 .. PRIME - 1`` so that ``threshold`` (``t``) shares rebuild it.

    Draws ``f(x) = secret + a_1 x + ... + a_{t-1} x^{t-1}`` with uniform coefficients from the
    stream and returns ``f(x)`` for each point; points are distinct, in ``1 .. PRIME - 1``, at least
    ``t``.

    Guarantees
    ----------
    Any ``t - 1`` shares are within ``2**-127 * t`` of uniform and independent of the secret, if the
    stream is uniform.
    """
    if not 0 <= secret < PRIME:
        raise refuse("secret range", "the secret is not an element of the field")
    if not 1 <= threshold <= len(points):
        raise refuse("share threshold", f"{len(points)} points cannot hold {threshold} shares")
    _check_points(points)
    raw = stream.take(_COEFFICIENT_BYTES * (threshold - 1))
    coefficients = [
        int.from_bytes(raw[start : start + _COEFFICIENT_BYTES], "little") % PRIME
        for start in range(0, len(raw), _COEFFICIENT_BYTES)
    ]
    shares = []
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares.append((value + secret) % PRIME)
    return shares


def weights(points: Sequence[int]) -> list[int]:
    """Return the Lagrange weights at zero, ``prod_{j != i} x_j / (x_j - x_i)``, per point.

    They serve every secret rebuilt from these points; one modular inversion (Montgomery's trick).
    """
    _check_points(points)
    numerators, denominators = [], []
    for own in points:
        others = [other for other in points if other != own]
        numerators.append(math.prod(others) % PRIME)
        denominators.append(math.prod(other - own for other in others) % PRIME)
    products = [1]
    for denominator in denominators:
        products.append(products[-1] * denominator % PRIME)
    inverse = pow(products[-1], -1, PRIME)
    result = [0] * len(points)
    for place in reversed(range(len(points))):
        result[place] = numerators[place] * inverse * products[place] % PRIME
        inverse = inverse * denominators[place] % PRIME
    return result


def combine(weight: Iterable[int], shares: Iterable[int]) -> int:
    """Rebuild a secret: ``sum_i w_i f(x_i)`` modulo the prime."""
    return sum(w * share for w, share in zip(weight, shares, strict=True)) % PRIME


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or any(not 0 < point < PRIME for point in points):
        raise refuse("share points", "points must be distinct and lie between 1 and the prime")


def read_element(raw: bytes) -> int:
    """Read one share: 33 bytes, little-endian, below the prime of the field."""
    value = int.from_bytes(raw, "little")
    if value >= PRIME:
        raise refuse("share range", "a share is not an element of the field")
    return value
