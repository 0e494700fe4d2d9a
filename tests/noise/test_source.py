"""Key sources: entropy of the real one, repeatability of the test one."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest

from carefl_secure.errors import PrivacyError
from carefl_secure.noise import DeterministicKeySource, SystemKeySource


def test_system_keys_have_full_entropy() -> None:
    source = SystemKeySource()
    words = np.frombuffer(b"".join(source.key("x") for _ in range(10_000)), np.uint64)
    assert words.size == 40_000
    assert np.unique(words).size == words.size
    by_place = words.reshape(-1, 4)
    assert (np.bitwise_or.reduce(by_place) == np.uint64(0xFFFFFFFFFFFFFFFF)).all()
    assert (np.bitwise_and.reduce(by_place) == 0).all()
    ones = np.unpackbits(words.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 6 * 0.5 / np.sqrt(words.size * 64)


def test_system_keys_ignore_seeds() -> None:
    np.random.seed(0)
    first = SystemKeySource().key("x")
    np.random.seed(0)
    assert SystemKeySource().key("x") != first


def test_deterministic_source_is_hkdf() -> None:
    seed = b"seed"
    extracted = hmac.new(bytes(32), seed, hashlib.sha256).digest()
    source = DeterministicKeySource(seed)
    for count in range(3):
        info = f"carefl-unsafe-deterministic-key/label/{count}".encode()
        expected = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
        assert source.key("label") == expected


def test_deterministic_source_separates_labels_and_seeds() -> None:
    one, two = DeterministicKeySource(b"a"), DeterministicKeySource(b"b")
    keys = [one.key("x"), one.key("x"), one.key("y"), two.key("x")]
    assert len(set(keys)) == 4
    assert DeterministicKeySource(b"a").key("y") == keys[2]


def test_empty_seed_is_refused() -> None:
    with pytest.raises(PrivacyError, match="seed"):
        DeterministicKeySource(b"")
