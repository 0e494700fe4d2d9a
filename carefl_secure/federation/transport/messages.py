"""Packing of protocol bytes into Flower records, and strict unpacking.

Everything but the adapter is integers, byte strings, lists of clients' indices, and maps from a
client's index to bytes. A message with a missing, extra or wrongly typed field is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from carefl_secure.errors import ProtocolError

_RECORD = "fields"
_NEXT = "next"
_ARRAYS = "arrays"
_ADAPTER = "adapter"
_PEERS = ".peers"

Value = int | bytes | Collection[int] | Mapping[int, bytes]


def pack(**fields: Value) -> RecordDict:
    """Put values into one `ConfigRecord`: collections sorted, a mapping as two lists, ordered by key."""
    record = ConfigRecord()
    for name, value in fields.items():
        if isinstance(value, int | bytes):
            record[name] = value
        elif isinstance(value, Mapping):
            peers = sorted(value)
            record[name + _PEERS] = peers
            record[name] = [value[peer] for peer in peers]
        else:
            record[name] = sorted(value)
    return RecordDict({_RECORD: record})


class Fields:
    """A received record of which exactly the named fields are accepted, ``maps`` as maps; else ProtocolError."""

    def __init__(self, content: RecordDict, *names: str, maps: Collection[str] = (), name: str = _RECORD) -> None:
        record = content.get(name)
        wanted = {*names, *maps, *(name + _PEERS for name in maps)}
        if not isinstance(record, ConfigRecord) or set(record) != wanted:
            raise ProtocolError(f"a message must hold exactly {sorted(wanted)}; the two sides run different versions")
        self._record = record

    def integer(self, name: str) -> int:
        """Return an integer field."""
        value = self._record[name]
        if type(value) is not int:
            raise ProtocolError(f"field {name!r} of a message is not an integer")
        return value

    def octets(self, name: str) -> bytes:
        """Return a field of bytes."""
        value = self._record[name]
        if type(value) is not bytes:
            raise ProtocolError(f"field {name!r} of a message is not a byte string")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of distinct integers."""
        value = self._record[name]
        numbers = tuple(v for v in value if type(v) is int) if isinstance(value, list) else None
        if numbers is None or len(numbers) != len(value) or len(set(numbers)) != len(numbers):  # type: ignore[arg-type]
            raise ProtocolError(f"field {name!r} of a message is not a list of distinct integers")
        return numbers

    def map(self, name: str) -> dict[int, bytes]:
        """Return a map from a client's index to bytes."""
        peers, value = self.integers(name + _PEERS), self._record[name]
        octets = [v for v in value if type(v) is bytes] if isinstance(value, list) else []
        if not isinstance(value, list) or not len(octets) == len(value) == len(peers):
            raise ProtocolError(f"field {name!r} of a message is not a list of {len(peers)} byte strings")
        return dict(zip(peers, octets, strict=True))


def pack_adapter(vector: NDArray[np.float32]) -> ArrayRecord:
    """Put the flat adapter into Flower's array record."""
    return ArrayRecord({_ADAPTER: Array(np.ascontiguousarray(vector, np.float32))})


def unpack_adapter(record: ArrayRecord, dimension: int) -> NDArray[np.float32]:
    """Take the flat adapter out; ProtocolError unless the record is one float32 vector of length ``dimension``."""
    if list(record) != [_ADAPTER]:
        raise ProtocolError(f"the model message must hold exactly one array named {_ADAPTER!r}")
    vector = record[_ADAPTER].numpy()
    if vector.dtype != np.float32 or vector.shape != (dimension,):
        raise ProtocolError(f"the adapter must be float32 of {dimension} entries, not {vector.dtype} {vector.shape}")
    return vector


def adapter_of(content: RecordDict, dimension: int) -> NDArray[np.float32]:
    """Take the flat adapter out of a whole message."""
    record = content.get(_ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise ProtocolError("the message brings no adapter")
    return unpack_adapter(record, dimension)


def with_adapter(content: RecordDict, record: ArrayRecord) -> RecordDict:
    """Return the content with the adapter next to its fields."""
    return RecordDict({**content, _ARRAYS: record})


def piggyback(content: RecordDict, record: RecordDict) -> RecordDict:
    """Return the content with a message for the next round, in a record of its own."""
    return RecordDict({**content, _NEXT: record[_RECORD]})


def piggybacked(content: RecordDict) -> RecordDict | None:
    """Return the message for the next round that is piggybacked on a content, if there is one."""
    record = content.get(_NEXT)
    return None if record is None else RecordDict({_RECORD: record})


def vector_hash(vector: NDArray[np.float32]) -> bytes:
    """Return SHA-256 over a vector's little-endian float32 bytes: the model hash of a round."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").tobytes()).digest()


def payload_bytes(content: RecordDict) -> int:
    """Count the bytes of a message's own values, without Flower's envelope; 8 for an integer."""
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
            continue
        for value in record.values():
            for item in value if isinstance(value, list) else [value]:
                total += len(item) if isinstance(item, bytes | str) else 8
    return total
