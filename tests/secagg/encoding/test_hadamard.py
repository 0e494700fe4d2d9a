"""The rotation: orthonormal, its own inverse, flattening."""

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
    assert padded & (padded - 1) == 0
    assert dimension <= padded < 2 * dimension or dimension == padded == 1
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


def test_other_lengths_are_refused() -> None:
    for vector in (np.zeros(3), np.zeros(0), np.zeros((2, 2))):
        with pytest.raises(ConfigError, match="2\\*\\*m"):
            hadamard(vector)
