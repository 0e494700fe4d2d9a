"""The complete graph, and the ring drawn from the transcript_hash."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from carefl_secure.errors import ProtocolError
from carefl_secure.secagg.pairwise.graph_planner import neighbours, ring


def test_everyone_but_oneself_in_order() -> None:
    assert neighbours(bytes(32), bytes(32), {5, 0, 3}, 3) == (0, 5)


def test_strangers_are_refused() -> None:
    for degree in (None, 4):
        with pytest.raises(ProtocolError, match="graph member"):
            neighbours(bytes(32), bytes(32), {0, 1}, 2, degree)


@given(
    members=st.sets(st.integers(0, 999), min_size=1, max_size=60),
    half=st.integers(2, 8),
    transcript_hash=st.binary(min_size=32, max_size=32),
)
def test_being_neighbours_is_mutual(members: set[int], half: int, transcript_hash: bytes) -> None:
    graph = {m: neighbours(b"c", transcript_hash, members, m, 2 * half) for m in members}
    for one, near in graph.items():
        assert list(near) == sorted(set(near) - {one})
        assert len(near) == min(2 * half, len(members) - 1)
        assert all(one in graph[other] for other in near)


def test_the_ring_by_hand() -> None:
    """Fisher-Yates written out, over the key stream written out."""
    context, transcript_hash, members = b"c" * 32, b"b" * 32, tuple(range(5, 45, 2))
    parts = (b"carefl-secagg-2/graph", context, transcript_hash)
    key = hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()
    blocks = Cipher(algorithms.AES(key), modes.CTR((2).to_bytes(16, "big"))).encryptor()
    raw = blocks.update(bytes(8 * 40))
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    order = list(members)
    for last in range(len(order) - 1, 0, -1):
        word = words.pop(0)
        while word >= 2**64 - 2**64 % (last + 1):
            word = words.pop(0)
        other = word % (last + 1)
        order[last], order[other] = order[other], order[last]
    drawn, places = ring(context, transcript_hash, members)
    assert list(drawn) == order
    assert [drawn[places[m]] for m in members] == list(members)
    near = neighbours(context, transcript_hash, members, order[0], 4)
    assert near == tuple(sorted((order[1], order[2], order[-1], order[-2])))


def test_another_beacon_or_context_gives_another_ring() -> None:
    members = tuple(range(30))
    rings = {ring(c * 32, b * 32, members)[0] for c, b in ((b"c", b"b"), (b"c", b"x"), (b"x", b"b"))}
    assert len(rings) == 3


def test_neighbourhoods_are_uniform() -> None:
    """Over many beacons every pair is joined equally often, and so is every place taken."""
    draws, members, degree = 3000, tuple(range(11)), 4
    pairs: Counter[int] = Counter()
    places: Counter[int] = Counter()
    for number in range(draws):
        transcript_hash = number.to_bytes(32, "little")
        pairs.update(neighbours(b"c", transcript_hash, members, 0, degree))
        places[ring(b"c", transcript_hash, members)[1][7]] += 1
    assert set(pairs) == set(range(1, 11))
    assert stats.chisquare(list(places.values())).pvalue > 1e-6
    # drawing without replacement makes the counts less spread than chi-square expects
    expected = draws * degree / 10
    assert all(abs(count - expected) < 6 * (expected * 0.6) ** 0.5 for count in pairs.values())
