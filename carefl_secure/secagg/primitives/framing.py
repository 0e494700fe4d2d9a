"""The header that every message begins with, and strict reading of its body."""

from __future__ import annotations

import struct
from enum import IntEnum

from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer

__all__ = ["HEADER_BYTES", "exact", "header", "read_body", "sender"]

_MAGIC = b"CFSA"


_VERSION = 1


_HEADER = struct.Struct("<4sBBH8s")


HEADER_BYTES = _HEADER.size


def header(kind: IntEnum, index: int, context: bytes) -> bytes:
    """Return the 16 bytes that a message starts with."""
    return _HEADER.pack(_MAGIC, _VERSION, kind, index, context[:8])


def sender(message: Buffer) -> int:
    """Return the claimed sender of any message, to route it; nothing else is checked.

    Raises
    ------
    ProtocolError
        If this is no message of this protocol.
    """
    return _read_header(message)[2]


def _read_header(message: Buffer) -> tuple[memoryview, int, int, bytes]:
    if not isinstance(message, bytes | bytearray | memoryview):
        raise refuse("message type", f"a message is bytes, not {type(message).__name__}")
    view = memoryview(message)
    if view.ndim != 1 or view.itemsize != 1 or not view.contiguous:
        raise refuse("message type", "a message is a flat run of bytes")
    if len(view) < HEADER_BYTES:
        raise refuse("message length", f"{len(view)} bytes do not hold a header")
    magic, version, kind, index, prefix = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise refuse("message magic", "this is not a message of the secure sum")
    if version != _VERSION:
        raise refuse("message version", f"version {version}, this program speaks {_VERSION}")
    return view, kind, index, prefix


def read_body(
    message: Buffer,
    kind: IntEnum,
    index: int,
    *,
    count: int,
    context: bytes,
    party: str = "client",
) -> memoryview:
    """Check the header of a message and return what follows it.

    Parameters
    ----------
    message, kind, index
        The message, the type that is due and the sender it came from.
    count
        How many senders there can be.
    context
        Hash of the round.
    party
        What a sender is called in the text of an error.

    Raises
    ------
    ProtocolError
        If a field of the header is not as expected.
    """
    view, found, claimed, prefix = _read_header(message)
    if found != kind:
        raise refuse("message kind", f"type {found} where {kind.name.lower()} ({kind}) is due")
    if claimed != index:
        raise refuse("message sender", f"it names {party} {claimed}, but came as {party} {index}")
    if not 0 <= claimed < count:
        raise refuse("message sender", f"{party} {claimed} is not in the roster")
    if prefix != context[:8]:
        raise refuse(
            "message context", f"{party} {index} is in another round or was told otherwise"
        )
    return view[HEADER_BYTES:]


def exact(body: memoryview, size: int, kind: IntEnum) -> None:
    """Refuse a body that is not exactly ``size`` bytes long."""
    if len(body) != size:
        raise refuse(
            "message length",
            f"{kind.name.lower()} has {len(body)} bytes after the header, not {size}",
        )
