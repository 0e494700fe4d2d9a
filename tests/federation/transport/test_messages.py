"""Packing is exact, and anything unexpected is refused."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.transport.messages import (
    Fields,
    adapter_of,
    pack,
    pack_adapter,
    payload_bytes,
    piggyback,
    piggybacked,
    unpack_adapter,
    vector_hash,
    with_adapter,
)


@given(
    st.integers(0, 2**40),
    st.binary(max_size=40),
    st.sets(st.integers(0, 99)),
    st.dictionaries(st.integers(0, 99), st.binary(max_size=9)),
)
def test_what_was_packed_comes_back(number: int, octets: bytes, indices: set[int], peers: dict[int, bytes]) -> None:
    content = pack(number=number, octets=octets, indices=indices, peers=peers)
    fields = Fields(content, "number", "octets", "indices", maps=["peers"])
    assert fields.integer("number") == number
    assert fields.octets("octets") == octets
    assert fields.integers("indices") == tuple(sorted(indices))
    assert fields.map("peers") == peers


def test_missing_extra_and_foreign_fields_are_refused() -> None:
    content = pack(round=1)
    with pytest.raises(ProtocolError):
        Fields(content, "round", "more")
    with pytest.raises(ProtocolError):
        Fields(pack(round=1, loss=b"0.3"), "round")
    with pytest.raises(ProtocolError):
        Fields(RecordDict(), "round")
    with pytest.raises(ProtocolError):
        Fields(RecordDict({"fields": ArrayRecord()}), "round")


@pytest.mark.parametrize("value", [b"1", True, 1.0, "1", [1]])
def test_an_integer_is_an_integer(value: object) -> None:
    content = RecordDict({"fields": ConfigRecord({"round": value})})
    with pytest.raises(ProtocolError):
        Fields(content, "round").integer("round")


def test_wrong_lists_are_refused() -> None:
    def fields(peers: Any, values: Any) -> Fields:
        return Fields(RecordDict({"fields": ConfigRecord({"m.peers": peers, "m": values})}), maps=["m"])

    for peers, values in [([1, 1], [b"a", b"b"]), ([1, 2], [b"a"]), ([1], [2]), (1, b"a")]:
        with pytest.raises(ProtocolError):
            fields(peers, values).map("m")
    with pytest.raises(ProtocolError):
        Fields(pack(octets=[1]), "octets").octets("octets")


def test_the_adapter_is_one_float32_vector_of_the_agreed_length() -> None:
    vector = np.arange(5, dtype=np.float32)
    content = with_adapter(pack(x=1), pack_adapter(vector))
    np.testing.assert_array_equal(adapter_of(content, 5), vector)
    with pytest.raises(ProtocolError):
        adapter_of(content, 6)
    with pytest.raises(ProtocolError):
        adapter_of(pack(x=1), 5)
    with pytest.raises(ProtocolError):
        unpack_adapter(ArrayRecord({"adapter": Array(np.zeros(5))}), 5)
    two = ArrayRecord({"adapter": Array(vector), "more": Array(vector)})
    with pytest.raises(ProtocolError):
        unpack_adapter(two, 5)


def test_the_hash_covers_every_bit_of_the_vector() -> None:
    vector = np.linspace(-1, 1, 7, dtype=np.float32)
    assert vector_hash(vector) == hashlib.sha256(vector.astype("<f4").tobytes()).digest()
    other = vector.copy()
    other[3] = np.nextafter(other[3], np.float32(2))
    assert vector_hash(other) != vector_hash(vector)


def test_payload_counts_values_not_envelopes() -> None:
    content = pack(a=1, b=b"12345", c={1: b"xy", 2: b"z"})
    assert payload_bytes(content) == 8 + 5 + 3 + 16


def test_a_piggybacked_message_is_a_record_of_its_own() -> None:
    """It neither hides in a message's fields nor gets lost next to an adapter."""
    content, ride = pack(shares={1: b"x"}), pack(round=2, plan=b"p")
    assert piggybacked(content) is None
    loaded = with_adapter(piggyback(content, ride), pack_adapter(np.zeros(3, np.float32)))
    assert list(loaded) == ["fields", "next", "arrays"]
    assert Fields(loaded, maps=["shares"]).map("shares") == {1: b"x"}
    found = piggybacked(loaded)
    assert found is not None
    assert Fields(found, "round", "plan").integer("round") == 2
    assert piggybacked(found) is None
    assert payload_bytes(piggyback(content, ride)) == payload_bytes(content) + 8 + 1
    with pytest.raises(ProtocolError):
        Fields(RecordDict({**loaded, "next": ArrayRecord()}), "round", "plan", name="next")
