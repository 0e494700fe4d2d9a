"""An in-process Grid: the same client app and strategy as on a network, without Ray or sockets."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from carefl_secure.errors import CareflError, ConfigError, EngineError
from carefl_secure.federation.transport.error_codes import LOST, refusal
from carefl_secure.federation.transport.flower_internals import Run, empty_run, stamp

FIRST_NODE = 1000

_AHEAD = 2  # messages in hand for each worker

Drop = Callable[[int, Message], bool]
Record = Callable[[int, Message], None]
Exchanged = Generator[Message | None, None, None]


class ProgramFaults:
    """Turn a fault of a client app into an `EngineError`; as an error reply it would look like a dropout."""

    def __init__(self, party: str) -> None:
        self._party = party

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        """Pass refusals and interrupts on as they are; name everything else a fault."""
        if isinstance(error, Exception) and not isinstance(error, CareflError):
            raise EngineError(
                f"the client app of {self._party} failed with {type(error).__name__}; "
                "this is a fault in the program, not a dropout: see the exception it came from"
            ) from error


class OneRunGrid(Grid):
    """What all engines' grids share: one run, the hooks of `LocalGrid`, and the parties' ``names`` by node.

    ``retrying`` is called with seconds and reason before a round is tried again; it is None where a party that is away
    never comes back. ``traffic`` returns the bytes that came from and went to each node so far; None without a wire.
    """

    def __init__(self, run: Run, drop: Drop | None = None, record: Record | None = None) -> None:
        self._run = run
        self.drop, self.record = drop, record
        self.names: Mapping[int, str] = {}
        self.retrying: Callable[[float, str], None] | None = None
        self.traffic: Callable[[], Mapping[int, tuple[int, int]]] | None = None

    @property
    def run(self) -> Run:
        """The run this grid belongs to."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the run this grid belongs to."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message, as Flower's abstract class asks."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: replies are awaited as messages are sent, so that few are under way."""
        raise EngineError("this grid sends and waits in one step; use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse, as `push_messages` does."""
        raise EngineError("this grid sends and waits in one step; use send_and_receive")

    def _lost(self, node: int, message: Message) -> bool:
        return self.drop is not None and self.drop(node, message)

    def _see(self, node: int, message: Message) -> None:
        if self.record is not None:
            self.record(node, message)


class LocalGrid(OneRunGrid):
    """Send messages to client apps that live in this process.

    Parameters
    ----------
    nodes : int
        Number of nodes. Node ``i`` has Flower's number ``1000 + i`` and ``partition-id`` ``i``.
    workers : int, optional
        How many nodes may run at once; 1 (the default) runs them one after another in the calling thread.
    drop : callable(node, message) -> bool, optional
        Asked twice for every exchange: with the message on its way in and with the reply on its way out (which names
        the message it replies to). True loses it: a lost message was never handled, a lost reply was.
    record : callable(node, message) -> None, optional
        Sees, in order, every message the server sends and every reply that reaches it: its whole view of the clients.

    Guarantees
    ----------
    Of one exchange, `send_and_receive` holds at most two messages with their replies for each worker, however many
    nodes there are: a message is taken and copied when its node is to handle it, and a reply belongs to whoever asked.
    What was not asked for is still delivered, before the next exchange begins; after an error or `close` it never is.
    Messages and replies are deep copies, so neither side can change what the other holds; they are not serialised.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: int,
        *,
        workers: int = 1,
        drop: Drop | None = None,
        record: Record | None = None,
    ) -> None:
        if nodes < 1 or workers < 1:
            raise ConfigError(f"a grid needs at least one node and one worker, not {nodes} and {workers}")
        self._app = client_app
        self._workers = workers
        super().__init__(empty_run(), drop, record)
        self._contexts: Mapping[int, Context] = {
            FIRST_NODE + i: Context(
                run_id=1,
                node_id=FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for i in range(nodes)
        }
        self._open: Exchanged | None = None

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of all nodes, in order."""
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and yield each reply as it comes; nodes work meanwhile, and ``timeout`` is ignored."""
        self._settle()
        self._open = self._exchanges(messages)
        return self._received(self._open)

    def close(self) -> None:
        """Wait for the messages that nodes have in hand, and deliver no others."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _settle(self) -> None:
        """Deliver what is left of an exchange whose replies nobody asked for to the end."""
        if self._open is not None:
            for _ in self._received(self._open):
                pass
            self._open = None

    def _received(self, exchanges: Exchanged) -> Iterator[Message]:
        """Yield the replies that came back."""
        for reply in exchanges:
            if reply is not None:
                self._see(reply.metadata.src_node_id, reply)
                yield reply

    def _exchanges(self, messages: Iterable[Message]) -> Exchanged:
        """Deliver messages in order; yield the reply to each, or None where it was lost."""
        if self._workers == 1:
            for message in messages:
                yield self._exchange(self._stamped(message))
            return
        ahead: deque[Future[Message | None]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for message in messages:
                    ahead.append(pool.submit(self._exchange, self._stamped(message)))
                    if len(ahead) == _AHEAD * self._workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for answer in ahead:
                    answer.cancel()

    def _stamped(self, message: Message) -> Message:
        """Copy a message and give it the id that a SuperLink would."""
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            raise EngineError(f"there is no node {node} on this grid; it has {len(self._contexts)} nodes")
        stamped = stamp(copy.deepcopy(message))
        self._see(node, stamped)
        return stamped

    def _exchange(self, message: Message) -> Message | None:
        """Deliver one message; return the reply that reaches the server, or None."""
        node = message.metadata.dst_node_id
        if self._lost(node, message):
            return None
        reply = self._handle(node, message)
        return None if self._lost(node, reply) else copy.deepcopy(reply)

    def _handle(self, node: int, message: Message) -> Message:
        """Run the client app; a refusal or a lost connection becomes an error reply."""
        try:
            with ProgramFaults(f"node {node}"):
                try:
                    return self._app(message, self._contexts[node])
                except (ConnectionError, TimeoutError):
                    return Message(Error(code=LOST, reason="the node is unreachable"), reply_to=message)
        except EngineError:
            raise
        except CareflError as error:
            return Message(refusal(error), reply_to=message)
