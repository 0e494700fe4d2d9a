"""Ring arithmetic of the key-additive cipher. EXPERIMENTAL: hand-made, not reviewed by anyone.

The ring is ``R_q = Z_q[X] / (X^N + 1)`` with ``N = 4096`` and ``q = 2**108``. One client encrypts
block ``m`` under its own secret ``s`` and the round's public ``a``::

    c = floor((a s + e + Delta m + 8) / 16) mod 2**104,    Delta = 2**28

An element is kept as four limbs of 27 bits, ``sum_l 2**(27 l) limb_l``; limbs are signed and may
grow between two calls of :func:`carry`. No TenSEAL here: its bindings neither read nor write
polynomials, and its ciphertexts have a second half that a public ``a`` makes superfluous.

Parameters and where they come from
-----------------------------------
* *Security.* The table of the Homomorphic Encryption Standard (Albrecht et al., 2018,
  homomorphicencryption.org) allows 109 bits of modulus at ``N = 4096`` for 128 bits of classical
  security with ternary secrets and errors of standard deviation 3.2; secrets as wide as the errors
  are not weaker. A power of two as modulus is covered: the table counts its size, not its factors.
* *Width of secret and error.* Both are centred binomial: 42 bits minus 42 bits, so of magnitude
  at most ``B = 42`` and variance 21. The server learns the *sum* of the secrets and so that of the
  errors. Given the sum over ``h`` honest clients, one secret is hypergeometric around a known mean
  with variance ``21 (h - 1) / h``: with two honest clients it is still 10.5, the 3.2 of the table.
* *Noise.* A sum over ``n`` clients carries at most ``(B + 8) n`` beside ``Delta m``: 50 000 for
  1000 clients, less than 2**15.7. Decryption fails from ``Delta / 2 = 2**27`` on, so more than 11
  bits are left; these are hard bounds, not probabilities. Sums hold 80 bits per coefficient.
* *Exactness.* Products go through floating-point Fourier transforms. By Brent, Percival and
  Zimmermann (Math. Comp. 76, 2007, for radix 2) the error of a convolution is at most ``|x| |y|
  152 * 2**-53``; where that is not below an eighth the small factor is split in two. What comes out
  is checked to lie within a quarter of an integer, then rounded.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import digest, pack

__all__ = [
    "CLIENT_NOISE",
    "DROPPED_BITS",
    "LIMBS",
    "LIMB_BITS",
    "PLAIN_BITS",
    "RING_DEGREE",
    "SCALE_BITS",
    "SMALL_BOUND",
    "carry",
    "draw_small",
    "public_blocks",
    "times",
]

RING_DEGREE = 4096
"""Coefficients of a ring element (N)."""

LIMBS, LIMB_BITS = 4, 27
"""Limbs of a coefficient and bits of a limb; the modulus is ``2**108``."""

SCALE_BITS = 28
"""The plaintext stands above so many bits: Delta is ``2**28``."""

DROPPED_BITS = 4
"""Lowest bits of a coefficient that are rounded away before it is sent."""

PLAIN_BITS = LIMBS * LIMB_BITS - SCALE_BITS
"""Bits of plaintext per coefficient: 80."""

SMALL_BOUND = 42
"""Largest magnitude of a coefficient of a secret or an error (B)."""

CLIENT_NOISE = SMALL_BOUND + (1 << DROPPED_BITS - 1)
"""Most noise that one client adds to a coefficient: its error, and half of what is dropped."""

_MASK = (1 << LIMB_BITS) - 1
_COIN = np.uint64((1 << SMALL_BOUND) - 1)
_HALF = RING_DEGREE // 2
_LIMB_NORM = 2.0 ** (LIMB_BITS - 1) * RING_DEGREE**0.5
_FFT_ERROR = 152 * 2.0**-53
_SURE = 0.25

Integers = npt.NDArray[np.int64]


def public_blocks(context: bytes, beacon: bytes, blocks: Sequence[int]) -> npt.NDArray[np.int32]:
    """Return the public elements ``a`` of some blocks, the same for every party of a round.

    SHAKE-128 over ``H("additive ring"; context, beacon, ints(block))``, read as little-endian
    signed words of 32 bits, limb by limb, each shifted right by 5. Signed limbs of 27 bits stand
    for every residue modulo ``2**108`` exactly once, so ``a`` is uniform.

    Parameters
    ----------
    context
        Hash of the agreement.
    beacon
        Hash of all advertisements.
    blocks
        Numbers of the blocks.

    Returns
    -------
    numpy.ndarray
        int32, shape ``[len(blocks), LIMBS, RING_DEGREE]``, in ``-2**26 .. 2**26 - 1``.

    Guarantees
    ----------
    Nobody chooses ``a``: it is a hash of what all clients signed. Who advertises last can try
    several beacons; each gives another ``a`` without any structure, if SHAKE-128 behaves as a
    random function.
    """
    drawn = np.empty((len(blocks), LIMBS, RING_DEGREE), np.int32)
    for row, block in zip(drawn, blocks, strict=True):
        seed = digest(b"additive ring", context, beacon, pack(block))
        raw = hashlib.shake_128(seed).digest(4 * row.size)
        row[:] = np.frombuffer(raw, "<i4").reshape(row.shape) >> 5
    return drawn


def draw_small(stream: KeyStream, count: int = 1) -> Integers:
    """Draw small elements: per coefficient 42 coins minus 42 coins.

    Two 64-bit words of the stream per coefficient; the ones among the lowest 42 bits of the first
    minus those of the second.

    Returns
    -------
    numpy.ndarray
        int64, shape ``[count, RING_DEGREE]``, magnitudes up to ``SMALL_BOUND``, variance 21.
    """
    words = stream.words(2 * count * RING_DEGREE, np.uint64)
    words &= _COIN
    ones = np.bitwise_count(words).astype(np.int64)
    drawn: Integers = (ones[0::2] - ones[1::2]).reshape(count, RING_DEGREE)
    return drawn


@functools.cache
def _twist() -> npt.NDArray[np.complex128]:
    turned: npt.NDArray[np.complex128] = np.exp(1j * np.pi / RING_DEGREE * np.arange(_HALF))
    turned.setflags(write=False)
    return turned


def _forward(elements: npt.NDArray[Any]) -> npt.NDArray[np.complex128]:
    """Transform real elements modulo ``X^N + 1``: fold to ``X^{N/2} = i``, twist, transform."""
    folded = np.empty((*elements.shape[:-1], _HALF), np.complex128)
    folded.real = elements[..., :_HALF]
    folded.imag = elements[..., _HALF:]
    folded *= _twist()
    return np.asarray(fft.fft(folded, overwrite_x=True))


def _backward(values: npt.NDArray[np.complex128]) -> Integers:
    folded = fft.ifft(values, overwrite_x=True)
    folded *= _twist().conj()
    real = np.concatenate([folded.real, folded.imag], axis=-1)
    nearest = np.rint(real)
    real -= nearest
    if max(real.max(), -real.min()) > _SURE:
        raise refuse("ring product", "a product is not near integers; this machine's FFT is off")
    exact: Integers = nearest.astype(np.int64)
    return exact


def times(public: npt.NDArray[np.int32], small: Integers) -> Integers:
    """Multiply public elements by one small element, exactly.

    Parameters
    ----------
    public
        Shape ``[blocks, LIMBS, RING_DEGREE]``, from :func:`public_blocks`.
    small
        Shape ``[RING_DEGREE]``; a secret or a sum of secrets.

    Returns
    -------
    numpy.ndarray
        int64 limbs, not carried, of the shape of ``public``.
    """
    norm = float(np.linalg.norm(small.astype(np.float64)))
    if _LIMB_NORM * norm * _FFT_ERROR >= _SURE / 2:
        width = int(np.abs(small).max()).bit_length() // 2 + 1
        high = (small + (1 << width - 1)) >> width
        return times(public, small - (high << width)) + (times(public, high) << width)
    return _backward(_forward(public) * _forward(small))


def carry(limbs: Integers) -> None:
    """Bring limbs to ``0 .. 2**27 - 1``, in place, modulo ``2**108``; limbs are the second axis."""
    for place in range(LIMBS):
        limb = limbs[:, place]
        if place + 1 < LIMBS:
            limbs[:, place + 1] += limb >> LIMB_BITS
        limb &= _MASK
