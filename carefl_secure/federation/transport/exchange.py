"""The server's side of the wire within one round: ask, count bytes, note bad messages, know whose node is whose."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from carefl_secure.errors import CareflError, CohortError, ProtocolError
from carefl_secure.federation.transport.error_codes import error_of_reply, is_dropout
from carefl_secure.federation.transport.local_grid import OneRunGrid
from carefl_secure.federation.transport.messages import Fields, pack, payload_bytes
from carefl_secure.secagg import SenderError
from carefl_secure.secagg.primitives.crypto import culprits, refuse

Take = Callable[[int, RecordDict], object]
ROLE = "query.role"
_PAUSE = 0.5

_CLIENT, _HELPER = 0, 1


class Faults:
    """Who sent bad messages in a run, and who is excluded from its further rounds.

    A bad message makes its sender a dropout of the round. After `LIMIT` of them, or once a party is proven to lie, its
    node is asked for nothing more. ``note`` is called with round, step, node, error and whether it is excluded now.
    """

    LIMIT = 3

    def __init__(self) -> None:
        self.excluded: set[int] = set()
        self.note: Callable[[int, str, int, CareflError, bool], None] = lambda *_: None
        self._counts: Counter[int] = Counter()

    def add(self, number: int, step: str, node: int, error: CareflError, proven: bool = False) -> None:
        """Count a bad message of a node."""
        self._counts[node] += 1
        if proven or self._counts[node] >= self.LIMIT:
            self.excluded.add(node)
        self.note(number, step, node, error, node in self.excluded)


class Exchange:
    """Messages of one round.

    ``number`` is Flower's group of every message; ``timeout`` is in seconds, for one phase;
    ``faults`` are those of the run. A message that is refused by a check, an error reply that is no
    dropout, and a refusal are faults of their sender, who counts as silent.
    """

    def __init__(self, grid: Grid, number: int, timeout: float, faults: Faults | None = None) -> None:
        self._grid, self._number, self._timeout = grid, number, timeout
        self._traffic = grid.traffic if isinstance(grid, OneRunGrid) else None
        self._before = {} if self._traffic is None else self._traffic()
        self._received, self._sent = Counter[int](), Counter[int]()
        self._faults = Faults() if faults is None else faults
        self._errors: list[CareflError] = []
        self._accused: list[tuple[int, int]] = []

    @property
    def excluded(self) -> set[int]:
        """The nodes that take no part any more."""
        return self._faults.excluded

    def address(self, contents: Mapping[int, RecordDict], action: str) -> Iterator[Message]:
        """Yield one message per node, each made when it is sent."""
        for node, content in contents.items():
            if node not in self.excluded:
                self._sent[node] += payload_bytes(content)
                yield Message(content, node, action, group_id=str(self._number))

    def gather(self, contents: Mapping[int, RecordDict], action: str, take: Take) -> None:
        """Send one message per node and hand good replies to ``take``, whose ProtocolError is the sender's fault."""
        self.collect(self.send(self.address(contents, action)), take)

    def ask(self, contents: Mapping[int, RecordDict], action: str) -> Iterator[tuple[int, RecordDict]]:
        """Yield node and content of good replies where all must agree; raises what a party refused with."""
        for reply in self.accept(self.send(self.address(contents, action))):
            yield reply.metadata.src_node_id, reply.content
        self.check()

    def check(self) -> None:
        """Raise the first fault of the round, if there is one."""
        if self._errors:
            raise self._errors[0]

    def collect(self, replies: Iterable[Message], take: Take) -> None:
        """Hand node and content of good replies to ``take``, as `gather` does."""
        for reply in self.accept(replies):
            with self.judging(reply.metadata.src_node_id, reply.metadata.message_type):
                take(reply.metadata.src_node_id, reply.content)

    def send(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages of any kind in one go and return the replies as they come, unread."""
        return self._grid.send_and_receive(messages, timeout=self._timeout)

    def nodes(self) -> list[int]:
        """Return the nodes that are there now and not excluded."""
        return sorted(set(self._grid.get_node_ids()) - self.excluded)

    def accept(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield good replies; skip dropouts, note faults."""
        for reply in replies:
            node, action = reply.metadata.src_node_id, reply.metadata.message_type
            if not reply.has_error():
                self._received[node] += payload_bytes(reply.content)
                yield reply
            elif not is_dropout(reply.error):
                error = error_of_reply(reply.error, party_name(self._grid, node))
                if isinstance(error, SenderError):  # it accuses another; who lies is judged later
                    self._accused.append((node, error.sender))
                    self._errors.append(error)
                    self._faults.note(self._number, action, node, error, False)
                else:
                    self.fault(node, action, error)

    @contextlib.contextmanager
    def judging(self, node: int, action: str) -> Iterator[None]:
        """Take a ProtocolError in the block for a fault of a node."""
        try:
            yield
        except ProtocolError as error:
            self.fault(node, action, error)

    def fault(self, node: int, action: str, error: CareflError, proven: bool = False) -> None:
        """Note a fault of a node in this round."""
        self._errors.append(error)
        self._faults.add(self._number, action, node, error, proven)

    def judge(self, places: Mapping[int, str], pairs: Collection[tuple[str, str]], colluders: int) -> None:
        """Find who lied among parties that contradict one another.

        ``places`` names the party of each node, ``pairs`` the contradictions beyond what clients
        said of one another in error replies. Who is in more than ``colluders`` is proven to lie.
        """
        said = {(places.get(node, ""), f"client {accused}") for node, accused in self._accused}
        self._accused.clear()
        node_of = {name: node for node, name in places.items()}
        for name, count in culprits({*pairs, *said}).items():
            if name in node_of:
                error = refuse("contradiction", f"{name} contradicts {count} others; see the log")
                self.fault(node_of[name], "judge", error, proven=count > colluders)

    def explained(self, error: CohortError) -> CareflError:
        """Return why too few are left: the first fault of the round, if there is one."""
        if not self._errors:
            return error
        first = self._errors[0]
        if first is not error:
            first.args = (f"{first} ({error})",)
        return first

    def traffic(self) -> dict[int, tuple[int, int]]:
        """Return the bytes that came from each node in the round and went to it; without a wire, of values alone.

        On a wire the server counts all of HTTP; a node is missing where it cannot tell, as after a new start.
        """
        if self._traffic is None:
            return {node: (up, self._sent[node]) for node, up in self._received.items()}
        new, old = self._traffic(), self._before
        found = {node: (up - old[node][0], down - old[node][1]) for node, (up, down) in new.items() if node in old}
        return {node: counts for node, counts in found.items() if min(counts) >= 0}


def party_name(grid: Grid, node: int) -> str:
    """Return what a person calls the party at a node: its site's name, where the grid knows it."""
    name = grid.names.get(node) if isinstance(grid, OneRunGrid) else None
    return f"node {node}" if name is None else f"site {name}"


def wait_for_nodes(grid: Grid, wanted: int, patience: float) -> list[int]:
    """Return the engine's nodes once there are ``wanted``, or those that came in ``patience`` seconds."""
    deadline = time.monotonic() + patience
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < wanted and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        nodes = sorted(grid.get_node_ids())
    return nodes


def role_message(index: int, helper: bool) -> RecordDict:
    """Return what a node answers: whether it is a client or a helper, and which."""
    return pack(role=_HELPER if helper else _CLIENT, index=index)


class Directory:
    """The roles of the nodes that were heard; ``clients`` and ``helpers`` are counts."""

    def __init__(self, clients: int, helpers: int) -> None:
        self._limits: Sequence[int] = (clients, helpers)
        self._roles: dict[int, tuple[int, int]] = {}

    def learn(self, exchange: Exchange, nodes: Collection[int]) -> None:
        """Ask the nodes not known yet, and forget those that are gone; signatures tell two of one place apart."""
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
