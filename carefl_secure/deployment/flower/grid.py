"""A Grid whose messages go through a Flower run on a SuperLink, by way of the server relay."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, RecordDict

from carefl_secure.deployment.flower.relay import receive, send
from carefl_secure.errors import EngineError
from carefl_secure.federation.transport.flower_internals import empty_run
from carefl_secure.federation.transport.local_grid import FIRST_NODE, OneRunGrid

_FOREVER = 7 * 24 * 3600.0
_LOOK = 1.0


class SuperLinkGrid(OneRunGrid):
    """Send messages through the ServerApp of a Flower run, over a Unix socket.

    The folder of the socket ``path`` must be the owner's alone. ``alive`` is called about once a second while waiting,
    raises when waiting has become pointless, and may be replaced once connected. The strategy, the ledger and the
    adapter stay in this process; the ServerApp only carries messages.
    """

    def __init__(self, path: Path, alive: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(_LOOK)
        self.alive = alive
        self._link: Connection | None = None
        super().__init__(empty_run())
        self._open: Iterator[Message] = iter(())
        self.places: dict[int, int] = {}

    def connect(self, patience: float) -> None:
        """Wait for the ServerApp to connect; `EngineError` when it does not."""
        end = time.monotonic() + patience
        while self._link is None:
            try:
                self._link = Connection(self._listener.accept()[0].detach())
            except TimeoutError:
                self.alive()
                if time.monotonic() > end:
                    raise EngineError(
                        f"the run's ServerApp did not start within {patience:.0f} seconds; read the SuperLink's log"
                    ) from None

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of all nodes that are online."""
        head, _ = self._ask({"op": "nodes"})
        return [int(node) for node in head["nodes"]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and yield the replies that come back in time, as they come.

        Only a few replies are held at once. What was not asked for is dropped when the next
        exchange begins. Raises `EngineError`, also during iteration, when the ServerApp is gone.
        """
        sent = [m for m in messages if not self._lost(m.metadata.dst_node_id, m)]
        if not sent:
            return []
        for message in sent:
            self._see(message.metadata.dst_node_id, message)
        head = {
            "op": "exchange",
            "actions": [m.metadata.message_type for m in sent],
            "group": sent[0].metadata.group_id,
            "nodes": [str(m.metadata.dst_node_id) for m in sent],
            "timeout": _FOREVER if timeout is None else timeout,
        }
        self._send(head, [m.content for m in sent])
        self._open = self._replies(sent)
        return self._open

    def _replies(self, sent: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies of one exchange; an answer without any is its end."""
        while True:
            found, bodies = self._receive()
            if not found["answers"]:
                return
            for answer in found["answers"]:
                asked = sent[answer["place"]]
                body: Error | RecordDict = (
                    Error(answer["code"], answer["reason"]) if "code" in answer else bodies[answer["body"]]
                )
                reply = Message(body, reply_to=asked)
                if not self._lost(asked.metadata.dst_node_id, reply):
                    self._see(asked.metadata.dst_node_id, reply)
                    yield reply

    def close(self) -> None:
        """Let the ServerApp end well, and remove the socket."""
        if self._link is not None:
            # Where it is gone already, the run's status says so.
            with contextlib.suppress(EngineError):
                self._ask({"op": "stop"})
            self._link = None
        self._stop_listening()

    def abandon(self) -> None:
        """Hang up, which Flower counts as a failed run."""
        if self._link is not None:
            self._link.close()
            self._link = None
        self._stop_listening()

    def _stop_listening(self) -> None:
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _ask(self, head: dict[str, object]) -> tuple[dict[str, Any], list[RecordDict]]:
        self._send(head, [])
        return self._receive()

    def _send(self, head: dict[str, object], contents: list[RecordDict]) -> None:
        for _ in self._open:  # what nobody asked for still lies in the socket
            pass
        with self._connected() as link:
            send(link, head, contents)

    def _receive(self) -> tuple[dict[str, Any], list[RecordDict]]:
        with self._connected() as link:
            while not link.poll(_LOOK):
                self.alive()
            return receive(link)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        if self._link is None:
            raise EngineError("the run has not started, or is over")
        try:
            yield self._link
        except (OSError, EOFError) as error:
            raise EngineError("the run's ServerApp is gone; read the SuperLink's log for the reason") from error

    def _lost(self, node: int, message: Message) -> bool:
        # The hook counts nodes as the in-process grid does.
        return node in self.places and super()._lost(FIRST_NODE + self.places[node], message)
