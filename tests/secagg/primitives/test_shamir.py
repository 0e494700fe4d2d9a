"""Secret sharing: exact, and silent below the threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.shamir import PRIME, combine, split, weights


def test_the_field_is_prime_by_miller_rabin() -> None:
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 60):
        powers = [pow(base, odd << i, PRIME) for i in range(twos)]
        assert powers[0] == 1 or PRIME - 1 in powers
    assert all(pow(3, c - 1, c) != 1 for c in range((1 << 256) + 1, PRIME, 2))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_threshold_subset_rebuilds(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    secret = data.draw(st.integers(0, PRIME - 1))
    points = data.draw(st.lists(st.integers(1, 5000), min_size=count, max_size=count, unique=True))
    shares = split(secret, threshold, points, KeyStream(b"k" * 32))
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    weight = weights([points[i] for i in chosen])
    assert combine(weight, [shares[i] for i in chosen]) == secret


def test_lagrange_by_hand() -> None:
    """Against the textbook formula with one inversion per weight."""
    points = [1, 4, 7, 1000]
    for own, weight in zip(points, weights(points), strict=True):
        expected = 1
        for other in points:
            if other != own:
                expected = expected * other * pow(other - own, -1, PRIME) % PRIME
        assert weight == expected


def test_one_share_less_fits_every_secret() -> None:
    """For t - 1 shares and any guess there is a t-th share that makes the guess come out."""
    shares = split(12345, 4, range(1, 7), KeyStream(b"k" * 32))
    weight = weights([1, 2, 3, 4])
    for guess in (0, 1, 12345, PRIME - 1):
        missing = guess - sum(w * s for w, s in zip(weight, shares[:3], strict=False))
        last = missing * pow(weight[3], -1, PRIME) % PRIME
        assert combine(weight, [*shares[:3], last]) == guess
        assert (last == shares[3]) == (guess == 12345)


def test_shares_below_the_threshold_are_uniform() -> None:
    """The top bits of t - 1 shares of the secret 0 pass a joint test of uniformity."""
    cells = np.zeros(256, int)
    for trial in range(4000):
        shares = split(0, 3, [1, 2, 3], KeyStream(trial.to_bytes(32, "big")))
        cells[(shares[0] >> 252) * 16 + (shares[2] >> 252)] += 1
    assert stats.chisquare(cells).pvalue > 1e-4
    whole = np.zeros(16, int)
    for trial in range(500):
        shares = split(0, 3, [1, 2, 3], KeyStream(trial.to_bytes(32, "big")))
        whole[combine(weights([1, 2, 3]), shares) >> 252] += 1
    assert stats.chisquare(whole).pvalue < 1e-9  # all three are not: the test can see


def test_tampered_share_changes_the_secret() -> None:
    shares = split(99, 3, [1, 2, 3], KeyStream(b"k" * 32))
    for place, delta in itertools.product(range(3), (1, PRIME - 1)):
        false = list(shares)
        false[place] = (false[place] + delta) % PRIME
        assert combine(weights([1, 2, 3]), false) != 99


def test_bad_arguments_are_refused() -> None:
    stream = KeyStream(bytes(32))
    with pytest.raises(ProtocolError, match="secret range"):
        split(PRIME, 2, [1, 2], stream)
    with pytest.raises(ProtocolError, match="share threshold"):
        split(1, 3, [1, 2], stream)
    with pytest.raises(ProtocolError, match="share threshold"):
        split(1, 0, [1, 2], stream)
    for points in ([1, 1], [0, 1], [PRIME, 1]):
        with pytest.raises(ProtocolError, match="share points"):
            split(1, 2, points, stream)
        with pytest.raises(ProtocolError, match="share points"):
            weights(points)
