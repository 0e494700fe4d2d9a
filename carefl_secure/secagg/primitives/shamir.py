"""Shamir's secret sharing over the prime field of ``2**256 + 297`` elements, with false shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.crypto import refuse

PRIME = (1 << 256) + 297
"""The smallest prime above ``2**256``, so that any 32 bytes are a secret."""

SHARE_BYTES = 33
"""Length of one share, little-endian."""

TRIES = 1000
"""How many sets of shares are tried where there are too few for a decoder."""

_COEFFICIENT_BYTES = 48  # reduced modulo the prime; off uniform by less than 2**-127


def split(secret: int, threshold: int, points: Sequence[int], stream: KeyStream) -> list[int]:
    """Share a secret in ``0 .. PRIME - 1`` so that ``threshold`` (``t``) shares rebuild it.

    Draws ``f(x) = secret + a_1 x + ... + a_{t-1} x^{t-1}`` with uniform coefficients from the stream and returns
    ``f(x)`` for each point; points are distinct, in ``1 .. PRIME - 1``, at least ``t``.

    Guarantees
    ----------
    Any ``t - 1`` shares are within ``2**-127 * t`` of uniform and independent of the secret, if the stream is uniform.
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
    """Return the Lagrange weights at zero, ``prod_{j != i} x_j / (x_j - x_i)``, with one modular inversion."""
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


def decode(
    points: Sequence[int], shares: Sequence[int], threshold: int, accept: Callable[[int], bool]
) -> tuple[int, tuple[int, ...]] | None:
    """Rebuild a secret although shares are false; return it with the places of those.

    ``accept`` tells the secret from another value, by what its owner committed to. None where no
    value is accepted. Where the first ``threshold`` shares are right the others are not looked at.

    Guarantees
    ----------
    Of ``m`` shares with ``s = m - threshold`` spare ones, it corrects any ``floor(s / 2)`` false
    ones (Reed-Solomon, by Gao's algorithm, 2003), and any ``e <= s`` as long as ``sum_{k <= e}
    C(threshold + k - 1, k) <= TRIES``, by leaving shares out: one false share with one spare
    always, two with two up to a threshold of 43. The work is bounded by that.
    """
    _check_points(points)
    for kept in _choices(points, shares, threshold):
        xs, ys = [points[i] for i in kept], [shares[i] for i in kept]
        secret = combine(weights(xs), ys)
        if accept(secret):
            first = kept == list(range(threshold))
            polynomial = [] if first else _interpolate(xs, ys)
            places = () if first else enumerate(zip(points, shares, strict=True))
            return secret, tuple(i for i, (x, y) in places if _value(polynomial, x) != y)
    return None


def decode_held(
    shares: Mapping[int, int],
    threshold: int,
    accept: Callable[[int], bool],
    false_shares: set[tuple[int, int]],
    owner: int,
) -> int | None:
    """Rebuild a secret as `decode` from shares by their givers, whose points are one above their index.

    Who gave a false share before comes last; who gives one now is added to ``false_shares``, with the ``owner``.
    """
    liars = {giver for giver, _ in false_shares}
    givers = sorted(shares, key=lambda giver: (giver in liars, giver))
    found = decode([giver + 1 for giver in givers], [shares[giver] for giver in givers], threshold, accept)
    if found is None:
        return None
    false_shares.update((givers[place], owner) for place in found[1])
    return found[0]


def _choices(points: Sequence[int], shares: Sequence[int], threshold: int) -> Iterator[list[int]]:
    """Yield sets of ``threshold`` places whose shares may all be right, the likeliest first."""
    yield list(range(threshold))
    spare = len(points) - threshold
    if spare > 1:
        polynomial = _gao(points, shares, threshold)
        near = [i for i, x in enumerate(points) if _value(polynomial, x) == shares[i]]
        if polynomial and len(near) >= threshold:
            yield near[:threshold]
    left_out = itertools.chain.from_iterable(
        itertools.combinations(range(threshold + size - 1), size) for size in range(1, spare + 1)
    )
    for out in itertools.islice(left_out, TRIES):
        yield [place for place in range(threshold + len(out)) if place not in out]


def _gao(points: Sequence[int], shares: Sequence[int], threshold: int) -> list[int]:
    """Return the polynomial within ``(m - threshold) // 2`` of the shares, or an empty one."""
    above, below = _master(points), _trim(_interpolate(points, shares))
    old, new = [0], [1]
    while 2 * (len(below) - 1) >= len(points) + threshold:
        quotient, rest = _divide(above, below)
        above, below = below, rest
        old, new = new, _subtract(old, _multiply(quotient, new))
    polynomial, rest = _divide(below, new)
    return polynomial if not rest and len(polynomial) <= threshold else []


def _interpolate(points: Sequence[int], values: Sequence[int]) -> list[int]:
    """Return the coefficients, lowest first, of the polynomial through some points."""
    master, total = _master(points), [0] * len(points)
    for x, y in zip(points, values, strict=True):
        quotient, carry = [0] * len(points), 0
        for power in reversed(range(len(points))):
            carry = (master[power + 1] + carry * x) % PRIME
            quotient[power] = carry
        scale = y * pow(_value(quotient, x), -1, PRIME) % PRIME
        total = [(t + scale * q) % PRIME for t, q in zip(total, quotient, strict=True)]
    return total


def _master(points: Sequence[int]) -> list[int]:
    product = [1]
    for x in points:
        product = _multiply(product, [-x, 1])
    return product


def _value(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def _trim(polynomial: list[int]) -> list[int]:
    while polynomial and polynomial[-1] % PRIME == 0:
        polynomial.pop()
    return polynomial


def _multiply(left: Sequence[int], right: Sequence[int]) -> list[int]:
    product = [0] * (len(left) + len(right) - 1) if left and right else []
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] = (product[i + j] + a * b) % PRIME
    return product


def _subtract(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return _trim([(a - b) % PRIME for a, b in itertools.zip_longest(left, right, fillvalue=0)])


def _divide(top: Sequence[int], bottom: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return quotient and remainder; the divisor has no leading zero."""
    rest, inverse = list(top), pow(bottom[-1], -1, PRIME)
    quotient = [0] * max(0, len(top) - len(bottom) + 1)
    for power in reversed(range(len(quotient))):
        factor = rest[power + len(bottom) - 1] * inverse % PRIME
        quotient[power] = factor
        for place, value in enumerate(bottom):
            rest[power + place] = (rest[power + place] - factor * value) % PRIME
    return _trim(quotient), _trim(rest)


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or any(not 0 < point < PRIME for point in points):
        raise refuse("share points", "points must be distinct and lie between 1 and the prime")


def read_element(raw: bytes) -> int:
    """Read one share: 33 bytes, little-endian, below the prime of the field."""
    value = int.from_bytes(raw, "little")
    if value >= PRIME:
        raise refuse("share range", "a share is not an element of the field")
    return value
