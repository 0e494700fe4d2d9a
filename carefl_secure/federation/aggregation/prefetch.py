"""Key prefetch at the server: messages of a round carry the key exchange of the next one.

A message for the next round is piggybacked as a separate record. A node that gets no message in an
exchange, because it dropped out, is asked for the next round alone, so that it can rejoin there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

from flwr.app import Message, RecordDict

from carefl_secure.federation.transport.error_codes import is_dropout
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.federation.transport.messages import Fields, piggyback, piggybacked

Header = Mapping[str, int | bytes]
Take = Callable[[int, RecordDict], object]


def handing(take: Callable[[int, bytes], object], places: Mapping[int, int], name: str) -> Take:
    """Return what hands the one field of a reply to ``take``, with the place of its node."""
    return lambda node, reply: take(places[node], Fields(reply, name).octets(name))


class KeyPrefetch(ABC):
    """The key phases of a round, run during the round before it.

    ``exchange`` is of the round in progress; ``header`` names the round of the keys, and the plan.
    """

    def __init__(self, exchange: Exchange, header: Header) -> None:
        self._exchange = exchange
        self._refused = False
        self.header = header

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the round can begin with the vectors; else its keys are exchanged in it."""

    def _ask(
        self,
        contents: Mapping[int, RecordDict],
        action: str,
        take: Take,
        following: Mapping[int, RecordDict],
        bare_action: str,
    ) -> None:
        """Send messages with those for the next round; hand the good replies to ``take``.

        A refusal of the next round does not affect the one in progress; the next one meets it
        again.
        """
        exchange = self._exchange
        loaded = {
            node: piggyback(content, following[node]) if node in following else content
            for node, content in contents.items()
        }
        bare = {node: record for node, record in following.items() if node not in contents}

        def own(replies: Iterator[Message]) -> Iterator[Message]:
            for reply in replies:
                alone = reply.metadata.src_node_id in bare
                if alone and reply.has_error() and not is_dropout(reply.error):
                    self._refused = True
                else:
                    yield reply

        def messages() -> Iterator[Message]:
            yield from exchange.address(loaded, action)
            yield from exchange.address(bare, bare_action)

        for reply in exchange.accept(own(iter(exchange.send(messages())))):
            node = reply.metadata.src_node_id
            record = reply.content if node in bare else piggybacked(reply.content)
            if node not in bare:
                with exchange.judging(node, action):
                    take(node, reply.content)
            if record is not None and node in following:
                with exchange.judging(node, bare_action):
                    self._observe(node, record)

    @abstractmethod
    def _observe(self, node: int, record: RecordDict) -> None:
        """Take in what a node sent for the next round."""
