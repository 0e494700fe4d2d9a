"""Flower's simulation on Ray as a Grid: clients on its virtual nodes, helpers in this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as StillRunning
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from carefl_secure.deployment.ray.actor import FAULT
from carefl_secure.errors import EngineError
from carefl_secure.federation.transport.error_codes import is_dropout
from carefl_secure.federation.transport.exchange import Directory, Exchange
from carefl_secure.federation.transport.flower_internals import stamp
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid, OneRunGrid

_AT_ONCE = 32  # Flower looks through all messages under way for every node, ten times a second
_PAUSE = 0.05
_PATIENCE = 30.0
_FOREVER = 365 * 24 * 3600.0
"""Time to live of a message: in a simulation slow clients are waited for, not lost."""


class FlowerSimulation:
    """A run of Flower's simulation in a thread, ``app`` on each of ``clients`` nodes; its ServerApp lends its Grid."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        self._ready, self._over = threading.Event(), threading.Event()
        self._grid: Grid | None = None
        server = ServerApp()

        @server.main()
        def lend(grid: Grid, context: Context) -> None:
            self._grid = grid
            self._ready.set()
            self._over.wait()

        one: dict[str, dict[str, Any]] = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        self._logger = logging.getLogger("flwr")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)  # that run_simulation is deprecated, is known
        pool = ThreadPoolExecutor(1, "flower")
        self._running: Future[None] = pool.submit(run_simulation, server, app, clients, backend_config=one)
        pool.shutdown(wait=False)  # takes nothing more, and ends with the simulation

    def grid(self) -> Grid:
        """Return Flower's own Grid once it exists; `EngineError` if the simulation ended before."""
        while not self._ready.wait(_PAUSE):
            self.check()
        if self._grid is None:
            raise EngineError("Flower's simulation lent no grid")
        return self._grid

    def check(self) -> None:
        """Raise EngineError when the simulation has ended on its own."""
        if self._running.done():
            error = self._running.exception()
            raise EngineError(
                f"Flower's simulation ended before the run did ({type(error).__name__}); this is "
                "a fault, not a dropout: see what Ray and Flower wrote above"
            ) from error

    def finish(self) -> None:
        """Let the ServerApp return and wait for Flower to end its actors; `EngineError` if it does not, or fails."""
        self._over.set()
        try:
            error = self._running.exception(_PATIENCE)
        except StillRunning:
            raise EngineError("Flower's simulation does not end; its actors are killed") from None
        if error is not None:
            raise EngineError(
                f"all rounds are done, but Flower's simulation ended with {type(error).__name__}"
            ) from error

    @property
    def ended(self) -> bool:
        """Whether Flower has ended, and with it all actors."""
        return self._running.done()

    def abandon(self, kill_actors: Callable[[], None]) -> None:
        """End a simulation quietly; ``kill_actors`` is called until Flower notices, as one may be about to start."""
        self._logger.setLevel(logging.CRITICAL + 1)
        self._over.set()
        end = time.monotonic() + _PATIENCE
        while not self._running.done() and time.monotonic() < end:
            kill_actors()
            wait([self._running], _PAUSE)

    def close(self) -> None:
        """Let the ServerApp's thread end in any case, and give Flower's log its level back."""
        self._over.set()
        self._logger.setLevel(self._level)


class RayGrid(OneRunGrid):
    """Send messages to clients on Flower's virtual nodes and to helpers in this process.

    Nodes are numbered as on the in-process grid: client ``i`` has ``1000 + i``, helpers follow.
    ``helpers`` reaches the helpers, and has hooks of its own; actors write their faults to ``log``.
    Raises the `CareflError` that a client refused with while its actor made its tasks.

    Guarantees
    ----------
    At most 32 messages to clients are under way. A client is never lost but by ``drop``: time
    limits are ignored, and what Flower or Ray report of an actor ends the run as an `EngineError`.
    """

    def __init__(self, flower: FlowerSimulation, clients: int, helpers: LocalGrid | None, log: Path) -> None:
        self._flower = flower
        self._far = flower.grid()
        self._near = helpers
        self._log = log
        self._open: Iterator[Message] = iter(())
        super().__init__(self._far.run)
        # Flower draws its nodes' numbers, so the nodes are asked who they are.
        while len(nodes := list(self._far.get_node_ids())) < clients:
            flower.check()
            time.sleep(_PAUSE)
        self._numbers = {node: node for node in nodes}
        directory = Directory(clients, 0)
        exchange = Exchange(self, 0, _FOREVER)
        directory.learn(exchange, sorted(self._numbers))
        exchange.check()  # all actors are of one process group: what one refuses, all refuse
        self._numbers = {FIRST_NODE + i: node for node, i in directory.clients().items()}

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of all nodes, clients first."""
        near = () if self._near is None else self._near.get_node_ids()
        return [*sorted(self._numbers), *(node for node in near if node not in self._numbers)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and yield the replies that come back, each as soon as it is there.

        The nodes work while the result is iterated; ``timeout`` is ignored. What was not iterated is still delivered,
        before the next exchange begins. Iterating raises `EngineError` when an actor or Flower fails.
        """
        for _ in self._open:
            pass
        self._open = self._exchange(iter(messages))
        return self._open

    def _exchange(self, messages: Iterator[Message]) -> Iterator[Message]:
        waiting: dict[str, Message] = {}
        left = True
        while left or waiting:
            while left and len(waiting) < _AT_ONCE:
                message = next(messages, None)
                left = message is not None
                if message is not None and message.metadata.dst_node_id in self._numbers:
                    self._send(message, waiting)
                elif message is not None:
                    yield from self._helpers(message).send_and_receive([message])
            replies = list(self._far.pull_messages(set(waiting))) if waiting else []
            for reply in replies:
                yield from self._accept(waiting.pop(reply.metadata.reply_to_message_id), reply)
            if waiting and not replies:
                self._flower.check()
                time.sleep(_PAUSE)

    def _send(self, message: Message, waiting: dict[str, Message]) -> None:
        data = message.metadata
        self._see(data.dst_node_id, stamp(message))
        if self._lost(data.dst_node_id, message):
            return
        renamed = Message(
            message.content, self._numbers[data.dst_node_id], data.message_type, ttl=_FOREVER, group_id=data.group_id
        )
        sent = list(self._far.push_messages([renamed]))
        if len(sent) != 1:
            raise EngineError(f"Flower did not take the message to node {data.dst_node_id}")
        waiting[sent[0]] = message

    def _accept(self, asked: Message, reply: Message) -> Iterator[Message]:
        node = asked.metadata.dst_node_id
        if reply.has_error() and (reply.error.code == FAULT.code or is_dropout(reply.error)):
            raise EngineError(f"the actor of node {node} failed; this is a fault, not a dropout: read {self._log}")
        answer = Message(reply.error if reply.has_error() else reply.content, reply_to=asked)
        if not self._lost(node, answer):
            self._see(node, answer)
            yield answer

    def _helpers(self, message: Message) -> LocalGrid:
        if self._near is None:
            raise EngineError(f"there is no node {message.metadata.dst_node_id} on this grid")
        return self._near
