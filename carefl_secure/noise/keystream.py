"""The AES-256 key stream that every mask and every noise draw is made of."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from carefl_secure.errors import PrivacyError

KEY_BYTES = 32
"""Length of every key, in bytes."""

_TILE = 256 << 10  # bytes; the accumulator tile and the stream tile stay in the second-level cache
_SLACK = 16  # update_into wants one cipher block more room than it fills
_LIMIT = 64 << 30  # bytes; GCM counts blocks in 32 bits, so the two modes agree only this far
_BATCH = 512  # streams open at the same time in add_masks
_WORDS = frozenset({2, 4, 8})


class _Encryptor(Protocol):
    def update(self, data: bytes) -> bytes: ...

    def update_into(self, data: bytes | memoryview, buf: memoryview) -> int: ...


def _counter_mode(key: bytes) -> _Encryptor:
    return Cipher(algorithms.AES(key), modes.CTR((2).to_bytes(16, "big"))).encryptor()


def _galois_mode(key: bytes) -> _Encryptor:
    return Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()


def _seconds(make: Callable[[bytes], _Encryptor], key: bytes, zeros: bytes) -> float:
    best = float("inf")
    for _ in range(5):
        encryptor = make(key)
        start = time.perf_counter()
        encryptor.update(zeros)
        best = min(best, time.perf_counter() - start)
    return best


@functools.cache
def _cipher() -> Callable[[bytes], _Encryptor]:
    """Pick the faster of two OpenSSL paths to one stream; counter mode where they disagree."""
    key, zeros = os.urandom(KEY_BYTES), bytes(_TILE)
    if _counter_mode(key).update(zeros) != _galois_mode(key).update(zeros):
        return _counter_mode
    fast = _seconds(_galois_mode, key, zeros) < _seconds(_counter_mode, key, zeros)
    return _galois_mode if fast else _counter_mode


def _check(key: object) -> None:
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise PrivacyError(f"a key stream needs a key of exactly {KEY_BYTES} bytes; pass such a key")


def _open(key: bytes) -> _Encryptor:
    _check(key)
    return _cipher()(key)


class KeyStream:
    """A stream of pseudo-random bytes that is fixed by one 32-byte key.

    AES-256 in counter mode; the first counter block is the 128-bit big-endian integer 2. This is
    byte for byte the key stream of AES-256-GCM under a zero 96-bit nonce, for which OpenSSL often
    has faster code; the faster path is used, after a self-test that both agree. A key of another
    length or type, or drawing more than 64 GiB, raises PrivacyError.

    Guarantees
    ----------
    To anyone without the key the bytes look uniform and independent, if AES-256 is a pseudo-random
    permutation and the key is uniform and used for one stream only. How the stream is cut into
    calls does not change its bytes. Whoever holds the key can draw the whole stream again.
    """

    def __init__(self, key: bytes) -> None:
        self._encryptor = _open(key)
        self._drawn = 0

    def _fill(self, nbytes: int) -> npt.NDArray[np.uint8]:
        if nbytes < 0 or self._drawn + nbytes > _LIMIT:
            raise PrivacyError("a key stream gives 0 to 64 GiB in all; take a fresh key for more")
        self._drawn += nbytes
        room = np.empty(nbytes + _SLACK, np.uint8)
        view = room.data
        zeros = memoryview(bytes(min(_TILE, nbytes)))
        for start in range(0, nbytes, _TILE):
            size = min(_TILE, nbytes - start)
            self._encryptor.update_into(zeros[:size], view[start : start + size + _SLACK])
        return room[:nbytes]

    def take(self, nbytes: int) -> bytes:
        """Return the next ``nbytes`` bytes."""
        return self._fill(nbytes).tobytes()

    def words(self, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the next ``count`` words, read as little-endian, in this machine's byte order.

        ``dtype`` is an unsigned integer type of 16, 32 or 64 bits; any other raises PrivacyError.
        """
        kind = _unsigned(np.dtype(dtype))
        raw = self._fill(count * kind.itemsize).view(kind.newbyteorder("<"))
        return raw.astype(kind, copy=False)


def _unsigned(kind: np.dtype[Any]) -> np.dtype[Any]:
    if kind.kind != "u" or kind.itemsize not in _WORDS:
        raise PrivacyError(f"words are uint16, uint32 or uint64, not {kind}; choose one of those")
    return kind.newbyteorder("=")


def add_masks(accumulator: npt.NDArray[Any], keys: Sequence[bytes], signs: Sequence[int]) -> None:
    """Add one signed mask per key to an integer vector, in place.

    ``accumulator += sum_k signs[k] * PRG(keys[k])`` modulo ``2**bits``, where ``PRG(key)`` is the
    start of ``KeyStream(key)`` read as words of the accumulator's type. Masks are drawn tile by
    tile, so that a tile stays in the cache and no mask is ever held whole.

    Parameters
    ----------
    accumulator
        Contiguous uint16, uint32 or uint64 vector.
    keys, signs
        One 32-byte key and one sign, +1 or -1, per mask.

    Raises
    ------
    PrivacyError
        An argument is not as stated; nothing was added.
    """
    kind = _unsigned(accumulator.dtype)
    if accumulator.ndim != 1 or not accumulator.flags.c_contiguous:
        raise PrivacyError("masks are added to a flat contiguous vector; pass one")
    if not accumulator.dtype.isnative:
        raise PrivacyError("masks are added to words in the byte order of this machine; convert")
    if len(keys) != len(signs) or not set(signs) <= {1, -1}:
        raise PrivacyError("masks need one sign, +1 or -1, per key; check the two lists")
    if accumulator.nbytes > _LIMIT:
        raise PrivacyError("a mask covers at most 64 GiB; split the vector")
    for key in keys:
        _check(key)
    steps = [np.add if sign > 0 else np.subtract for sign in signs]
    streams = list(zip(keys, steps, strict=True))
    step = _TILE // kind.itemsize
    room = np.empty(_TILE + _SLACK, np.uint8)
    view, zeros = room.data, memoryview(bytes(_TILE))
    mask = room[:_TILE].view(kind.newbyteorder("<"))
    for first in range(0, len(streams), _BATCH):
        batch = [(_open(key), apply) for key, apply in streams[first : first + _BATCH]]
        for start in range(0, accumulator.size, step):
            tile = accumulator[start : start + step]
            blank, words = zeros[: tile.nbytes], mask[: tile.size]
            for encryptor, apply in batch:
                encryptor.update_into(blank, view)
                apply(tile, words, out=tile)
