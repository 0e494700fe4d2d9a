"""The key stream: its definition, its two code paths, masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from carefl_secure.errors import PrivacyError
from carefl_secure.noise import KeyStream, add_masks, keystream

KEY = bytes(range(32))
KNOWN = "0ebcb5deb52c83bd08a8a935182c9199d24356532881602f809eb383c5ff5d56"


def by_blocks(key: bytes, blocks: int) -> bytes:
    """The definition, block by block: AES of the counters 2, 3, ..."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(encryptor.update((2 + i).to_bytes(16, "big")) for i in range(blocks))


def test_known_answer() -> None:
    assert KeyStream(KEY).take(32).hex() == KNOWN
    words = KeyStream(KEY).words(4, np.uint32)
    assert words.tolist() == [3736452110, 3179490485, 900311048, 2576428056]


@pytest.mark.parametrize("path", [keystream._counter_mode, keystream._galois_mode])
def test_both_paths_are_the_definition(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystream, "_cipher", lambda: path)
    blocks = 40_000  # beyond two tiles
    expected = by_blocks(KEY, blocks)
    assert KeyStream(KEY).take(16 * blocks) == expected
    stream = KeyStream(KEY)
    sizes = [1, 15, 16, 17, 0, 262_144, 300_001, 3]
    taken = b"".join(stream.take(size) for size in sizes)
    assert taken == expected[: sum(sizes)]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_words_are_little_endian(dtype: Any) -> None:
    size = np.dtype(dtype).itemsize
    raw = KeyStream(KEY).take(100 * size)
    expected = [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]
    words = KeyStream(KEY).words(100, dtype)
    assert words.tolist() == expected
    assert words.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_masks_equal_the_sum_of_streams(dtype: Any) -> None:
    size = 150_001  # not a whole number of tiles
    keys = [bytes([i]) * 32 for i in range(5)]
    signs = [1, -1, -1, 1, -1]
    vector = np.arange(size).astype(dtype)
    expected = vector.copy()
    for key, sign in zip(keys, signs, strict=True):
        words = KeyStream(key).words(size, dtype)
        expected = expected + words if sign > 0 else expected - words
    add_masks(vector, keys, signs)
    assert np.array_equal(vector, expected)


def test_masks_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [bytes([i]) * 32 for i in range(7)]
    whole, parts = np.zeros(1000, np.uint32), np.zeros(1000, np.uint32)
    add_masks(whole, keys, [1] * 7)
    monkeypatch.setattr(keystream, "_BATCH", 2)
    add_masks(parts, keys, [1] * 7)
    assert np.array_equal(whole, parts)


def test_opposite_masks_cancel_only_under_the_same_key() -> None:
    vector = np.arange(1000, dtype=np.uint32)
    add_masks(vector, [KEY, KEY], [1, -1])
    assert np.array_equal(vector, np.arange(1000))
    other = bytes([1]) + KEY[1:]
    add_masks(vector, [KEY, other], [1, -1])
    assert np.count_nonzero(vector == np.arange(1000)) < 3


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33), bytearray(32), "0" * 32, None])
def test_bad_key_is_refused(key: Any) -> None:
    with pytest.raises(PrivacyError, match="32 bytes"):
        KeyStream(key)
    vector = np.zeros(4, np.uint32)
    with pytest.raises(PrivacyError, match="32 bytes"):
        add_masks(vector, [KEY, key], [1, 1])
    assert not vector.any()


def test_bad_masks_are_refused() -> None:
    with pytest.raises(PrivacyError, match="sign"):
        add_masks(np.zeros(4, np.uint32), [KEY], [])
    with pytest.raises(PrivacyError, match="sign"):
        add_masks(np.zeros(4, np.uint32), [KEY], [2])
    with pytest.raises(PrivacyError, match="contiguous"):
        add_masks(np.zeros(8, np.uint32)[::2], [KEY], [1])
    with pytest.raises(PrivacyError, match="byte order"):
        add_masks(np.zeros(8, np.dtype(np.uint32).newbyteorder()), [KEY], [1])
    with pytest.raises(PrivacyError, match="uint16, uint32 or uint64"):
        add_masks(np.zeros(8, np.float32), [KEY], [1])


def test_stream_ends_where_the_paths_would_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystream, "_LIMIT", 100)
    stream = KeyStream(KEY)
    stream.take(90)
    with pytest.raises(PrivacyError, match="fresh key"):
        stream.take(11)
    with pytest.raises(PrivacyError, match="fresh key"):
        stream.take(-1)


def test_disagreeing_paths_fall_back_to_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystream, "_galois_mode", lambda key: keystream._counter_mode(key[::-1]))
    keystream._cipher.cache_clear()
    try:
        assert KeyStream(KEY).take(32).hex() == KNOWN
    finally:
        keystream._cipher.cache_clear()
