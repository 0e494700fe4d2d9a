"""Which node speaks for which client or helper; asked once a run, where there are helpers.

A node's answer is only a claim: keys in the cohort prove each message later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flwr.app import RecordDict

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.transport.exchange import ROLE, Exchange
from carefl_secure.federation.transport.messages import Fields, pack

_CLIENT, _HELPER = 0, 1


def role_message(index: int, helper: bool) -> RecordDict:
    """Return what a node answers: whether it is a client or a helper, and which."""
    return pack(role=_HELPER if helper else _CLIENT, index=index)


class Directory:
    """The roles of the nodes that were heard; ``clients`` and ``helpers`` are counts."""

    def __init__(self, clients: int, helpers: int) -> None:
        self._limits: Sequence[int] = (clients, helpers)
        self._roles: dict[int, tuple[int, int]] = {}

    def learn(self, exchange: Exchange, nodes: Collection[int]) -> None:
        """Ask the nodes not known yet, and forget those that are gone.

        A node that claims a place out of range is at fault. Two nodes may claim one place; signatures tell them apart.
        """
        self._roles = {node: role for node, role in self._roles.items() if node in nodes}
        unknown = [node for node in nodes if node not in self._roles]
        if not unknown:
            return
        exchange.gather(dict.fromkeys(unknown, pack(ask=1)), ROLE, self._note)

    def _note(self, node: int, reply: RecordDict) -> None:
        fields = Fields(reply, "role", "index")
        role, index = fields.integer("role"), fields.integer("index")
        if role not in (_CLIENT, _HELPER) or not 0 <= index < self._limits[role]:
            raise ProtocolError(f"node {node} claims a place that this run does not have")
        self._roles[node] = role, index

    def clients(self) -> dict[int, int]:
        """Return the client's index of every client node."""
        return self._of(_CLIENT)

    def helpers(self) -> dict[int, int]:
        """Return the helper's index of every helper node."""
        return self._of(_HELPER)

    def _of(self, wanted: int) -> dict[int, int]:
        return {node: index for node, (role, index) in self._roles.items() if role == wanted}
