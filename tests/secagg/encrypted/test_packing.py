"""Fields in a number, and masks modulo a prime."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from carefl_secure.errors import ConfigError, ProtocolError
from carefl_secure.noise import KeyStream
from carefl_secure.secagg.encrypted.bfv import COEFFICIENT_PRIMES, DEGREE, PLAIN_MODULUS
from carefl_secure.secagg.encrypted.packing import (
    add_residue_masks,
    draw_residues,
    field_limit,
    from_residues,
    pack_fields,
    slots,
    to_residues,
    unpack_fields,
)


@given(
    field_bits=st.sampled_from([20, 30]),
    dimension=st.integers(1, 20),
    clients=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_sums_of_packed_vectors(field_bits: int, dimension: int, clients: int, seed: int) -> None:
    """Exact for every sum within the limit, both ends included, also modulo t."""
    bound = field_limit(field_bits) // clients
    random = np.random.default_rng(seed)
    vectors = random.integers(-bound, bound + 1, (clients, dimension))
    vectors[:, 0] = bound if seed % 2 else -bound
    packed = np.sum([pack_fields(v, field_bits) for v in vectors], axis=0)
    assert packed.size == slots(dimension, field_bits)
    assert np.abs(packed).max() < PLAIN_MODULUS // 2
    residues = to_residues(packed, PLAIN_MODULUS)
    assert residues.tolist() == [int(number) % PLAIN_MODULUS for number in packed]
    back = from_residues(residues, PLAIN_MODULUS)
    assert np.array_equal(unpack_fields(back, dimension, field_bits), vectors.sum(axis=0))


def test_layout_by_hand() -> None:
    packed = pack_fields(np.array([1, -2, 3, 4, 5]), 20)
    assert packed.tolist() == [1 + (3 << 20) + (5 << 40), -2 + (4 << 20)]
    assert pack_fields(np.array([7, -1, 2]), 30).tolist() == [7 + (2 << 30), -1]


def test_what_does_not_fit_is_refused() -> None:
    for field_bits in (20, 30):
        limit = field_limit(field_bits)
        for value in (limit + 1, -limit - 1):
            with pytest.raises(ProtocolError, match=r"^field overflow"):
                pack_fields(np.array([0, value]), field_bits)
    wild = np.array([1 << 59, -(1 << 59) - 1])
    with pytest.raises(ProtocolError, match=r"^field overflow: the opened sum"):
        unpack_fields(wild, 6, 20)
    with pytest.raises(ConfigError, match="20 or 30"):
        field_limit(16)


def is_prime(number: int) -> bool:
    """Miller-Rabin with bases that decide every number below ``3 * 10**24``."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        if not any((power := power * power % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_plain_modulus_is_a_batching_prime_and_no_coefficient_prime() -> None:
    assert is_prime(PLAIN_MODULUS)
    assert not is_prime(PLAIN_MODULUS - 2)
    assert PLAIN_MODULUS % (2 * DEGREE) == 1
    assert 0 < (1 << 60) - PLAIN_MODULUS < 1 << 17
    assert PLAIN_MODULUS not in COEFFICIENT_PRIMES
    assert all(is_prime(p) and p % (2 * DEGREE) == 1 for p in COEFFICIENT_PRIMES)
    assert sum(p.bit_length() for p in COEFFICIENT_PRIMES) <= 109  # 128-bit security, N = 4096


def words(key: bytes, count: int) -> list[int]:
    raw = Cipher(algorithms.AES(key), modes.CTR((2).to_bytes(16, "big"))).encryptor()
    text = raw.update(bytes(8 * count))
    return [int.from_bytes(text[i : i + 8], "little") for i in range(0, len(text), 8)]


def test_masks_by_hand() -> None:
    """The upper 60 bits of the words, those at or above the modulus skipped, in stream order."""
    key = bytes(range(32))
    modulus = (1 << 59) + 3  # skips almost half of the words
    kept = [word >> 4 for word in words(key, 400) if word >> 4 < modulus]
    assert draw_residues(KeyStream(key), 100, modulus).tolist() == kept[:100]
    size = 70_000  # more than two tiles
    summed = np.zeros(size, np.uint64)
    add_residue_masks(summed, [key], [1], PLAIN_MODULUS)
    assert summed.tolist()[:400] == [word >> 4 for word in words(key, 400)]
    many = [word >> 4 for word in words(key, 2 * size + 4000) if word >> 4 < modulus]
    tiled = np.zeros(size, np.uint64)
    add_residue_masks(tiled, [key], [1], modulus)
    assert tiled.tolist() == many[:size]


@given(signs=st.lists(st.sampled_from([1, -1]), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_masks_cancel(signs: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    start = random.integers(0, PLAIN_MODULUS, 50).astype(np.uint64)
    keys = [bytes([place, seed] * 16) for place in range(len(signs))]
    changed = start.copy()
    add_residue_masks(changed, keys, signs, PLAIN_MODULUS)
    assert (changed < PLAIN_MODULUS).all()
    assert (changed != start).all()
    exact = [
        (int(s) + sum(g * (words(k, 50)[i] >> 4) for k, g in zip(keys, signs, strict=True))) % PLAIN_MODULUS
        for i, s in enumerate(start[:3])
    ]
    assert changed[:3].tolist() == exact
    add_residue_masks(changed, keys, [-sign for sign in signs], PLAIN_MODULUS)
    assert np.array_equal(changed, start)


def test_masks_are_uniform() -> None:
    drawn = draw_residues(KeyStream(b"u" * 32), 200_000, PLAIN_MODULUS)
    for shift in (0, 25, 52):
        counts = np.bincount((drawn >> np.uint64(shift) & np.uint64(255)).astype(int), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_bad_arguments() -> None:
    residues = np.zeros(4, np.uint64)
    with pytest.raises(ProtocolError, match=r"^mask modulus"):
        add_residue_masks(residues, [], [], 1 << 60)
    with pytest.raises(ProtocolError, match=r"^mask range"):
        add_residue_masks(residues + np.uint64(1 << 60), [], [], PLAIN_MODULUS)
    with pytest.raises(ProtocolError, match=r"^mask signs"):
        add_residue_masks(residues, [b"k" * 32], [2], PLAIN_MODULUS)
