"""The server's side of the wire within one round: ask, count bytes, tell silence from refusal."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from carefl_secure.federation.transport.error_codes import error_of_reply, is_dropout
from carefl_secure.federation.transport.local_grid import OneRunGrid
from carefl_secure.federation.transport.messages import payload_bytes

__all__ = ["ROLE", "Exchange", "party_name", "wait_for_nodes"]

ROLE = "query.role"

_PAUSE = 0.5


class Exchange:
    """Messages of one round.

    ``number`` is Flower's group of every message; ``timeout`` is in seconds, for one phase.
    """

    def __init__(self, grid: Grid, number: int, timeout: float) -> None:
        self._grid = grid
        self._group = str(number)
        self._timeout = timeout
        self._received: dict[int, int] = {}

    def address(self, contents: Mapping[int, RecordDict], action: str) -> Iterator[Message]:
        """Yield one message per node, each made when it is sent."""
        for node, content in contents.items():
            yield Message(content, node, action, group_id=self._group)

    def ask(
        self, contents: Mapping[int, RecordDict], action: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Send one message per node and yield node and content of the good replies.

        Replies count towards `bytes_per_client`, but for those to ``query.role``. Raises the class
        that a client refused with; `EngineError` for a fault.
        """
        replies = self.send(self.address(contents, action))
        return self.accept(replies, counted=action != ROLE)

    def send(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages of any kind in one go and return the replies as they come, unread."""
        return self._grid.send_and_receive(messages, timeout=self._timeout)

    def nodes(self) -> list[int]:
        """Return the nodes that are there now."""
        return sorted(self._grid.get_node_ids())

    def accept(
        self, replies: Iterable[Message], *, counted: bool = True
    ) -> Iterator[tuple[int, RecordDict]]:
        """Yield node and content of good replies; skip dropouts, raise refusals and faults."""
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                if is_dropout(reply.error):
                    continue
                raise error_of_reply(reply.error, party_name(self._grid, node))
            if counted:
                size = payload_bytes(reply.content)
                self._received[node] = self._received.get(node, 0) + size
            yield node, reply.content

    def bytes_per_client(self, clients: Collection[int]) -> int:
        """Return the mean number of bytes that a client's node sent, over those that replied."""
        sent = [count for node, count in self._received.items() if node in clients]
        return round(sum(sent) / max(1, len(sent)))


def party_name(grid: Grid, node: int) -> str:
    """Return what a person calls the party at a node: its site's name, where the grid knows it."""
    name = grid.names.get(node) if isinstance(grid, OneRunGrid) else None
    return f"node {node}" if name is None else f"site {name}"


def wait_for_nodes(grid: Grid, wanted: int, patience: float) -> list[int]:
    """Return the nodes of the engine, once there are ``wanted`` or ``patience`` seconds are over.

    On a network nodes register one by one while the first round begins. Fewer than ``wanted`` may
    be returned; the secure sum then refuses if they are too few.
    """
    deadline = time.monotonic() + patience
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < wanted and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        nodes = sorted(grid.get_node_ids())
    return nodes
