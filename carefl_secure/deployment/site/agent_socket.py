"""Messages of the relay on an agent's socket; anything else is refused."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import RecordDict

from carefl_secure.deployment.flower.relay import receive
from carefl_secure.errors import ProtocolError

_STALLED = 60  # seconds after which a relay that neither sends nor reads is disconnected


def read_message(link: Connection) -> tuple[Mapping[str, Any], RecordDict]:
    """Read one message; a peer that stalls in the middle of one is disconnected.

    Raises `ProtocolError` when it is no message of a relay, `OSError` or `EOFError` when the relay is gone or stalls.
    """
    with socket.fromfd(link.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            plain.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", _STALLED, 0))
    try:
        head, contents = receive(link)
        (content,) = contents
        if not isinstance(head, dict):
            raise TypeError(type(head).__name__)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(
            "what came over the agent's socket is no message of a relay; only Flower's SuperNode "
            "of this site should reach it"
        ) from error
    return head, content
