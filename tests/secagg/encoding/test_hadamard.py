"""The rotation: orthonormal, undone by its transpose, flattening, and short."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.encoding.hadamard import hadamard, padded_length, rotate, rotate_back


@pytest.mark.parametrize("bits", range(11))
def test_equals_the_matrix(bits: int) -> None:
    size = 1 << bits
    vector = np.random.default_rng(bits).normal(size=size)
    matrix = linalg.hadamard(size) / np.sqrt(size)
    assert np.allclose(hadamard(vector), matrix @ vector, atol=1e-12)


@pytest.mark.parametrize("bits", [14, 15, 17])
def test_large_transform_is_an_involution_and_keeps_the_norm(bits: int) -> None:
    vector = np.random.default_rng(0).normal(size=1 << bits)
    turned = hadamard(vector)
    assert np.allclose(hadamard(turned), vector, atol=1e-12)
    assert np.isclose(np.linalg.norm(turned), np.linalg.norm(vector), rtol=1e-12)
    one = np.zeros(1 << bits)
    one[12345] = 1
    row = hadamard(one) * np.sqrt(one.size)
    signs = [bin(i & 12345).count("1") % 2 for i in range(one.size)]
    assert np.allclose(row, 1 - 2 * np.array(signs))


@pytest.mark.parametrize("dimension", [1, 2, 3, 1000, 1024, 1025])
def test_rotation_round_trip(dimension: int) -> None:
    vector = np.random.default_rng(1).normal(size=dimension)
    padded = padded_length(dimension)
    assert dimension <= padded <= max(1.07 * dimension, 4)
    turned = rotate(vector, padded, b"r" * 32)
    assert np.allclose(rotate_back(turned, dimension, b"r" * 32), vector, atol=1e-12)
    if dimension >= 1000:
        assert not np.allclose(rotate_back(turned, dimension, b"s" * 32), vector, atol=1e-3)


def test_a_spike_is_spread_and_so_is_a_flat_vector() -> None:
    spike, flat = np.zeros(4096), np.full(4096, 1 / 64)
    spike[17] = 1
    for vector in (spike, flat):
        turned = rotate(vector, 4096, b"k" * 32)
        assert np.isclose(np.linalg.norm(turned), 1)
        assert np.abs(turned).max() < 6 / 64
    assert np.abs(hadamard(flat)).max() > 0.99  # without the signs it is not


ORDERS = [12, 20, 28, 36, 60, 76, 84, 140, 148, 160, 228, 240, 252]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("power", [1, 4])
def test_every_entry_has_the_same_magnitude_and_rows_are_orthogonal(order: int, power: int) -> None:
    size = order * power
    matrix = np.stack([hadamard(row) for row in np.eye(size)], 1)
    assert np.allclose(np.abs(matrix), 1 / np.sqrt(size), atol=1e-12)
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    vector = np.random.default_rng(size).normal(size=size)
    assert np.allclose(hadamard(vector, transposed=True), matrix.T @ vector, atol=1e-12)
    assert padded_length(size) == size


def test_the_paley_matrices_are_those_of_the_protocol() -> None:
    """By the Legendre symbol itself, for one prime of each kind: 19 and 17."""
    for q in (19, 17):
        legendre = [0, *(1 if pow(i, (q - 1) // 2, q) == 1 else -1 for i in range(1, q))]
        corner = 1 if q == 17 else -1
        core = [[0] + [1] * q] + [[corner] + [legendre[(i - j) % q] for j in range(q)] for i in range(q)]
        one = np.array(core) + np.eye(q + 1)
        if q == 17:
            a, b = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
            one = np.block([[a * core[i][j] + b * (i == j) for j in range(q + 1)] for i in range(q + 1)])
        size = len(one)
        assert np.allclose(np.stack([hadamard(row) for row in np.eye(size)], 1), one / np.sqrt(size), atol=1e-12)


def test_real_adapters_grow_by_no_more_than_seven_percent() -> None:
    sizes = (40_960, 921_600, 1_244_160, 1_843_200, 2_211_840, 2_442_240, 4_341_760, 5_111_808, 9_043_968)
    assert padded_length(1_244_160) == 1_245_184  # was 2,097,152
    assert max(padded_length(size) / size for size in sizes) < 1.03
    some = np.random.default_rng(3).integers(129, 1 << 24, 2000).tolist()
    worst = max((*range(129, 3000), *some), key=lambda size: padded_length(size) / size)
    assert padded_length(worst) <= worst * 16 // 15 + 1
    for size in sizes[:3]:
        vector = np.random.default_rng(size).normal(size=size)
        turned = rotate(vector, padded_length(size), b"r" * 32)
        assert np.isclose(np.linalg.norm(turned), np.linalg.norm(vector), rtol=1e-12)
        assert np.allclose(rotate_back(turned, size, b"r" * 32), vector, atol=1e-11)


def test_other_lengths_are_refused() -> None:
    for vector in (np.zeros(3), np.zeros(0), np.zeros((2, 2)), np.zeros(6)):
        with pytest.raises(ConfigError, match=r"Hadamard matrix of order|flat vector"):
            hadamard(vector)
